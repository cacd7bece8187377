"""CIFAR Wide ResNets (Zagoruyko & Komodakis, "Wide Residual Networks", 2016)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.models.small_network import (
    SmallNetwork,
    checkpoint_filter_fn,
    create,
    default_cfg,
    drop_path_rates,
    init_he,
    scaled_channels,
    subsampled,
)


class WideBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice, and dropout between the convolutions (section 2.4)."""

    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_rate, self.stride = drop_rate, stride
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False))
        self.drop_path: nn.Module | None = DropPath(drop_path) if drop_path else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        active = self.act1(self.bn1(x))
        # The authors' code projects the activated input, but passes the raw one where shapes agree.
        shortcut = x if self.downsample is None else self.downsample(subsampled(active, self.stride))
        residual = self.act2(self.bn2(self.conv1(active)))
        if self.drop_rate:
            residual = F.dropout(residual, self.drop_rate, self.training)
        residual = self.conv2(residual)
        return shortcut + (residual if self.drop_path is None else self.drop_path(residual))


class CifarWideResNet(SmallNetwork):
    """Wide ResNet: three stages of ``(depth - 4) / 6`` pre-activated blocks, 16k, 32k and 64k channels wide.

    Args:
        depth: Layers as the paper counts them, 6n + 4.
        widening: The paper's k; the stem stays at 16 channels.
        width: Factor on all channels, the stem's included.
        num_classes: 0 leaves the classifier out.
        in_chans: Image channels.
        global_pool: 'avg', or '' with ``num_classes`` 0.
        drop_rate: Dropout rate inside the blocks, where the paper has it; none before the classifier.
        drop_path_rate: Rate at which the last block's residual is skipped in training, falling to 0 at the first.

    Raises:
        ValueError: Any argument out of range, or one not listed.
    """

    def __init__(
        self,
        depth: int,
        widening: int,
        /,
        width: float = 1.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(in_chans, drop_rate, unknown)
        drop_paths = iter(drop_path_rates(drop_path_rate, (depth - 4) // 2))
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth!r} must be 6n + 4, from 10")
        if widening < 1:
            raise ValueError(f"widening={widening!r} must be at least 1")
        stem, *channels = scaled_channels((16, 16 * widening, 32 * widening, 64 * widening), width)

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            blocks = [WideBlock(inputs, outputs, stride, drop_rate, next(drop_paths))]
            blocks += [WideBlock(outputs, outputs, 1, drop_rate, next(drop_paths)) for _ in range((depth - 4) // 6 - 1)]
            return nn.Sequential(*blocks)

        self.conv1 = nn.Conv2d(in_chans, stem, 3, 1, 1, bias=False)
        self.layer1 = stage(stem, channels[0], 1)
        self.layer2 = stage(channels[0], channels[1], 2)
        self.layer3 = stage(channels[1], channels[2], 2)
        self.bn1 = nn.BatchNorm2d(channels[2])
        self.act1 = nn.ReLU(inplace=True)
        self.num_features = self.head_hidden_size = channels[2]
        self.feature_info = [
            {"num_chs": stem, "reduction": 1, "module": "conv1"},
            {"num_chs": channels[0], "reduction": 1, "module": "layer1"},
            {"num_chs": channels[1], "reduction": 2, "module": "layer2"},
            {"num_chs": channels[2], "reduction": 4, "module": "layer3"},
        ]
        self.build_head(num_classes, global_pool)
        init_he(self)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        return [self.conv1, self.layer1, self.layer2, self.layer3]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {**super().group_matcher(coarse), "stem": r"^conv1"}  # the first norm follows the last block

    def final_norm(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map to logits ``[B, num_classes]``, or to what the classifier reads."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)


_VARIANTS = ((16, 1), (16, 2), (16, 4), (28, 10), (40, 1), (40, 2), (40, 4))
default_cfgs = generate_default_cfgs({f"wrn_{depth}_{k}_cifar": default_cfg() for depth, k in _VARIANTS})


def _create(depth: int, widening: int, pretrained: bool, /, **kwargs: Any) -> CifarWideResNet:
    model: CifarWideResNet = create(
        partial(CifarWideResNet, depth, widening),
        f"wrn_{depth}_{widening}_cifar",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )
    return model


@register_model
def wrn_16_1_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-1; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(16, 1, pretrained, **kwargs)


@register_model
def wrn_16_2_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-2; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(16, 2, pretrained, **kwargs)


@register_model
def wrn_16_4_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-16-4; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(16, 4, pretrained, **kwargs)


@register_model
def wrn_28_10_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-28-10; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(28, 10, pretrained, **kwargs)


@register_model
def wrn_40_1_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-1; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(40, 1, pretrained, **kwargs)


@register_model
def wrn_40_2_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-2; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(40, 2, pretrained, **kwargs)


@register_model
def wrn_40_4_cifar(pretrained: bool = False, **kwargs: Any) -> CifarWideResNet:
    """WRN-40-4; ``kwargs`` are :class:`CifarWideResNet`'s."""
    return _create(40, 4, pretrained, **kwargs)
