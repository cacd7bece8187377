"""timm's ResNets for small images: a 3x3 first convolution, and no max pooling.

Public CIFAR code trains ResNet-18 to 152 in this form, with the four stages of He et al.'s ImageNet networks.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from kdcompress.models.small_network import create, default_cfg


class ResNet3x3(ResNet):
    """timm's ResNet, whose first convolution has stride 1 and 3x3 weights, and which pools after the last stage alone.

    Args:
        in_chans: Image channels.
        given: All others of timm's ``ResNet``, by name.
    """

    def __init__(self, in_chans: int = 3, **given: Any) -> None:
        super().__init__(in_chans=in_chans, **given)
        stem = nn.Conv2d(in_chans, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = stem  # type: ignore[assignment]  # timm also has stems of several layers
        self.maxpool = nn.Sequential()
        for stage, reduction in zip(self.feature_info, (1, 1, 2, 4, 8), strict=True):
            stage["reduction"] = reduction


_LAYERS = {
    "resnet18_3x3": (BasicBlock, (2, 2, 2, 2)),
    "resnet34_3x3": (BasicBlock, (3, 4, 6, 3)),
    "resnet50_3x3": (Bottleneck, (3, 4, 6, 3)),
    "resnet101_3x3": (Bottleneck, (3, 4, 23, 3)),
    "resnet152_3x3": (Bottleneck, (3, 8, 36, 3)),
}
default_cfgs = generate_default_cfgs({name: default_cfg() for name in _LAYERS})


def _create(variant: str, pretrained: bool, /, **kwargs: Any) -> ResNet3x3:
    block, layers = _LAYERS[variant]
    model: ResNet3x3 = create(ResNet3x3, variant, pretrained, **{"block": block, "layers": layers, **kwargs})
    return model


@register_model
def resnet18_3x3(pretrained: bool = False, **kwargs: Any) -> ResNet3x3:
    """ResNet-18; ``kwargs`` are those of timm's ``ResNet``."""
    return _create("resnet18_3x3", pretrained, **kwargs)


@register_model
def resnet34_3x3(pretrained: bool = False, **kwargs: Any) -> ResNet3x3:
    """ResNet-34; ``kwargs`` are those of timm's ``ResNet``."""
    return _create("resnet34_3x3", pretrained, **kwargs)


@register_model
def resnet50_3x3(pretrained: bool = False, **kwargs: Any) -> ResNet3x3:
    """ResNet-50; ``kwargs`` are those of timm's ``ResNet``."""
    return _create("resnet50_3x3", pretrained, **kwargs)


@register_model
def resnet101_3x3(pretrained: bool = False, **kwargs: Any) -> ResNet3x3:
    """ResNet-101; ``kwargs`` are those of timm's ``ResNet``."""
    return _create("resnet101_3x3", pretrained, **kwargs)


@register_model
def resnet152_3x3(pretrained: bool = False, **kwargs: Any) -> ResNet3x3:
    """ResNet-152; ``kwargs`` are those of timm's ``ResNet``."""
    return _create("resnet152_3x3", pretrained, **kwargs)
