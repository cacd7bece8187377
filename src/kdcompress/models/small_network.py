"""What our own networks share: timm's interface, default configuration, and foreign parameter names."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, checkpoint
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


def create(
    network: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    /,
    *,
    device: Any = None,
    dtype: Any = None,
    **kwargs: Any,
) -> Any:
    """A network as timm's entry points make it.

    Args:
        device, dtype: Where the weights go, and as what. They are drawn on the CPU in float32: a seed gives the same
            network everywhere.
        kwargs: Those of timm's ``build_model_with_cfg``, and of the network.
    """
    model: nn.Module = build_model_with_cfg(network, variant, pretrained, **kwargs)
    return model if device is None and dtype is None else model.to(device=device, dtype=dtype)


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


def drop_path_rates(rate: float, blocks: int) -> list[float]:
    """Of each block, growing evenly from 0 to ``rate``, as in timm. Raises ``ValueError`` unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate!r} must be at least 0 and below 1")
    return [rate * number / max(1, blocks - 1) for number in range(blocks)]


def init_he(network: nn.Module) -> None:
    """He et al. 2015, equation 14 for convolutions (fan out); a classifier keeps PyTorch's, as in timm."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def subsampled(x: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th row and column of [B, C, H, W]: with this before it, a 1x1 convolution needs no stride.

    oneDNN's gradient of a strided one writes past its buffer where channels are few (its issue 6035): with several
    threads the process crashes, or the heap is damaged. The gradient of a pooling keeps the memory format of ``x``;
    that of a slice is never channels-last, and makes the backward pass of all layers before it slow.
    """
    return x if stride == 1 else F.avg_pool2d(x, 1, stride)


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
            raise ValueError(f"{name}={value!r} is not an argument of {type(self).__name__}")
        if in_chans < 1:
            raise ValueError(f"in_chans={in_chans!r} must be at least 1")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate={drop_rate!r} must be at least 0 and below 1")
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

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

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last linear layer, an ``nn.Identity`` where ``num_classes`` is 0; or what it is called."""
        return "fc" if name_only else self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each stage again in the backward pass rather than keep its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which weights belong together, for layer-wise learning rates: patterns by timm's conventions.

        Args:
            coarse: By stage instead of by block.
        """
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

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
        maps = []
        for index, stage in enumerate(stages[: last + 1] if stop_early else stages):
            x = stage(x)
            at_end = index == len(stages) - 1
            final = self.final_norm(x) if at_end else x
            if index in wanted:
                maps.append(final if norm else x)
        return maps if intermediates_only else (final, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the last feature map ``[B, num_features, h, w]``."""
        for stage in self.stages():
            x = checkpoint(stage, x) if self.grad_checkpointing and torch.is_grad_enabled() else stage(x)
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
