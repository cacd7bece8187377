"""Feature maps of a teacher and of the network that mimics it: which go together, and how far they are apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.errors import UserError, first_line
from kdcompress.models.build import config_of

PROBE = 64  # pixels: least side of the blank image that shows where stages end


@dataclass(frozen=True)
class Transfer:
    """How a network mimics a teacher's feature maps.

    Attributes:
        distance: (the network's map, what it should be, the teacher's map), all [B, C, h, w], to a scalar.
        connected: Whether the network's maps are brought to the teacher's channels first.
    """

    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    connected: bool


@dataclass(frozen=True)
class Stage:
    """The last feature map of one resolution.

    Attributes:
        index: Among those of timm's ``forward_intermediates``.
        channels: C.
        reduction: Side of the image over side of the map.
    """

    index: int
    channels: int
    reduction: int


def observe(network: nn.Module, x: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, list[Tensor]]:
    """What a network says about images [B, C, H, W], and its maps at ``stages``, in one pass.

    Returns:
        Logits [B, K], or features [B, D] of a network without classifier, and maps [B, C, h, w].
    """
    final, maps = through(network, x, stages)
    return network.forward_head(final), maps  # type: ignore[operator]


def through(network: nn.Module, x: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, list[Tensor]]:
    """The last feature map of a network, as its head takes it, and those of ``stages``."""
    if not stages:
        return network.forward_features(x), []  # type: ignore[operator]
    wanted = [stage.index for stage in stages]
    return network.forward_intermediates(x, indices=wanted)  # type: ignore[operator]


def stages_of(network: nn.Module, name: str) -> list[Stage]:
    """Where the stages of a network end, found on a blank image.

    Raises:
        UserError: It takes no images of its own size, or shows no feature maps.
    """
    channels, height, width = config_of(network)["input_size"]
    weight = next(network.parameters())
    mode = network.training
    network.eval()

    def maps(times: int) -> list[Tensor]:
        x = torch.zeros(2, channels, times * height, times * width, dtype=weight.dtype, device=weight.device)
        final, found = network.forward_intermediates(x)  # type: ignore[operator]
        same = torch.allclose(network.forward_head(final), network(x), rtol=1e-3, atol=1e-4)  # type: ignore[operator]
        if not same or not all(each.ndim == 4 for each in found):
            raise ValueError("what it shows does not lead to its output")
        return found

    try:
        with torch.no_grad():
            try:
                network(torch.zeros(2, channels, height, width, dtype=weight.dtype, device=weight.device))
            except Exception as error:
                problem = f"{name} takes no images of {height}x{width}: {first_line(error)}"
                raise UserError(problem, "Give a larger --input-size, or another model.") from error
            found, times = maps(1), -(-PROBE // min(height, width))
            if times > 1:  # at the end of a deep network small images are one pixel, whatever the stage
                with contextlib.suppress(Exception):  # it may take its own size only
                    found = maps(times)
                    height, width = times * height, times * width
    except UserError:
        raise
    except Exception as error:  # any network may come here, and fail in its own way
        remedy = "Feature transfer needs timm's forward_intermediates(), as its convolutional networks have it. Else:"
        raise UserError(f"{name} shows no feature maps: {first_line(error)}", f"{remedy} --method kd.") from error
    finally:
        network.train(mode)
    ends = {each.shape[-2:]: (index, each.shape[1]) for index, each in enumerate(found)}
    # the nearest power of two: sides that 32 does not divide are padded by one, cut by another
    halvings = {shape: round(math.log2(width / shape[-1])) for shape in ends}
    return [Stage(index, channels, 2 ** halvings[shape]) for shape, (index, channels) in ends.items()]


def feature_size(network: nn.Module) -> int:
    """D of what a network's classifier reads."""
    weight, mode = next(network.parameters()), network.training
    x = torch.zeros(2, *config_of(network)["input_size"], dtype=weight.dtype, device=weight.device)
    network.eval()
    with torch.no_grad():
        found = network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator]
    network.train(mode)
    return int(found.shape[-1])


def matched(teacher: list[Stage], student: list[Stage]) -> list[tuple[Stage, Stage]]:
    """Which stage mimics which (our choice): one by one where there are as many, else those of the same resolution.

    Returns:
        Pairs of a teacher's and a student's stage; only the two last ones where nothing else goes together.
    """
    if len(teacher) == len(student):
        return list(zip(teacher, student, strict=True))
    by_reduction = {stage.reduction: stage for stage in teacher}
    pairs = [(by_reduction[stage.reduction], stage) for stage in student if stage.reduction in by_reduction]
    if len(pairs) >= 2 and pairs[-1] == (teacher[-1], student[-1]):
        return pairs
    return [(teacher[-1], student[-1])]


class Connectors(nn.ModuleList):
    """1x1 convolutions from a network's channels to the teacher's, one a pair; only training needs them."""

    def __init__(self, pairs: Sequence[tuple[Stage, Stage]]) -> None:
        super().__init__(nn.Conv2d(student.channels, teacher.channels, 1) for teacher, student in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, h, w] each to [B, C_T, h, w]."""
        return [connector(found) for connector, found in zip(self, maps, strict=True)]


def alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps in float32 at the smaller size of the two, to which the larger is averaged: [B, C, h, w] each."""
    side = min(one.shape[-2], other.shape[-2]), min(one.shape[-1], other.shape[-1])
    first, second = (x if x.shape[-2:] == side else F.adaptive_avg_pool2d(x, side) for x in (one, other))
    return first.float(), second.float()


def fitnets(found: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
    """L2 between maps (FitNets, Romero et al. 2015, equation 3), as a share of the teacher's mean square (our choice:
    so that stages and teachers of any scale weigh the same).
    """
    return (found - wanted).square().mean() / teacher.square().mean().clamp_min(1e-6)


def attention(found: Tensor, wanted: Tensor, teacher: Tensor) -> Tensor:
    """L2 between normalised attention maps (Attention Transfer, Zagoruyko and Komodakis 2017, equation 2)."""

    def of(x: Tensor) -> Tensor:
        return F.normalize(x.square().mean(1).flatten(1), dim=1)

    return (of(found) - of(wanted)).square().sum(1).mean()


TRANSFERS = {"fitnets": Transfer(fitnets, connected=True), "at": Transfer(attention, connected=False)}
