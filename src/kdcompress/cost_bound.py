"""A gate whose cost stays within a budget on new images, at a chosen confidence level (our choice).

What a gate costs is a mean over the calibration images, and new images have another. The bound is that of Student's t
for the mean; thresholds were chosen on the same images, but for accuracy, which hardly moves their cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from kdcompress.gate_search import search
from kdcompress.gating import Measure, MemberScores, Outcome, stops_at, whole_macs
from kdcompress.halving import numbered

ROUNDS = 12


def bound_of_macs(
    scores: MemberScores,
    measure: str | Measure,
    thresholds: Sequence[float | None],
    confidence_level: float,
    groups: Tensor | None = None,
) -> float:
    """Upper confidence bound of the expected MACs per image on new images.

    Args:
        scores, measure: Of the calibration images, as for :func:`~kdcompress.gate_search.search`.
        confidence_level: In (0, 1), over the draw of the calibration images.
        groups: ``[N]`` a number that copies of an image share; they count as one draw (cluster-robust variance).
    """
    from scipy.stats import t as students_t  # takes half a second, which other commands need not wait

    up_to = torch.tensor(list(accumulate(whole_macs(scores.macs))), dtype=torch.float64)
    costs = up_to[stops_at(scores, measure, thresholds)]
    numbers, count = numbered(len(costs), groups)
    if count < 2:
        return float(up_to[-1])
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, numbers, costs - costs.mean())
    spread = math.sqrt(count / (count - 1) * float(sums.square().sum())) / len(costs)
    return float(costs.mean() + students_t.ppf(confidence_level, count - 1) * spread)


def search_within(
    scores: MemberScores,
    measure: str | Measure,
    max_macs: float,
    confidence_level: float,
    groups: Tensor | None = None,
) -> tuple[Outcome, list[Outcome]]:
    """The most accurate gate that costs at most ``max_macs`` on new images, and the trade-off that it lies on.

    Args:
        scores, measure, max_macs: As for :func:`~kdcompress.gate_search.search`.
        confidence_level, groups: As for :func:`bound_of_macs`.

    Raises:
        UserError: As for :func:`~kdcompress.gate_search.search`.
    """
    first = whole_macs(scores.macs)[0]
    limit = max_macs
    for _ in range(ROUNDS):
        chosen, curve = search(scores, measure, max_macs=limit)
        excess = bound_of_macs(scores, measure, chosen.thresholds, confidence_level, groups) - max_macs
        if excess <= 0 or limit <= first:
            return chosen, curve
        limit = max(float(first), min(limit, chosen.expected_macs) - excess)
    return search(scores, measure, max_macs=first)
