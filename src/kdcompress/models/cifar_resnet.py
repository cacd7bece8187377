"""CIFAR ResNets (He et al., "Deep Residual Learning", 2016, section 4.2), and our networks' common base."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

# Foreign spelling -> timm's. `block` and `convShortcut` are those of the public PyTorch Wide ResNets.
_RENAMES = (
    (re.compile(r"^(module\.)+"), ""),
    (re.compile(r"^linear\."), "fc."),
    (re.compile(r"^block([123])\.layer\."), r"layer\1."),
    (re.compile(r"\.shortcut\.([01])\."), r".downsample.\1."),
    (re.compile(r"\.convShortcut\."), ".downsample.0."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Renames the weights of a public CIFAR checkpoint to timm's style; names that ``model`` has stay.

    Args:
        state_dict: Weights by name, or a mapping that holds them as ``state_dict``, ``model`` or ``net``.
        model: The network that will load them.
    """
    for wrapper in ("state_dict", "model", "net"):
        if isinstance(inner := state_dict.get(wrapper), Mapping):
            state_dict = inner
            break
    own = model.state_dict().keys()
    renamed = {}
    for name, value in state_dict.items():
        ours = name
        if name not in own:
            for pattern, replacement in _RENAMES:
                ours = pattern.sub(replacement, ours)
        renamed[ours] = value
    return renamed


def default_cfg(**changes: Any) -> dict[str, Any]:
    """timm's description of a CIFAR network's input and head: no weights, 32x32, ImageNet mean and std."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        **changes,
    }


def scaled_channels(channels: Sequence[int], width: float) -> list[int]:
    """``channels * width``, rounded half up and at least 1. Raises ``ValueError`` unless 0 < width < inf."""
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise ValueError(f"width={width!r} must be a number above 0")
    return [max(1, math.floor(count * width + 0.5)) for count in channels]


def init_he(network: nn.Module) -> None:
    """He et al. 2015, equation 14 for convolutions (fan out); a classifier keeps PyTorch's, as in timm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SmallNetwork(nn.Module):
    """Base of our networks: timm's interface around a list of stages.

    A subclass builds its layers, sets ``num_features`` (and ``head_hidden_size`` where that differs) and
    ``feature_info``, then calls :meth:`build_head`: timm's feature extractors run the children in order.

    Args:
        in_chans: Image channels.
        drop_rate: Dropout rate for training, 0 <= rate < 1.
        unknown: What no subclass knows; raises ``ValueError``, like any other wrong value.
    """

    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def __init__(self, in_chans: int, drop_rate: float, unknown: Mapping[str, Any]) -> None:
        super().__init__()
        for name, value in unknown.items():
            raise ValueError(f"{name}={value!r} is no argument of {type(self).__name__}")
        if in_chans < 1:
            raise ValueError(f"in_chans={in_chans!r} must be at least 1")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate={drop_rate!r} must be at least 0 and below 1")
        self.in_chans = in_chans
        self.drop_rate = drop_rate

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        """The steps from image to last feature map, one for each entry of ``feature_info``."""
        raise NotImplementedError

    def final_norm(self, x: Tensor) -> Tensor:
        """What follows the last stage before the head: nothing, unless blocks are pre-activated."""
        return x

    def build_head(self, num_classes: int, global_pool: str) -> None:
        """Makes ``global_pool`` and ``fc``. ``num_classes`` 0: no classifier; ``global_pool`` '': no pooling.

        Raises:
            ValueError: Another pooling, fewer than 0 classes, or classes without pooling.
        """
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool={global_pool!r} must be 'avg' or ''")
        if num_classes < 0 or (num_classes and not global_pool):
            at_fault = "at least 0" if global_pool else "0 where global_pool=''"
            raise ValueError(f"num_classes={num_classes!r} must be {at_fault}")
        self.num_classes = num_classes
        self.pool_type = global_pool
        self.global_pool, self.fc = create_classifier(self.head_hidden_size, num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, an ``nn.Identity`` where ``num_classes`` is 0."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained classifier; ``global_pool`` None keeps the pooling. Raises as ``build_head``."""
        weight = next(self.parameters())
        self.build_head(num_classes, self.pool_type if global_pool is None else global_pool)
        self.fc.to(weight)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps of chosen stages, by timm's conventions.

        Args:
            x: Images ``[B, C, H, W]``.
            indices: Stages to return: the last n, all where None, or these.
            norm: Apply the final norm, where there is one, to the last stage's map.
            stop_early: Skip the stages after the last one wanted; the final map is then that stage's.
            output_fmt: Only ``NCHW``; another raises ``ValueError``.
            intermediates_only: Return the list alone, not ``(final map, list)``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW'")
        stages = self.stages()
        wanted, last = feature_take_indices(len(stages), indices)
        found = []
        for index, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            at_end = index == len(stages) - 1
            final = self.final_norm(x) if at_end else x
            if index in wanted:
                found.append(final if norm else x)
        return found if intermediates_only else (final, found)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the last feature map ``[B, num_features, h, w]``."""
        for stage in self.stages():
            x = stage(x)
        return self.final_norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map to logits ``[B, num_classes]``, or to what the classifier reads."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels, half of them before and half after.

    He et al. do not say where the zeros go; this is where the common PyTorch checkpoints have them. Of an
    odd number the larger half comes after (our choice).
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C + new_channels, ceil(H / 2), ceil(W / 2)]``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, activation after the sum (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride == 2 and shortcut == "A":
            self.downsample = PadShortcut(outputs - inputs)
        elif stride == 2:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, outputs, ceil(H / stride), ceil(W / stride)]``."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(residual + (x if self.downsample is None else self.downsample(x)))


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
        **unknown: Any,
    ) -> None:
        super().__init__(in_chans, drop_rate, unknown)
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth!r} must be 6n + 2, from 8")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut={shortcut!r} must be 'A' or 'B'")
        channels = scaled_channels((16, 32, 64), width)

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            blocks = [BasicBlock(inputs, outputs, stride, shortcut)]
            blocks += [BasicBlock(outputs, outputs, 1, shortcut) for _ in range((depth - 2) // 6 - 1)]
            return nn.Sequential(*blocks)

        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = stage(channels[0], channels[0], 1)
        self.layer2 = stage(channels[0], channels[1], 2)
        self.layer3 = stage(channels[1], channels[2], 2)
        self.num_features = self.head_hidden_size = channels[2]
        self.feature_info = [
            {"num_chs": channels[0], "reduction": 1, "module": "act1"},
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
    return build_model_with_cfg(
        partial(CifarResNet, depth),
        f"resnet{depth}_cifar",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3)},
        **kwargs,
    )


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
