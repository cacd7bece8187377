"""Gates with a distribution-free guarantee: a bound on the accuracy lost on new images, at a chosen confidence level.

Learn then Test (arXiv 2110.01052) with fixed-sequence testing. One half of the calibration images yields a sequence of
gates from the most expensive to the cheapest: first a growing share of the surest images stops, then the gates follow
the Pareto front. On the other half the gates are tested in that order against the hypothesis "it loses more than
allowed", until one fails; the last one that passed is chosen. The probability that the chosen gate does lose more is at
most 1 - confidence level, whatever the distribution of the images, as long as calibration and new images are drawn from
the same one, and no weights or architecture were chosen on the calibration images.

A gate breaks an image that the full cascade classifies correctly and the gated one does not, and fixes one in the
opposite case; its loss is the difference. The rate at which the two disagree is a nuisance parameter: the test is the
exact one, at the worst rate within a confidence bound (Berger and Boos 1994, doi 10.1080/01621459.1994.10476836). That
this test is used, and that the images are halved, is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.gate_search import best_measure, descent, towards
from kdcompress.gating import Measure, MemberScores, measure_of, stops_at
from kdcompress.halving import distinct, halves, numbered

BOUND = 0.1  # share of the allowed error that is spent on the bound of the disagreement rate
RATES = 33  # number of disagreement rates, from the least possible to the bound, at which the test is evaluated
TAIL = 1e-12  # probability left out at either end of a binomial distribution
STEPS = 20  # gates before the first one of the Pareto front, which may already stop many images


@dataclass(frozen=True)
class GuaranteedGate:
    """A gate and its guarantee.

    Attributes:
        measure, thresholds: The gate; all thresholds are None where no gate passed, so that every member runs.
        max_drop: Percentage points of top-1 that it loses at most against running every member.
        confidence_level: Of the guarantee, over the draw of the calibration images.
        images: Number of images on which gates were tested; the other half yielded the sequence of gates.
        gates: Number of gates tested, including the one that failed.
        broken, mended: Of ``images``, those correct with every member and wrong with the gate, and the reverse.
        p_value: Of the gate; None where no gate passed.
        enough_for_next: Number of calibration images with which the cheaper gate that failed would pass at the same
            error rates; None where no number would do, or none failed.
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


def guaranteed_gate(
    logits: Tensor,
    labels: Tensor,
    macs: Sequence[int],
    measures: Sequence[str | Measure],
    *,
    max_drop: float,
    confidence_level: float,
    groups: Tensor | None = None,
    seed: int = 0,
) -> GuaranteedGate:
    """The cheapest gate for which a loss of at most ``max_drop`` can be guaranteed.

    Args:
        logits: ``[M, N, K]``, summed logits after each member, on the calibration images.
        labels: ``[N]`` class indices.
        macs: ``[M]``, of each member by itself.
        measures: Certainty measures, of which the one that is best on the first half is used.
        max_drop: Percentage points of top-1, in (0, 100).
        confidence_level: In (0, 1).
        groups: ``[N]`` a number that copies of an image share, which are no independent draws: they are in the same
            half, and count once in the test. None: there are no copies.
        seed: Of the split into halves.

    Raises:
        UserError: There are too few images for a guarantee even for a gate that makes no error.
    """
    error, samples = 1 - confidence_level, numbered(len(labels), groups)[1]
    held_out = 2 if any(measure_of(each).heads is not None for each in measures) else 1  # half were learned from
    needed = 2 * least_images(max_drop, confidence_level)
    if samples < needed:
        kind = "calibration images" if groups is None else "distinct calibration images"
        raise UserError(
            f"{held_out * samples} {kind} are too few for a guarantee: a drop of {max_drop:g} points at "
            f"confidence level {confidence_level:g} needs {held_out * needed}, even if the gate makes no error.",
            f"Train the cascade with that many held out (--holdout), "
            f"{_larger_drop(samples, confidence_level)}or leave out --confidence-level.",
        )
    first, second = halves(len(labels), groups, seed)
    second = distinct(second, groups)

    def half(chosen: Tensor, measure: Measure) -> MemberScores:
        return MemberScores.from_logits(logits[:, chosen], labels[chosen], macs, measure)

    measure = best_measure({each: half(first, each) for each in map(measure_of, measures)}, max_drop=max_drop)
    test = half(second, measure)
    none = (None,) * (len(macs) - 1)
    passed = GuaranteedGate(measure.name, none, max_drop, confidence_level, len(second), 0, 0, 0, None)
    fit = half(first, measure)
    front = descent(fit, measure, min(100.0, 2 * max_drop))
    sequence = [*towards(fit, measure, front[0].thresholds, STEPS), *front]
    skipping = [gate for gate in sequence if any(limit is not None for limit in gate.thresholds)]
    for gates, gate in enumerate(skipping, start=1):
        full = test.correct[-1]
        gated = test.correct.gather(0, stops_at(test, measure, gate.thresholds)[None])[0]
        broken, mended = int((full & ~gated).sum()), int((~full & gated).sum())
        p_value = drop_p_value(broken, mended, len(second), max_drop, error)
        if p_value > error:
            enough = _enough(broken, mended, len(second), max_drop, error)
            return replace(passed, gates=gates, enough_for_next=enough and 2 * held_out * enough)
        passed = replace(passed, thresholds=gate.thresholds, gates=gates, broken=broken, mended=mended, p_value=p_value)
    return passed


