"""How a network is traced for its MACs: in evaluation mode, without opaque calls, and left as it was."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


class _Context(torch.autograd.function.FunctionCtx):
    """Takes what a custom autograd function saves for the backward pass."""

    needs_input_grad: tuple[bool, ...] = ()


def _forward(function: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    """The forward pass of a custom autograd function, run like any other code."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args, **kwargs)
    context = _Context()
    context.needs_input_grad = (False,) * len(args)
    return function.forward(context, *args, **kwargs)


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Trace in evaluation mode, silently and without fused kernels; then put everything back."""
    # train() and eval() are not used: networks override them, some to fuse weights or drop caches.
    training = {module: module.training for module in network.modules()}
    hooks = [registry for m in training for registry in (m._forward_pre_hooks, m._forward_hooks)]
    hooks_before = [set(registry) for registry in hooks]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # nn.MultiheadAttention and nn.TransformerEncoderLayer would run as one operation that hides its products.
    torch.backends.mha.set_fastpath_enabled(False)
    function = torch.autograd.Function
    apply = vars(function)["apply"]
    try:
        for module in training:
            module.training = False
        # Of a custom function the tracer sees one opaque call; of a reentrant checkpoint, not even that: it fails.
        function.apply = classmethod(_forward)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        function.apply = apply
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in training.items():
            module.training = mode
        # fvcore removes its own hooks only when the trace succeeds.
        for registry, before in zip(hooks, hooks_before, strict=True):
            for key in set(registry) - before:
                del registry[key]


@contextmanager
def call_order() -> Iterator[dict[nn.Module, int]]:
    """Note the modules that are called, each with its place in the order of first calls."""
    order: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: Any) -> None:
        order.setdefault(module, len(order))

    handle = register_module_forward_pre_hook(note)
    try:
        yield order
    finally:
        handle.remove()
