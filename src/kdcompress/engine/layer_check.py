"""Compares the outputs and gradients of one layer in some precision and layout with those in float32 and contiguous.

The inputs are those that the layer gets in its network; the output gradient is random, because true gradients may
vanish: those of a convolution's bias before BatchNorm, or of a whole residual branch whose last scale starts at 0.

With bf16 on a Xeon with AMX (torch 2.14), in 18 networks of ours and timm's, fresh and after some steps, on images of 8
to 64 pixels a side, the relative distances were

* up to 0.004 in correct layers and up to 0.12 in correct blocks, 0.3 to 2.5 times the effect of random relative noise
  (jitter) of the size of bf16 rounding;
* 0.02 to 0.1 in the weights of LayerNorm, which a CPU sums in bf16: the distance grows with the square root of the
  number of positions, 0.2 at 32,768 and 0.3 to 0.4 at 131,072;
* infinite in wrong layers: 3 x 3 and 5 x 5 convolutions with stride 2 on 1 x 1 maps.

So the bound is far from both. In 7,092 convolutions and 564 other shapes there was no false negative and no false
positive. A check takes as long as 1 to 8 training steps, 3 in the median (0.6 to 2 s at 32 pixels), but at least 0.05
to 0.1 s, which is 20 steps of a ResNet-8 at 8 pixels; a tenth of that if the process has checked such a network before.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

BOUND = 0.25
SENSITIVITY, JITTERS = 6.0, 3
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-11}  # fp32: that of TensorFloat-32
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NOISE = 2**16 + 1  # random numbers, repeated: drawing one per activation takes a CPU longer than the layer itself


@dataclass(frozen=True)
class Way:
    """How a layer is run.

    Attributes:
        contiguous: Whether inputs and parameters are made contiguous; else they keep their layout.
        jitter: Relative noise on inputs, parameters and output gradients.
    """

    precision: str
    contiguous: bool = False
    jitter: float = 0.0
    seed: int = 0


EXACT = Way("fp32", contiguous=True)
UNCLEAR = "unclear"
KNOWN_CODE = ("torch.", "timm.", "kdcompress.")
_known_faults: dict[Hashable, str] = {}


def fault_of(
    layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], precision: str, device: torch.device
) -> str:
    """What makes a layer's outputs or gradients wrong: ``precision``, ``layout``, or "" if they are correct.

    ``UNCLEAR`` where they are far off, but noise of the size of rounding has as large an effect; checking the layers
    within a block may tell.

    Layers that look the same to the kernels are checked once per process: most layers of a deep network repeat, and so
    does the next training.

    Args:
        layer: In train mode, used in ``precision`` and in the layout that its parameters and inputs have.
        args, kwargs: Of its forward.
    """
    kinds = tuple(type(each) for each in layer.modules())
    if any(not kind.__module__.startswith(KNOWN_CODE) for kind in kinds):
        return _fault(layer, args, kwargs, precision, device)  # its repr may not say all that it computes
    flat, spec = tree_flatten(((tuple(args), kwargs), list(layer.parameters())))
    signature = tuple(_signature(value) for value in flat)
    key = (kinds, repr(layer), layer.training, precision, device, torch.get_num_threads(), spec, signature)
    if key not in _known_faults:
        _known_faults[key] = _fault(layer, args, kwargs, precision, device)
    return _known_faults[key]


def _signature(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    return repr(value)


def _fault(layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], precision: str, device: torch.device) -> str:
    call = tree_map(_finite, (tuple(args), kwargs))
    exact = _results(layer, call, EXACT, device)
    distance = _distance(_results(layer, call, Way(precision), device), exact)
    if distance <= BOUND:
        return ""
    # with clipped activations or dropout, any rounding may have as large an effect
    jitters = [Way("fp32", True, ROUNDING[precision], seed) for seed in range(1, JITTERS + 1)]
    if distance <= SENSITIVITY * max(_distance(_results(layer, call, way, device), exact) for way in jitters):
        return UNCLEAR
    same_layout = exact if precision == "fp32" else _results(layer, call, Way("fp32"), device)
    if precision == "fp32" or _distance(same_layout, exact) > BOUND:
        return "layout"
    return "precision"


def _finite(value: Any) -> Any:
    """The value, or noise of its shape where a wrong layer before has made it infinite or NaN."""
    if _is_float(value) and not torch.isfinite(torch.linalg.vector_norm(value.detach(), dtype=torch.float32)):
        return torch.empty_like(value.detach()).copy_(_noise(value, 2)).requires_grad_(value.requires_grad)
    return value


def _results(layer: nn.Module, call: Any, way: Way, device: torch.device) -> list[Tensor]:
    """Outputs, and gradients of parameters and inputs, in float32."""
    leaves: list[Tensor] = []

    def prepared(value: Any) -> Any:
        if not _is_float(value):
            return value
        own = value.detach()
        if way.precision == "fp32":
            own = own.float()
        own = _jittered(own.contiguous() if way.contiguous else own, way, len(leaves))
        if value.requires_grad:
            own = own.detach().requires_grad_()
            leaves.append(own)
        return own

    parameters = {name: prepared(parameter) for name, parameter in layer.named_parameters()}
    flat, spec = tree_flatten(call)
    low = DTYPES.get(way.precision)
    torch.manual_seed(way.seed)
    with torch.enable_grad(), torch.autocast(device.type, low, enabled=low is not None, cache_enabled=False):
        # copies: layers may work in place
        args, kwargs = tree_unflatten([each.clone() if _is_float(each) else each for each in map(prepared, flat)], spec)
        result = functional_call(layer, parameters, args, kwargs)
    outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor) and each.requires_grad]
    if not outputs or not leaves:
        return []
    output_gradients = [torch.empty_like(each).copy_(_jittered(_drawn(each), way, 99)) for each in outputs]
    gradients = torch.autograd.grad(outputs, leaves, output_gradients, allow_unused=True)
    return [each.detach().float() for each in (*outputs, *gradients) if each is not None]


def _drawn(output: Tensor) -> Tensor:
    """A random output gradient; the fourth root keeps sums over many positions, and each term, in the range of fp16."""
    return _noise(output, 1) / output.numel() ** 0.25


def _jittered(values: Tensor, way: Way, number: int) -> Tensor:
    """With independent relative noise, as rounding adds it."""
    if not way.jitter:
        return values
    return values * (1 + way.jitter * _noise(values, 100 * way.seed + number).clamp_(-1, 1))


def _noise(like: Tensor, seed: int) -> Tensor:
    """Gaussian noise of a tensor's shape, in float32."""
    drawn = _drawn_once(seed, like.device)
    return drawn.repeat(-(-like.numel() // NOISE))[: like.numel()].view(like.shape)


@functools.lru_cache(maxsize=4)
def _drawn_once(seed: int, device: torch.device) -> Tensor:
    return torch.randn(NOISE, generator=torch.Generator().manual_seed(seed)).to(device)


def _distance(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest norm of a difference, relative to the norm of the exact result; infinite for what is not finite."""
    largest = 0.0
    for one, other in zip(results, exact, strict=True):
        difference, size = float((one - other).norm()), float(other.norm())
        if not size < torch.inf:
            return 0.0  # there is nothing to compare with
        share = 0.0 if difference == 0 else difference / size if size else torch.inf
        largest = max(largest, share if share == share else torch.inf)
    return largest


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
