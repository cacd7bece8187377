"""Gates that keep a promise: on new images they lose at most so much, with a chosen probability.

Learn then Test (arXiv 2110.01052) with fixed-sequence testing: on one half of the calibration images a path of gates is
laid from the dearest to the cheapest: first ever more of the surest images stop, then it follows the best trade-offs.
On the other half each is tested in that order against "it loses more than allowed", until one fails. The probability
that a gate that does lose more is chosen is at most 1 - confidence level, whatever the images' distribution is, as long
as calibration and new images are drawn from the same one, and the calibration images have not chosen the cascade.

A gate loses the images on which it breaks a right answer of the whole cascade, and wins those on which it mends a wrong
one. How often the two disagree is unknown and does not matter to the user; the test is the exact one at the worst rate
that a confidence bound leaves (Berger and Boos 1994, doi 10.1080/01621459.1994.10476836). That this test is used, and
that the images are halved, is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.gate_search import best_measure, descent, towards
from kdcompress.gating import Stages, stops_at

BOUND = 0.1  # part of the allowed error that is spent on the bound of the disagreement
RATES = 33  # of disagreement, between the least possible and the bound, at which the test is looked at
TAIL = 1e-12
STEPS = 20  # to the first of the best trade-offs, which may stop many images already


@dataclass(frozen=True)
class Promise:
    """A gate, and what is promised of it.

    Attributes:
        measure, thresholds: The gate; without any threshold where no gate that skips something passed.
        max_drop: Percentage points of top-1 that it loses at most against running every member.
        confidence_level: With this probability over the draw of the calibration images.
        images: On which gates were tested; as many others laid the path.
        gates: Tested, the failing one included.
        broken, mended: Of ``images``, right with every member and wrong with the gate, and the other way round.
        p_value: Of the gate; None where none passed and every member runs.
        enough_for_next: Calibration images with which the cheaper gate that failed would pass, if it erred as often on
            them; None where it would not, or none failed.
    """

    measure: str
    thresholds: tuple[float | None, ...]
    max_drop: float
    confidence_level: float
    images: int
    gates: int
    broken: int
    mended: int
    p_value: float | None
    enough_for_next: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the gate itself, as plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key not in ("measure", "thresholds")}


def promise(
    logits: Tensor,
    labels: Tensor,
    macs: Sequence[int],
    measures: Sequence[str],
    *,
    max_drop: float,
    confidence_level: float,
    seed: int = 0,
) -> Promise:
    """The cheapest gate that can be promised to lose at most ``max_drop``.

    Args:
        logits: ``[M, N, K]``, those after each member.
        labels: ``[N]`` class indices.
        macs: ``[M]``, of each member by itself.
        measures: The best of them on the first half is taken.
        max_drop: Percentage points of top-1, in (0, 100).
        confidence_level: In (0, 1).
        seed: Of the halving.

    Raises:
        UserError: There are so few images that not even a gate that never errs could be promised.
    """
    error, samples = 1 - confidence_level, len(labels)
    needed = 2 * least_images(max_drop, confidence_level)
    if samples < needed:
        raise UserError(
            f"{samples} calibration images can promise nothing: a drop of {max_drop:g} points at level "
            f"{confidence_level:g} needs {needed}, even of a gate that never errs.",
            f"Train the cascade with as many held out (--holdout), "
            f"{_larger_drop(samples, confidence_level)}or leave out --confidence-level.",
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    first, second = order[: samples // 2], order[samples // 2 :]

    def half(chosen: Tensor, measure: str) -> Stages:
        return Stages.from_logits(logits[:, chosen], labels[chosen], macs, measure)

    measure = best_measure({name: half(first, name) for name in measures}, max_drop=max_drop)
    test = half(second, measure)
    found = Promise(measure, (None,) * (len(macs) - 1), max_drop, confidence_level, len(second), 0, 0, 0, None)
    laid = half(first, measure)
    best = descent(laid, measure, min(100.0, 2 * max_drop))
    path = [*towards(laid, measure, best[0].thresholds, STEPS), *best]
    skipping = [gate for gate in path if any(limit is not None for limit in gate.thresholds)]
    for gates, gate in enumerate(skipping, start=1):
        whole = test.correct[-1]
        gated = test.correct.gather(0, stops_at(test, measure, gate.thresholds)[None])[0]
        broken, mended = int((whole & ~gated).sum()), int((~whole & gated).sum())
        p_value = drop_p_value(broken, mended, len(second), max_drop, error)
        if p_value > error:
            enough = _enough(broken, mended, len(second), max_drop, error)
            return replace(found, gates=gates, enough_for_next=enough and 2 * enough)
        found = replace(found, thresholds=gate.thresholds, gates=gates, broken=broken, mended=mended, p_value=p_value)
    return found


def drop_p_value(broken: int, mended: int, samples: int, max_drop: float, error: float = 0.05) -> float:
    """How probable so small a loss would be, if the true one were more than allowed: a p-value, exact for any N.

    Broken and mended answers are the cells of a trinomial. Their difference has mean ``N max_drop / 100`` at the edge
    of the hypothesis, and a spread that grows with their sum, whose rate is unknown. A Clopper-Pearson bound that fails
    with probability ``BOUND * error`` limits it; the p-value is the greatest one below, plus that probability.

    Args:
        broken, mended: Of ``samples``, right with every member and wrong with the gate, and the other way round.
        max_drop: Percentage points.
        error: The level at which the p-value will be looked at; it must not be chosen by the counts.
    """
    from scipy import stats  # takes seconds, which no other command should wait for

    allowed, spent = max_drop / 100, BOUND * error
    differ = broken + mended
    bound = float(stats.beta.ppf(1 - spent, differ + 1, samples - differ)) if differ < samples else 1.0
    if bound <= allowed:  # a gate that differs so rarely cannot lose so much
        return spent
    rates = np.geomspace(allowed, bound, RATES)
    worst = _probability(broken - mended, samples, rates, allowed).max()
    return min(1.0, float(worst) + spent + 2 * TAIL)


def _probability(loss: int, samples: int, rates: np.ndarray, drop: float) -> np.ndarray:
    """That broken less mended answers are at most ``loss``, if answers differ at ``rates`` [R] and lose ``drop``."""
    from scipy import stats

    low = int(stats.binom.ppf(TAIL, samples, rates.min()))
    high = int(stats.binom.ppf(1 - TAIL, samples, rates.max()))
    differ = np.arange(low, high + 1)
    rates = rates[:, None]
    share = np.minimum(1.0, 0.5 + drop / (2 * rates))  # of the answers that differ, those that are broken
    at_most = stats.binom.cdf((differ + loss) // 2, differ, share)
    return (stats.binom.pmf(differ, samples, rates) * at_most).sum(1)


def _enough(broken: int, mended: int, samples: int, max_drop: float, error: float) -> int | None:
    """With how many images a gate would pass that errs at the same rates; None if not with a thousand times as many."""

    def passes(count: int) -> bool:
        scale = count / samples
        return drop_p_value(round(broken * scale), round(mended * scale), count, max_drop, error) <= error

    high = next((samples * 2**power for power in range(1, 11) if passes(samples * 2**power)), None)
    if high is None:
        return None
    low = high // 2
    while high - low > samples // 16 + 1:  # about; the rates are those of a sample
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _larger_drop(samples: int, confidence_level: float) -> str:
    """What these images could promise, in words."""
    drops = [
        drop for drop in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20) if 2 * least_images(drop, confidence_level) <= samples
    ]
    return f"allow --max-drop {drops[0]:g}, " if drops else ""


def least_images(max_drop: float, confidence_level: float) -> int:
    """How many images test a gate that agrees with the whole cascade on all of them, so that it can be promised."""
    error = 1 - confidence_level
    low, high = 0, math.ceil(math.log(BOUND * error) / math.log1p(-max_drop / 100)) + 1  # the bound alone suffices
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop_p_value(0, 0, middle, max_drop, error) <= error else (middle, high)
    return high
