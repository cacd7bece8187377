"""Tensors matched by their order: two implementations of one architecture mostly register their layers alike."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

COUNTER = "num_batches_tracked"  # in files of before 2018 there is none
_KINDS = ("weight", "bias", "running_mean", "running_var")


def in_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
    """A state dict under the model's names, its tensors in their given order.

    Shapes are compared without axes of length 1 (a 1x1 convolution is a linear layer), the last layer's but for the
    number of classes. A weight never becomes a bias, nor a mean a variance.

    Returns:
        None where a tensor does not fit.
    """
    own = [(name, value) for name, value in model.state_dict().items() if not name.endswith(COUNTER)]
    there = [(name, value) for name, value in state.items() if not name.endswith(COUNTER)]
    if len(own) != len(there):
        return None
    matched: dict[str, Tensor] = {}
    classifier = {name for name, _ in own[-2:]}
    for (name, value), (foreign, tensor) in zip(own, there, strict=True):
        kinds = name.rpartition(".")[2], foreign.rpartition(".")[2]
        if all(kind in _KINDS for kind in kinds) and kinds[0] != kinds[1]:
            return None
        if _shape(tensor) == _shape(value) or _flattened(tensor, value):
            matched[name] = tensor.reshape(value.shape)
        elif name in classifier and _shape(tensor)[1:] == _shape(value)[1:]:
            matched[name] = tensor
        else:
            return None
    return matched


def _shape(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length > 1]


def _flattened(tensor: Tensor, own: Tensor) -> bool:
    """Whether a linear layer on a flattened map is a convolution in the model, as in timm's VGG."""
    return tensor.ndim == 2 and own.ndim == 4 and tensor.shape[0] == own.shape[0] and tensor.numel() == own.numel()
