"""Feature maps of a teacher and of the network that mimics it: matching of feature stages, connectors, distances."""

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

ATTENTION_WEIGHT = 1000.0  # as in the code of the authors of Attention Transfer
PROBE = 64  # pixels: least side of the blank image that is used to find the feature stages


@dataclass(frozen=True)
class Transfer:
    """How a network mimics a teacher's feature maps.

    Attributes:
        distance: (the network's map, its goal, the teacher's map), all [B, C, h, w], to a scalar.
        connected: Whether connectors map the network's maps to the teacher's channels first.
    """

    distance: Callable[[Tensor, Tensor, Tensor], Tensor]
    connected: bool


@dataclass(frozen=True)
class FeatureStage:
    """A feature stage of a network: the last feature map of one resolution.

    Attributes:
        index: Of the map among those of timm's ``forward_intermediates``.
        channels: C.
        reduction: Side of the image divided by side of the map.
    """

    index: int
    channels: int
    reduction: int


def observe(network: nn.Module, x: Tensor, stages: Sequence[FeatureStage]) -> tuple[Tensor, list[Tensor]]:
    """A network's output for images [B, C, H, W], and its maps at ``stages``, in one pass.

    Returns:
        Logits [B, K] (features [B, D] of a network without classifier), and maps [B, C, h, w].
    """
    final, maps = final_and_maps(network, x, stages)
    return network.forward_head(final), maps  # type: ignore[operator]


def final_and_maps(network: nn.Module, x: Tensor, stages: Sequence[FeatureStage]) -> tuple[Tensor, list[Tensor]]:
    """The last feature map of a network, which is the input of its head, and the maps at ``stages`` [B, C, h, w]."""
    if not stages:
        return network.forward_features(x), []  # type: ignore[operator]
    wanted = [stage.index for stage in stages]
    return network.forward_intermediates(x, indices=wanted)  # type: ignore[operator]


def feature_stages(network: nn.Module, name: str) -> list[FeatureStage]:
    """The feature stages of a network, found with a blank image.

    Args:
        name: Of the network, for error messages.

    Raises:
        UserError: Its input size is too small for it, or it gives no feature maps.
    """
    channels, height, width = config_of(network)["input_size"]
    weight = next(network.parameters())
    mode = network.training
    network.eval()

    def maps(times: int) -> list[Tensor]:
        x = torch.zeros(2, channels, times * height, times * width, dtype=weight.dtype, device=weight.device)
        final, intermediates = network.forward_intermediates(x)  # type: ignore[operator]
        same = torch.allclose(network.forward_head(final), network(x), rtol=1e-3, atol=1e-4)  # type: ignore[operator]
        if not same or not all(each.ndim == 4 for each in intermediates):
            raise ValueError("forward_intermediates() does not match its output")
        return intermediates

    try:
        with torch.no_grad():
            try:
                network(torch.zeros(2, channels, height, width, dtype=weight.dtype, device=weight.device))
            except Exception as error:
                problem = f"{name} cannot process images of {height}x{width}: {first_line(error)}"
                raise UserError(problem, "Give a larger --input-size, or another model.") from error
            observed, times = maps(1), -(-PROBE // min(height, width))
            if times > 1:  # maps of small images shrink to one pixel before a deep network ends
                with contextlib.suppress(Exception):  # some networks take their own input size only
                    observed = maps(times)
                    height, width = times * height, times * width
    except UserError:
        raise
    except Exception as error:  # an arbitrary network may fail in any way
        remedy = "Use a convolutional network that has timm's forward_intermediates(), or --method kd."
        raise UserError(f"{name} gives no feature maps: {first_line(error)}", remedy) from error
    finally:
        network.train(mode)
    ends = {each.shape[-2:]: (index, each.shape[1]) for index, each in enumerate(observed)}
    # the nearest power of two: of sides that 32 does not divide, some networks pad and others crop
    halvings = {shape: round(math.log2(width / shape[-1])) for shape in ends}
    return [FeatureStage(index, channels, 2 ** halvings[shape]) for shape, (index, channels) in ends.items()]


def feature_size(network: nn.Module) -> int:
    """D, the size of the input of a network's classifier."""
    weight, mode = next(network.parameters()), network.training
    x = torch.zeros(2, *config_of(network)["input_size"], dtype=weight.dtype, device=weight.device)
    network.eval()
    with torch.no_grad():
        features = network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator]
    network.train(mode)
    return int(features.shape[-1])


def matched(teacher: list[FeatureStage], student: list[FeatureStage]) -> list[tuple[FeatureStage, FeatureStage]]:
    """Which feature stages are matched (our choice): in order where both have as many, else by resolution.

    Returns:
        Pairs of (teacher's stage, student's stage); only the two last ones where fewer than two resolutions match.
    """
    if len(teacher) == len(student):
        return list(zip(teacher, student, strict=True))
    by_reduction = {stage.reduction: stage for stage in teacher}
    pairs = [(by_reduction[stage.reduction], stage) for stage in student if stage.reduction in by_reduction]
    if len(pairs) >= 2 and pairs[-1] == (teacher[-1], student[-1]):
        return pairs
    return [(teacher[-1], student[-1])]


class Connectors(nn.ModuleList):
    """1x1 convolutions from a network's channels to the teacher's, one per pair; only training needs them."""

    def __init__(self, pairs: Sequence[tuple[FeatureStage, FeatureStage]]) -> None:
        super().__init__(nn.Conv2d(student.channels, teacher.channels, 1) for teacher, student in pairs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, C, h, w] each to [B, C_T, h, w]."""
        return [connector(each) for connector, each in zip(self, maps, strict=True)]


def at_common_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, h, w] in float32 at the smaller of their sizes; the larger one is average-pooled."""
    side = min(one.shape[-2], other.shape[-2]), min(one.shape[-1], other.shape[-1])
    first, second = (x if x.shape[-2:] == side else F.adaptive_avg_pool2d(x, side) for x in (one, other))
    return first.float(), second.float()


def fitnets(own: Tensor, goal: Tensor, teacher: Tensor) -> Tensor:
    """L2 between maps [B, C, h, w] (FitNets, Romero et al. 2015, equation 3), divided by the teacher's mean square (our
    choice: so that stages and teachers of any scale weigh the same).
    """
    return (own - goal).square().mean() / teacher.square().mean().clamp_min(1e-6)


def attention(own: Tensor, goal: Tensor, teacher: Tensor) -> Tensor:
    """L2 between normalised attention maps of [B, C, h, w] (Attention Transfer, Zagoruyko and Komodakis 2017, equation
    2): the mean over pixels times 1000, as in their code, so that smaller maps weigh more. They sum over feature
    stages; the tasks average (our choice).
    """

    def of(x: Tensor) -> Tensor:
        return F.normalize(x.square().mean(1).flatten(1), dim=1)

    return ATTENTION_WEIGHT * (of(own) - of(goal)).square().mean()


TRANSFERS = {"fitnets": Transfer(fitnets, connected=True), "at": Transfer(attention, connected=False)}
