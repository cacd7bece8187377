"""Names that other code gives the same layers: known origins of checkpoints, and how their names become timm's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from kdcompress.models.checkpoints.order import in_order

Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from.

    Attributes:
        name: As messages call it.
        signs: Patterns; each must begin the name of a tensor.
        renames: Patterns and replacements, applied one after the other, what they leave empty is dropped;
            none where the layers are in timm's order.
        only: Pattern of the architectures that compute what the weights were trained with; others are refused.
        arguments: Constructor arguments that make timm's network compute the same, by pattern of its architecture.
    """

    name: str
    signs: tuple[str, ...]
    renames: Renames = ()
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    only: str = ""

    def matches(self, names: Mapping[str, Any]) -> bool:
        """Whether the names of weights in a checkpoint are of this origin."""
        return all(any(re.match(sign, name) for name in names) for sign in self.signs)

    def arguments_for(self, architecture: str) -> dict[str, Any]:
        """Constructor arguments with which timm's architecture computes what the checkpoint was trained with."""
        return {
            name: value
            for pattern, arguments in self.arguments.items()
            if re.match(pattern, architecture)
            for name, value in arguments.items()
        }

    def translate(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor] | None:
        """The tensors under the model's names; None where they do not fit."""
        if not self.renames:
            return in_order(state, model)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name:
                renamed[name] = value
        return reshaped(renamed, model)


def reshaped(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors that differ from the model's by axes of length 1 alone, in the model's shape."""
    own = model.state_dict()
    return {name: _as(value, own[name]) if name in own else value for name, value in state.items()}


def _as(value: Tensor, own: Tensor) -> Tensor:
    differ = value.shape != own.shape and [n for n in value.shape if n > 1] == [n for n in own.shape if n > 1]
    return value.reshape(own.shape) if differ else value


def _stages(name: str) -> Renames:
    """torchvision's numbered blocks and layers between stages, as blocks and downsampling of timm's ``name``."""
    return tuple(
        rename
        for stage, (blocks, between) in enumerate(((1, None), (3, 2), (5, 4), (7, 6)))
        for rename in (
            (rf"^features\.{blocks}\.(\d+)\.", rf"{name}.{stage}.blocks.\1."),
            *(((rf"^features\.{between}\.", f"{name}.{stage}.downsample."),) if between else ()),
        )
    )


# torchvision's normalisation of these adds 1e-3 to the variance, timm's 1e-5
_TORCHVISION_EPS = {r"mobilenetv3|efficientnetv2|efficientnet_b[567]": {"bn_eps": 1e-3}}
ORIGINS = (
    Origin(
        "torchvision's ViT",
        (r"class_token$", r"encoder\.layers\.encoder_layer_0\."),
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
            (r"^heads\.head\.", "head."),
        ),
    ),
    Origin(
        "torchvision's ConvNeXt",
        (r"features\.0\.0\.weight", r"features\.1\.0\.layer_scale", r"classifier\.2\."),
        (
            (r"^features\.0\.", "stem."),
            *_stages("stages"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
    ),
    Origin(
        "torchvision's Swin",
        (r"features\.0\.0\.weight", r"features\.1\.0\.attn\.relative_position_bias_table"),
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            *_stages("layers"),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
            (r"^head\.", "head.fc."),
            (r".*\.relative_position_index$", ""),  # timm computes it
        ),
    ),
    Origin(
        "torchvision's RegNet",
        (r"stem\.0\.", r"trunk_output\.block1\.block1-0\."),
        (
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.", "stem.bn."),
            (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
            (r"\.proj\.0\.", ".downsample.conv."),
            (r"\.proj\.1\.", ".downsample.bn."),
            (r"\.f\.([abc])\.0\.", lambda match: f".conv{'abc'.index(match[1]) + 1}.conv."),
            (r"\.f\.([abc])\.1\.", lambda match: f".conv{'abc'.index(match[1]) + 1}.bn."),
            (r"\.f\.se\.", ".se."),
            (r"^fc\.", "head.fc."),
        ),
    ),
    Origin("torchvision", (r"features\.0\.", r"classifier\."), (), _TORCHVISION_EPS),
    Origin("torchvision's MNASNet", (r"layers\.0\.", r"layers\.8\.", r"classifier\.1\.")),
    # with TensorFlow's padding and epsilon
    Origin("EfficientNet-PyTorch", (r"_conv_stem\.", r"_blocks\.0\._depthwise_conv\."), only="tf_"),
    Origin(
        "a CIFAR ResNet with conv2_x",
        (r"conv1\.0\.", r"conv2_x\.0\."),
        (
            (r"^conv1\.0\.", "conv1."),
            (r"^conv1\.1\.", "bn1."),
            (r"^conv([2345])_x\.", lambda match: f"layer{int(match[1]) - 1}."),
            (r"\.residual_function\.0\.", ".conv1."),
            (r"\.residual_function\.1\.", ".bn1."),
            (r"\.residual_function\.3\.", ".conv2."),
            (r"\.residual_function\.4\.", ".bn2."),
            (r"\.residual_function\.6\.", ".conv3."),
            (r"\.residual_function\.7\.", ".bn3."),
            (r"\.shortcut\.", ".downsample."),
        ),
    ),
    Origin(
        "the public PyTorch Wide ResNets",
        (r"block1\.layer\.0\.",),
        ((r"^block([123])\.layer\.", r"layer\1."), (r"\.convShortcut\.", ".downsample.0.")),
    ),
    Origin(
        "CIFAR code with shortcut and linear",
        (r"(conv1|layer1)\.", r"linear\.weight|layer\d\.\d+\.shortcut\."),
        ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    ),
)


def origin_of(names: Mapping[str, Any]) -> Origin | None:
    """The first known origin whose signs are among the names."""
    return next((origin for origin in ORIGINS if origin.matches(names)), None)
