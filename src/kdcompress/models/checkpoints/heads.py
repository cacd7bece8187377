"""How many classes and channels a network in a file has, read from its own classifier and stem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def shape_of(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, int]:
    """``num_classes`` and ``in_chans`` of the weights, as far as they tell; empty where the model has them already.

    Some architectures have no classifier unless asked (``num_classes`` 0), some have several, and the stem of some
    sees more channels than the image has, for it folds pixels into them.

    Args:
        state: Under the model's names.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    own = model.state_dict()
    shape: dict[str, int] = {}
    differs = False
    for name in names_in(config.get("classifier")):
        head, built = state.get(f"{name}.weight"), own.get(f"{name}.weight")
        if head is not None and head.ndim >= 2:
            shape["num_classes"] = head.shape[0]
            differs |= built is None or built.shape[0] != head.shape[0]
            break
    channels = (config.get("input_size") or (3,))[0]
    for name in names_in(config.get("first_conv")):
        stem, built = state.get(f"{name}.weight"), own.get(f"{name}.weight")
        if stem is None or built is None or stem.ndim != built.ndim or stem.ndim < 2:
            continue
        whole, rest = divmod(stem.shape[1] * channels, built.shape[1])
        if whole and not rest:
            shape["in_chans"] = whole
            differs |= stem.shape[1] != built.shape[1]
            break
    return shape if differs else {}


def classifier_tensors(model: nn.Module) -> set[str]:
    """Names of the weights and biases of all classifiers that the architecture may have."""
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return {f"{name}.{kind}" for name in names_in(config.get("classifier")) for kind in ("weight", "bias")}


def names_in(value: Any) -> tuple[str, ...]:
    """Layers in an entry of timm's configuration (``classifier``, ``first_conv``): a name, several, or none."""
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
