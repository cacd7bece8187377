"""The same architecture with fewer channels: by its constructor where that has a width, else by pruning it.

The MACs of convolutions grow with the square of the width. A pruned network keeps the first channels of every group
that has to change together, whatever their weights, so it is rebuilt exactly from (architecture, width) alone.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from torch import Tensor, nn

from kdcompress.errors import UserError, first_line
from kdcompress.models.build import ModelSpec, build, config_of
from kdcompress.models.small_network import SmallNetwork, scaled_channels

HARDLY = 0.99  # of the parameters: a width near 1 may be rounded to all channels
WITH_WIDTH = "a student with a width of its own, e.g. resnet20_cifar, wrn_16_2_cifar, resnet18, convnext_atto"


def narrow(spec: ModelSpec, width: float, **shape: Any) -> nn.Module:
    """Build an architecture with ``width`` times its channels, and fresh weights.

    Our own networks take ``width``, timm's ResNets ``channels``, its ConvNeXts ``dims``. timm's EfficientNets and
    MobileNets fix their ``channel_multiplier``, and others have none: those are pruned by Torch-Pruning.

    Args:
        spec: The architecture at its full width.
        width: Factor on the channels, above 0; 1 is the architecture itself.
        shape: As for :func:`~kdcompress.models.build.build`.

    Raises:
        UserError: The architecture has no width, or no channel would be left.
    """
    if width == 1:
        return build(spec, **shape)[0]
    changed = _width_arguments(spec, width)
    if changed is not None:
        return build(ModelSpec(spec.name, {**spec.args, **changed}, spec.preprocessing), **shape)[0]
    return _pruned(build(spec, **shape)[0], spec.name, width)


def _width_arguments(spec: ModelSpec, width: float) -> dict[str, Any] | None:
    """Constructor arguments for this width; None if the architecture has none."""
    if spec.is_code:
        return None
    with torch.device("meta"):
        model: Any = timm.create_model(spec.name, **spec.args)
    if isinstance(model, SmallNetwork):
        return {"width": round(spec.args.get("width", 1.0) * width, 6)}
    if isinstance(model, ResNet):
        blocks: list[Any] = [model.get_submodule(f"{stage['module']}.0") for stage in model.feature_info[1:]]
        outputs = [stage["num_chs"] for stage in model.feature_info[1:]]
        planes = [count // block.expansion for count, block in zip(outputs, blocks, strict=True)]
        channels = {"channels": tuple(scaled_channels(planes, width))}
        stem: Any = model.conv1
        if isinstance(stem, nn.Conv2d):
            return channels  # timm fixes it
        return {**channels, "stem_width": max(scaled_channels([stem[3].out_channels], width)[0], 4)}
    if isinstance(model, ConvNeXt):
        dims: list[Any] = [stage["num_chs"] for stage in model.feature_info]
        return {"dims": tuple(scaled_channels(dims, width))}
    return None


def _pruned(model: nn.Module, name: str, width: float) -> nn.Module:
    try:
        import torch_pruning
    except ImportError as error:
        remedy = f"pip install 'kdcompress[prune]', or take {WITH_WIDTH}."
        raise UserError(f"{name} has no width of its own; Torch-Pruning can narrow it.", remedy) from error

    class First(torch_pruning.importance.Importance):
        """Ranks channels by their position alone."""

        def __call__(self, group: Any, **_: Any) -> Tensor:
            return torch.arange(len(group[0].idxs), 0, -1, dtype=torch.float32)

    config = config_of(model)
    example = torch.zeros(1, *config["input_size"])
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    try:
        pruner = torch_pruning.pruner.MetaPruner(
            model.eval(),
            example,
            importance=First(),
            pruning_ratio=1 - width,
            ignored_layers=[classifier] if isinstance(classifier, nn.Linear) else [],
        )
        before = _size(model, classifier)
        pruner.step()
        with torch.no_grad():
            model(example)
        if _size(model, classifier) > max((1 + width) / 2, HARDLY) * before:
            raise ValueError("Torch-Pruning leaves it as it is")
    except Exception as error:  # a library that rewrites any network may fail in any way
        problem = f"{name} cannot be narrowed: Torch-Pruning fails on it ({first_line(error)})."
        raise UserError(problem, f"Take {WITH_WIDTH}.") from error
    return model


def _size(model: nn.Module, classifier: nn.Module | None) -> int:
    """Number of parameters without the classifier, whose outputs are not pruned."""
    own = sum(parameter.numel() for parameter in classifier.parameters()) if classifier is not None else 0
    return sum(parameter.numel() for parameter in model.parameters()) - own
