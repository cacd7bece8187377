"""What a network costs: parameters and multiply-accumulates (MACs), in total and by module."""

import math
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from kdcompress.errors import UserError, usage_error

# What fvcore calls with the inputs and outputs (torch._C.Value) of one traced operation.
Handle = Callable[[Sequence[Any], Sequence[Any]], int]


@dataclass(frozen=True)
class ModuleCost:
    """What one submodule costs, its children included.

    Attributes:
        params: Parameters that it holds, trainable or not, each tensor counted once.
        macs: Multiply-accumulates for one image.
    """

    params: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """What a network costs for one image.

    Attributes:
        params: Parameters, trainable or not; a tensor that several modules share counts once.
        macs: Multiply-accumulates for one image; what is shared or reused counts each time it runs.
        input_size: The image's size, ``(C, H, W)``.
        by_module: Dotted module name to its cost, children included. A parent comes before its children,
            siblings in the order in which they ran. The network itself and modules that cost nothing are left
            out. A module with several names appears under the first, with the MACs of all its calls.
        unsupported_ops: Operation to how often it ran uncounted, such as ``{'aten::gelu': 12}``, most frequent
            first.
    """

    params: int
    macs: int
    input_size: tuple[int, ...]
    by_module: dict[str, ModuleCost]
    unsupported_ops: dict[str, int]

    @property
    def missed(self) -> list[str]:
        """Those of ``unsupported_ops`` that may hide products, such as ``['aten::cdist']``: the MACs are too few then.

        The others visit each element a few times at most: activations, copies, pooling.
        """
        return [name for name in self.unsupported_ops if not _is_linear(name)]

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each MAC."""
        return 2 * self.macs


def profile(model: nn.Module, input_size: Sequence[int]) -> Profile:
    """Count the parameters and MACs of ``model`` for one image, in evaluation mode.

    MACs are fvcore's count (``fvcore.nn.FlopCountAnalysis``: convolutions, linear layers and matrix products,
    plus small terms for normalisation, pooling and resizing), with handlers for the matrix products that
    fvcore does not know. Attention counts in full, whether or not a mask or ``is_causal`` hides a part of it.
    Only the branch that this one input takes is followed.

    Args:
        model: Any network whose forward takes a batch of images ``[1, C, H, W]``. It is run once where it is,
            in its own dtype, and left as it was found.
        input_size: One image's size, ``(C, H, W)``.

    Returns:
        The network's :class:`Profile`.

    Raises:
        UserError: ``input_size`` is not made of positive numbers, or the network cannot be traced on it.
    """
    size = tuple(input_size)
    if not size or any(not isinstance(n, int) or n < 1 for n in size):
        raise usage_error(
            f"The input size {input_size!r} is not made of positive whole numbers.",
            "Give channels, height and width, such as (3, 32, 32).",
        )
    # torch.compile's wrapper would hand the tracer one opaque call.
    network: nn.Module = getattr(model, "_orig_mod", model)
    try:
        params = {name: _params(module) for name, module in network.named_modules()}
        with _untouched(network), _call_order() as order:
            analysis = FlopCountAnalysis(network, (_blank_image(network, size),))
            analysis.set_op_handle(**_HANDLES)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            macs = {name: int(analysis.total(name)) for name in params}
            unsupported = dict(analysis.unsupported_ops().most_common())
    except Exception as error:
        # A network's forward may raise anything at all.
        cause = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
        raise UserError(
            f"{type(network).__name__} cannot be profiled on input {'x'.join(map(str, size))}: {cause}",
            "Give the input size that it takes, and a network that torch.jit.trace follows, not yet compiled.",
        ) from error
    names = _in_forward_order(network, order)
    by_module = {name: ModuleCost(params[name], macs[name]) for name in names if params[name] or macs[name]}
    return Profile(params[""], macs[""], size, by_module, unsupported)


def _is_linear(operation: str) -> bool:
    """Whether an operation's work grows with its elements alone."""
    namespace, _, name = operation.partition("::")
    if name.rstrip("_") in _LINEAR:
        return True
    packet = getattr(getattr(torch.ops, namespace), name, None)
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _blank_image(network: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """One image of zeros ``[1, C, H, W]``: unlike noise, it leaves the random number generators alone."""
    tensors = [*network.parameters(), *network.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Trace in evaluation mode, silently and without fused kernels; then put everything back."""
    # train() and eval() are not used: networks override them, some to fuse weights or drop caches.
    training = {module: module.training for module in network.modules()}
    hooks = [registry for m in training for registry in (m._forward_pre_hooks, m._forward_hooks)]
    hooks_before = [set(registry) for registry in hooks]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # nn.MultiheadAttention and nn.TransformerEncoderLayer would run as one operation that hides its products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in training.items():
            module.training = mode
        # fvcore removes its own hooks only when the trace succeeds.
        for registry, before in zip(hooks, hooks_before, strict=True):
            for key in set(registry) - before:
                del registry[key]


@contextmanager
def _call_order() -> Iterator[dict[nn.Module, int]]:
    """Note the modules that are called, each with its place in the order of first calls."""
    order: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: Any) -> None:
        order.setdefault(module, len(order))

    handle = register_module_forward_pre_hook(note)
    try:
        yield order
    finally:
        handle.remove()


def _in_forward_order(network: nn.Module, order: dict[nn.Module, int]) -> list[str]:
    """Names of all submodules, depth first, siblings as they first ran and those that never did last."""
    position: dict[str, tuple[float, int]] = {}
    for place, (name, module) in enumerate(network.named_modules()):
        # A ModuleList is never called: it goes where the first of its members does.
        first = min((order[m] for m in module.modules() if m in order), default=math.inf)
        position[name] = (first, place)

    def path(name: str) -> list[tuple[float, int]]:
        parts = name.split(".")
        return [position[".".join(parts[: i + 1])] for i in range(len(parts))]

    return sorted((name for name in position if name), key=path)


def _product(left: int) -> Handle:
    """A matrix product with its left factor at input ``left``: a dot product for each output element."""
    return lambda inputs, outputs: math.prod(get_shape(outputs[0])) * get_shape(inputs[left])[-1]


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Q Kᵀ and P V, for q ``[…, heads, L, E]``, k ``[…, S, E]``, v ``[…, S, Ev]``, output ``[…, heads, L, Ev]``.

    The output's heads count: in grouped-query attention several of them share one head of k and v.
    """
    *rows, _ = get_shape(outputs[0])
    keys, dim = get_shape(inputs[1])[-2:]
    return math.prod(rows) * keys * (dim + get_shape(inputs[2])[-1])


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A forward convolution with its weight ``[out, in / groups, …]`` second, such as padding='same' makes."""
    return math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[1:])


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Factors of A·K and K·B elements make A·B outputs at K MACs each: the root of their product is A·K·B."""
    shapes = [get_shape(value) for value in (*inputs[:2], outputs[0])]
    return math.isqrt(math.prod(math.prod(shape) for shape in shapes))


def _recurrent(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """LSTM, GRU, RNN over ``[B, T, F]`` or ``[T, B, F]``: each weight matrix is applied once a step."""
    *steps, _features = get_shape(inputs[0])
    weights = [get_shape(value) for value in inputs[2].node().inputs()]
    return math.prod(steps) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


# What torch does not tag as pointwise, though it only moves, pools or reduces.
_LINEAR = frozenset(
    """
    all amax amin any arange argmax avg_pool1d avg_pool2d avg_pool3d col2im constant_pad_nd cumsum
    expand_as fill gather hardswish im2col index_select linalg_norm linalg_vector_norm log_softmax
    logsumexp max max_pool1d max_pool2d max_pool3d mean min norm one_hot pad prod reflection_pad2d
    repeat repeat_interleave replication_pad2d reshape_as roll scatter softmax sort std sum topk type_as
    unfold upsample_bicubic2d upsample_linear1d var view_as
    """.split()  # noqa: SIM905
)

_HANDLES: dict[str, Handle] = {
    # fvcore's own handler counts a product too low when the left factor is broadcast, and refuses vectors.
    "aten::matmul": _product(0),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::inner": _product(0),
    "aten::baddbmm": _product(1),
    "aten::addmv": _product(1),
    "aten::tensordot": _tensordot,
    "aten::scaled_dot_product_attention": _attention,
    "aten::_convolution_mode": _convolution,
    "torchvision::deform_conv2d": _convolution,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::rnn_relu": _recurrent,
}
