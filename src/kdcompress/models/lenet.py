"""LeNet-5 (LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, section II.B)."""

from collections.abc import Callable
from typing import Any

from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.models.small_network import (
    SmallNetwork,
    checkpoint_filter_fn,
    create,
    default_cfg,
    init_he,
    scaled_channels,
)


class PadTo(nn.Module):
    """Centres smaller images in zeros; the paper too puts its 20x20 digits in a field of 32x32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, max(H, size), max(W, size)]``."""
        down, across = (max(0, self.size - length) for length in x.shape[-2:])
        if not down and not across:
            return x
        return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class LeNet5(SmallNetwork):
    """LeNet-5 as it is usual now: ReLU, max pooling, every map of C3 sees all of S2, a linear output layer.

    C5 and F6 are convolutions (5x5 and 1x1), which at 32x32 are the fully connected layers. A larger image
    gives C5 a map, which is averaged (our choice); a smaller one is padded and so costs as much as 32x32.

    Args:
        width: Factor on the 6, 16, 120 and 84 units of the hidden layers.
        num_classes: 0 leaves the classifier out.
        in_chans: Image channels.
        global_pool: 'avg', or '' with ``num_classes`` 0.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Only 0, for it has no residual blocks.

    Raises:
        ValueError: Any argument out of range, or one not listed.
    """

    def __init__(
        self,
        *,
        width: float = 1.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **unknown: Any,
    ) -> None:
        super().__init__(in_chans, drop_rate, unknown)
        if drop_path_rate:
            raise ValueError(f"drop_path_rate={drop_path_rate!r} must be 0: LeNet has no residual blocks")
        c1, c3, c5, f6 = scaled_channels((6, 16, 120, 84), width)
        self.pad = PadTo(32)
        self.conv1 = nn.Conv2d(in_chans, c1, 5)
        self.act1 = nn.ReLU(inplace=True)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(c1, c3, 5)
        self.act2 = nn.ReLU(inplace=True)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(c3, c5, 5)
        self.act3 = nn.ReLU(inplace=True)
        self.num_features = c5
        self.head_hidden_size = f6
        self.feature_info = [
            {"num_chs": c1, "reduction": 1, "module": "act1"},
            {"num_chs": c3, "reduction": 2, "module": "act2"},
            {"num_chs": c5, "reduction": 4, "module": "act3"},
        ]
        self.conv_head = nn.Conv2d(c5, f6, 1)
        self.act4 = nn.ReLU(inplace=True)
        self.build_head(num_classes, global_pool)
        init_he(self)

    def build_head(self, num_classes: int, global_pool: str) -> None:
        super().build_head(num_classes, global_pool)
        # F6 stands between pooling and classifier, so the pooling must not flatten yet.
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=False)
        self.flatten = nn.Flatten(1) if global_pool else nn.Identity()

    def stages(self) -> list[Callable[[Tensor], Tensor]]:
        return [
            lambda x: self.act1(self.conv1(self.pad(x))),
            lambda x: self.act2(self.conv2(self.pool1(x))),
            lambda x: self.act3(self.conv3(self.pool2(x))),
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        layers = ("conv2", "conv3", "conv_head")
        return {"stem": r"^conv1", "blocks": [(rf"^{name}", (number,)) for number, name in enumerate(layers)]}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map to logits ``[B, num_classes]``, or to F6's output ``[B, head_hidden_size]``."""
        x = self.flatten(self.act4(self.conv_head(self.global_pool(x))))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)


default_cfgs = generate_default_cfgs({"lenet5": default_cfg()})


@register_model
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """LeNet-5; ``kwargs`` are :class:`LeNet5`'s."""
    model: LeNet5 = create(
        LeNet5,
        "lenet5",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2)},
        **kwargs,
    )
    return model