def drop_p_value(broken: int, mended: int, samples: int, max_drop: float, error: float = 0.05) -> float:
    """p-value of the hypothesis that the true loss is more than ``max_drop``; valid for any number of samples.

    The counts of broken and fixed predictions are trinomial. At the edge of the hypothesis their difference has mean
    ``N max_drop / 100`` and a spread that grows with the unknown rate of their sum. A Clopper-Pearson bound, which
    fails with probability ``BOUND * error``, limits that rate; the result is the greatest p-value below the bound, plus
    that probability.

    Args:
        broken, mended: Of ``samples``, those correct with every member and wrong with the gate, and the reverse.
        max_drop: Percentage points.
        error: The significance level of the test; it must not depend on the counts.
    """
    from scipy import stats  # takes seconds to import, for which no other command should wait

    allowed, spent = max_drop / 100, BOUND * error
    differ = broken + mended
    bound = float(stats.beta.ppf(1 - spent, differ + 1, samples - differ)) if differ < samples else 1.0
    if bound <= allowed:  # predictions differ too rarely for such a loss
        return spent
    rates = np.geomspace(allowed, bound, RATES)
    worst = _probability(broken - mended, samples, rates, allowed).max()
    return min(1.0, float(worst) + spent + 2 * TAIL)


def _probability(loss: int, samples: int, rates: np.ndarray, drop: float) -> np.ndarray:
    """P(broken - mended <= loss) [R], where predictions differ at ``rates`` [R] and the true loss is ``drop``."""
    from scipy import stats

    low = int(stats.binom.ppf(TAIL, samples, rates.min()))
    high = int(stats.binom.ppf(1 - TAIL, samples, rates.max()))
    differ = np.arange(low, high + 1)
    rates = rates[:, None]
    share = np.minimum(1.0, 0.5 + drop / (2 * rates))  # of broken among predictions that differ
    at_most = stats.binom.cdf((differ + loss) // 2, differ, share)
    return (stats.binom.pmf(differ, samples, rates) * at_most).sum(1)


def _enough(broken: int, mended: int, samples: int, max_drop: float, error: float) -> int | None:
    """Number of images with which the gate would pass at the same rates; None if a thousand times as many do not do."""

    def passes(count: int) -> bool:
        scale = count / samples
        return drop_p_value(round(broken * scale), round(mended * scale), count, max_drop, error) <= error

    high = next((samples * 2**power for power in range(1, 11) if passes(samples * 2**power)), None)
    if high is None:
        return None
    low = high // 2
    while high - low > samples // 16 + 1:  # no more precisely, for the rates are estimates
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _larger_drop(samples: int, confidence_level: float) -> str:
    """Advice on the drop for which this number of images is enough; "" if there is none."""
    drops = [
        drop for drop in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20) if 2 * least_images(drop, confidence_level) <= samples
    ]
    return f"allow --max-drop {drops[0]:g}, " if drops else ""


def least_images(max_drop: float, confidence_level: float) -> int:
    """Number of test images with which a gate passes that agrees with the full cascade on all of them.

    Args:
        max_drop: Percentage points.
        confidence_level: In (0, 1).
    """
    error = 1 - confidence_level
    low, high = (
        0,
        math.ceil(math.log(BOUND * error) / math.log1p(-max_drop / 100)) + 1,
    )  # here the bound is enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop_p_value(0, 0, middle, max_drop, error) <= error else (middle, high)
    return high
