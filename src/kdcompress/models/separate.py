"""Model separation: one given model becomes a student and an assistant that together cost no more than the model.

Given by Residual KD with an assistant (arXiv 2002.09168); that the two differ from the model in width alone, and that
the widths are found by measuring, is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from kdcompress.errors import UserError, usage_error
from kdcompress.flops import profile
from kdcompress.models.build import ModelSpec, config_of
from kdcompress.models.narrow import narrow
from kdcompress.models.student_assistant import embedding_size

STEPS = 1000  # widths are whole thousandths
COARSE = 20
PROBE = 900
AT_LEAST = 0.97


@dataclass(frozen=True)
class Separation:
    """The widths of a student and its assistant, and their MACs.

    Attributes:
        widths: Of S and A, as factors on the given model's channels.
        student_macs, assistant_macs: MACs of the two without a classifier.
        integration_macs: Of both projections, and of the classifier on either.
        undivided_macs: Of the given model with its classifier.
    """

    widths: tuple[float, float]
    student_macs: int
    assistant_macs: int
    integration_macs: int
    undivided_macs: int

    @property
    def macs(self) -> int:
        """MACs per image of both together."""
        return self.student_macs + self.assistant_macs + self.integration_macs


def separate(spec: ModelSpec, share: float, *, features: int, num_classes: int, **shape: Any) -> Separation:
    """The widest assistant within ``share`` of the model's MACs, and the widest student that then fits.

    Where channels are so few that this leaves more than 3 % over, the pair is taken that does not and whose assistant
    comes nearest to the share.

    Args:
        spec: The given model.
        share: Of its MACs, for the assistant; in (0, 1).
        features: F, size of the summed feature.
        shape: ``in_chans`` and ``size`` (H, W) of the images.

    Raises:
        UserError: The share is outside (0, 1) or leaves one of the two without channels, or no two widths use at least
            97 % of the MACs.
    """
    if not 0 < share < 1:
        raise usage_error(f"--assistant-share {share:g} is outside (0, 1).", "Give the assistant's part, e.g. 0.1.")
    given = measured(spec, STEPS, num_classes=num_classes, **shape)[0]
    measured(spec, PROBE, num_classes=0, **shape)  # fails early where a network cannot be narrowed

    @cache
    def cost(width: int) -> tuple[float, float]:
        """MACs of a narrow backbone, and those with its projection and its pass through the classifier."""
        try:
            macs, size = measured(spec, width, num_classes=0, **shape)
        except UserError:  # too narrow to be built
            return math.inf, math.inf
        return macs, macs + features * (size + num_classes)

    def widest(budget: float) -> int:
        return _largest(lambda width: cost(width)[1] <= budget)

    def partner(assistant: int) -> int:
        """The widest student beside this assistant; 0 if no pair uses at least 97 % of the MACs."""
        student = widest(given - cost(assistant)[1]) if assistant else 0
        return student if student and cost(student)[1] + cost(assistant)[1] >= AT_LEAST * given else 0

    assistant = widest(share * given)
    student = partner(assistant)
    if assistant and not student:
        others = sorted(range(COARSE, STEPS, COARSE), key=lambda width: abs(cost(width)[1] - share * given))
        assistant, student = next(((other, wide) for other in others if (wide := partner(other))), (assistant, 0))
    if not student:
        narrowest = f"the narrowest one, with what brings it to {features} features, costs more"
        why = "its channels are too few to use 97 % of its cost" if assistant else narrowest
        remedy = "Choose another --assistant-share, nearer to 0.5, or a larger --student."
        raise usage_error(f"{spec} cannot be separated at --assistant-share {share:g}: {why}.", remedy)
    student_macs, assistant_macs = int(cost(student)[0]), int(cost(assistant)[0])
    integration = int(cost(student)[1] + cost(assistant)[1]) - student_macs - assistant_macs
    return Separation((student / STEPS, assistant / STEPS), student_macs, assistant_macs, integration, given)


def measured(spec: ModelSpec, width: int, **shape: Any) -> tuple[int, int]:
    """MACs and output size of a network ``width`` thousandths as wide."""
    with torch.random.fork_rng(devices=[]):
        network = narrow(spec, width / STEPS, **shape)
    if not all(parameter.numel() for parameter in network.parameters()):
        raise UserError(f"{spec} has no channels left at {width / STEPS:g} of its width.", "Take a wider one.")
    return profile(network, config_of(network)["input_size"]).macs, embedding_size(network)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest width in thousandths, below the whole, that fits; 0 if none does. Cost grows with the width."""
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
