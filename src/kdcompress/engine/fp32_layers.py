"""Layers that run in float32 while the rest of the network runs in a lower precision."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class _InFp32:
    """Mixed in before a layer's class: runs its forward without autocast, on inputs cast to float32."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(_floated, (args, kwargs))
        device = next((each.device.type for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


@contextlib.contextmanager
def in_fp32(network: nn.Module, layers: Sequence[str]) -> Iterator[None]:
    """Inside, some layers of a network run in float32; state-dict keys stay the same.

    The layers change their class, which survives copies (for a moving average), DDP and the compiler.

    Args:
        layers: Names of modules; those that the network does not have are ignored.
    """
    modules = dict(network.named_modules())
    chosen = [modules[name] for name in layers if name in modules]
    before = [type(module) for module in chosen]
    for module, kind in zip(chosen, before, strict=True):
        module.__class__ = _subclass(kind)  # type: ignore[arg-type]  # types are hashable
    try:
        yield
    finally:
        for module, kind in zip(chosen, before, strict=True):
            module.__class__ = kind


@functools.cache
def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_InFp32, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _floated(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
