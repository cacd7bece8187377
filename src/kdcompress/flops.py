"""What a network costs: parameters and multiply-accumulates (MACs), in total and by module."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from kdcompress.errors import UserError, usage_error
from kdcompress.flop_handlers import HANDLES, by_kind
from kdcompress.flop_tracing import call_order, untouched
from kdcompress.linear_ops import is_linear


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
        macs_by_operator: ``macs`` in four parts: ``convolution``, ``matrix_product`` (linear layers, attention,
            recurrent layers), ``normalization`` and ``other`` (average pooling and resizing).
    """

    params: int
    macs: int
    input_size: tuple[int, ...]
    by_module: dict[str, ModuleCost]
    unsupported_ops: dict[str, int]
    macs_by_operator: dict[str, int]

    @property
    def missed(self) -> list[str]:
        """Those of ``unsupported_ops`` that may hide products, such as ``['aten::cdist']``: the MACs are too few then.

        The others visit each element a few times at most: activations, copies, pooling.
        """
        return [name for name in self.unsupported_ops if not is_linear(name)]

    @property
    def flops(self) -> int:
        """Floating-point operations: two for each MAC."""
        return 2 * self.macs


def profile(model: nn.Module, input_size: Sequence[int]) -> Profile:
    """Count the parameters and MACs of ``model`` for one image, in evaluation mode.

    MACs are fvcore's count (``fvcore.nn.FlopCountAnalysis``: convolutions, linear layers and matrix products,
    plus small terms for normalization, pooling and resizing), with handlers for the matrix products and the RMS
    norm that it misses. Attention counts in full, whether or not a mask or ``is_causal`` hides a part of it; a chain
    of products (``einsum``) counts in the order in which torch runs it. Only the branch that this one input takes
    is followed.

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
        with untouched(network), call_order() as order:
            analysis = FlopCountAnalysis(network, (_blank_image(network, size),))
            analysis.set_op_handle(**HANDLES)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            macs = {name: int(analysis.total(name)) for name in params}
            parts = by_kind(analysis.by_operator())
            unsupported = dict(analysis.unsupported_ops().most_common())
    except UserError:  # names the cause and its remedy already
        raise
    except Exception as error:
        # A network's forward may raise anything, also without a message.
        cause = textwrap.shorten(f"{type(error).__name__}: {error}".removesuffix(": "), 300, placeholder=" …")
        raise UserError(
            f"{type(network).__name__} cannot be profiled on input {'x'.join(map(str, size))}: {cause}",
            "Give the input size that it takes, and a network that torch.jit.trace follows, not yet compiled.",
        ) from error
    names = _in_forward_order(network, order)
    by_module = {name: ModuleCost(params[name], macs[name]) for name in names if params[name] or macs[name]}
    return Profile(params[""], macs[""], size, by_module, unsupported, parts)


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _blank_image(network: nn.Module, size: tuple[int, ...]) -> torch.Tensor:
    """One image of zeros ``[1, C, H, W]``: unlike noise, it leaves the random number generators alone."""
    tensors = [*network.parameters(), *network.buffers()]
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


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
