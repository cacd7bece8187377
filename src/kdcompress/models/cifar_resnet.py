"""CIFAR ResNets (He et al., "Deep Residual Learning", 2016, section 4.2)."""

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


class PadShortcut(nn.Module):
    """Option A: every second pixel (with stride 2), and zeros for the new channels, half of them on either side.

    He et al. do not say where the zeros go; this is where the common PyTorch checkpoints have them. Of an
    odd number the larger half comes after (our choice).
    """

    def __init__(self, new_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C + new_channels, ceil(H / stride), ceil(W / stride)]``."""
        return F.pad(subsampled(x, self.stride), (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activation after the sum (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, drop_path: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        self.shortcut_stride = 1
        changes = stride == 2 or inputs != outputs
        if changes and shortcut == "A":
            self.downsample = PadShortcut(outputs - inputs, stride)
        elif changes:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
            self.shortcut_stride = stride
        self.act2 = nn.ReLU(inplace=True)
        self.drop_path: nn.Module | None = DropPath(drop_path) if drop_path else None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        if self.drop_path is not None:
            residual = self.drop_path(residual)
        if self.downsample is not None:
            x = self.downsample(subsampled(x, self.shortcut_stride))
        return self.act2(residual + x)


class CifarResNet(SmallNetwork):
    """ResNet for small images: three stages of ``(depth - 2) / 6`` basic blocks, 16, 32 and 64 channels wide.

    Args:
        depth: Layers with weights, 6n + 2.
        width: Factor on all channels.
        shortcut: Where a stage changes shape: 'B' projects (1x1 convolution and norm), 'A' has no weights.
        num_classes: 0 leaves the classifier out.
        in_chans: Image channels.
        global_pool: 'avg', or '' with ``num_classes`` 0.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Rate at which the last block's residual is skipped in training, falling to 0 at the first.
        stem: Channels of the first convolution, unaffected by ``width``; None: those of the first stage. The ResNets
            "x4" of the distillation literature have ``width=4,stem=32``.

    Raises:
        ValueError: Any argument out of range, or one not listed.
    """

    def __init__(
        self,
        depth: int,
        /,
        width: float = 1.0,
        shortcut: str = "B",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(in_chans, drop_rate, unknown)
        drop_paths = iter(drop_path_rates(drop_path_rate, (depth - 2) // 2))
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth!r} must be 6n + 2, from 8")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r} must be 'A' or 'B'")
        channels = scaled_channels((16, 32, 64), width)
        stem = channels[0] if stem is None else stem
        if isinstance(stem, bool) or not isinstance(stem, int) or stem < 1:
            raise ValueError(f"stem={stem!r} must be at least 1")
        if shortcut == "A" and stem > channels[0]:
            raise ValueError(f"stem={stem!r} must be at most {channels[0]} where shortcut='A'")

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            blocks = [BasicBlock(inputs, outputs, stride, shortcut, next(drop_paths))]
            blocks += [BasicBlock(outputs, outputs, 1, shortcut, next(drop_paths)) for _ in range((depth - 2) // 6 - 1)]
            return nn.Sequential(*blocks)

        self.conv1 = nn.Conv2d(in_chans, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = stage(stem, channels[0], 1)
        self.layer2 = stage(channels[0], channels[1], 2)
        self.layer3 = stage(channels[1], channels[2], 2)
        self.num_features = self.head_hidden_size = channels[2]
        self.feature_info = [
            {"num_chs": stem, "reduction": 1, "module": "act1"},
            {"num_chs": channels[0], "reduction": 1, "module": "layer1"},
            {"num_chs": channels[1], "reduction": 2, "module": "layer2"},
            {"num_chs": channels[2], "reduction": 4, "module": "layer3"},
        ]
        self.build_head(num_classes, global_pool)
        init_he(self)

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        return [lambda x: self.act1(self.bn1(self.conv1(x))), self.layer1, self.layer2, self.layer3]


_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
default_cfgs = generate_default_cfgs({f"resnet{depth}_cifar": default_cfg() for depth in _DEPTHS})


def _create(depth: int, pretrained: bool, /, **kwargs: Any) -> CifarResNet:
    model: CifarResNet = create(
        partial(CifarResNet, depth),
        f"resnet{depth}_cifar",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )
    return model


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-8; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(8, pretrained, **kwargs)


@register_model
def resnet14_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-14; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(14, pretrained, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(20, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(32, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-44; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(44, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-56; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(56, pretrained, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-110; ``kwargs`` are :class:`CifarResNet`'s."""
    return _create(110, pretrained, **kwargs)
