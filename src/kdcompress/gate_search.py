"""Joint search for the thresholds of all exits, for accuracy and MACs at once (our choice).

M is members, N samples, G gates evaluated at once.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

from kdcompress.errors import usage_error
from kdcompress.gating import Measure, MemberScores, Outcome, measure_of, outcome, stops_at, whole_macs

AnyMeasure = TypeVar("AnyMeasure", str, Measure)

_CURVE_POINTS = 50
_WORK = 150_000_000  # gates that one search may evaluate: a few seconds on two cores
_CHUNK = 1 << 18  # gates held in memory at once
_CALL = 20_000  # least cost of one call of the sweep over two exits, in gates: small calls are all overhead
_UNREACHED = torch.iinfo(torch.int64).max


class _Front:
    """The cheapest gate so far for each number of correct predictions, and the sweeps that look for cheaper ones.

    A gate is a row of cuts, one per exit: cut ``c`` stops the samples with the ``c`` surest distinct values, 0 none.
    Costs are whole MACs summed over the samples. The worth of a sample at an exit is (its MACs, 1 if it is correct
    there), and that of a gate is the sum over samples; so moving a cut adds the difference in worth of the samples
    that it moves.
    """

    def __init__(self, scores: MemberScores, measure: Measure) -> None:
        self.measure = measure
        self.exits, self.samples = scores.values.shape  # exits before the last member
        self.levels, self.ranks = [], []
        for values in scores.values.float():
            levels, ranks = (-values if measure.higher_is_surer else values).unique(return_inverse=True)
            self.levels.append(levels)
            self.ranks.append(ranks)
        spent = torch.tensor(list(itertools.accumulate(whole_macs(scores.macs))))
        self.worth = torch.stack([spent[:, None].expand(-1, self.samples), scores.correct.long()], 1)  # [M, 2, N]
        self.cost = torch.full((self.samples + 1,), _UNREACHED)
        self.bound = self.cost.clone()  # cheapest gate with at least that many correct predictions
        self.cuts = torch.zeros(self.samples + 1, self.exits, dtype=torch.long)
        no_cuts = torch.zeros(1, self.exits, dtype=torch.long)
        self.offer(self.worth[-1].sum(1, keepdim=True), lambda index: no_cuts)

    def offer(self, worth: Tensor, cuts: Callable[[Tensor], Tensor]) -> None:
        """Keep those of the gates ``[2, G]`` that are better than all so far; ``cuts`` gives their cuts by index."""
        cost, correct = worth
        new = (cost < self.bound.take(correct)).nonzero().squeeze(1)
        if len(new) == 0:
            return
        cost, correct = cost[new], correct[new]
        bound = _at_least(self.cost.scatter_reduce(0, correct, cost, "amin"))
        best = cost == bound[correct]
        new, cost, correct = new[best], cost[best], correct[best]
        correct, order = correct.sort(stable=True)  # of tied gates the first, so that every run gives the same result
        first = torch.ones_like(correct, dtype=torch.bool)
        first[1:] = correct[1:] != correct[:-1]
        order, correct = order[first], correct[first]
        self.cost[correct], self.cuts[correct], self.bound = cost[order], cuts(new[order]), bound

    def points(self) -> Tensor:
        """Numbers of correct predictions of the Pareto-optimal gates, ascending; their cost ascends too."""
        after = torch.cat([self.bound[1:], torch.tensor([_UNREACHED])])
        return (self.cost < after).nonzero().squeeze(1)

    def _stops(self, cuts: Sequence[int]) -> Tensor:
        """The exit ``[N]`` at which each sample stops; no sample stops at exits that ``cuts`` leaves out."""
        stops = torch.full((self.samples,), self.exits)
        for exit in reversed(range(len(cuts))):
            stops[self.ranks[exit] < cuts[exit]] = exit
        return stops

    def _worth(self, stops: Tensor) -> Tensor:
        return self.worth.gather(0, stops.expand(1, 2, -1))[0]

    def sweep(self, cuts: Tensor, exit: int) -> None:
        """Offer every cut at one exit, with those at the other exits (``cuts`` ``[M - 1]``) fixed."""
        fixed = cuts.tolist()
        fixed[exit] = 0
        stops = self._stops(fixed)
        worth, reaches = self._worth(stops), stops > exit
        table = torch.zeros(2, len(self.levels[exit]) + 1, dtype=torch.long)
        table[:, 0] = worth.sum(1)
        table.index_add_(1, self.ranks[exit][reaches] + 1, (self.worth[exit] - worth)[:, reaches])

        def at(index: Tensor) -> Tensor:
            rows = cuts.repeat(len(index), 1)
            rows[:, exit] = index
            return rows

        self.offer(table.cumsum(1), at)

    def grid(self) -> bool:
        """Offer every cut at the last exit for a joint grid over the others; whether that was every gate."""
        *outer, last = (len(levels) + 1 for levels in self.levels)

        def work(side: int) -> int:
            *loop, rows = (min(side, size) for size in outer)
            return math.prod(loop) * max(rows * last, _CALL)

        side = max(2, bisect.bisect_right(range(1, max(outer) + 1), _WORK, key=work))
        *loop, rows = (self._quantiles(exit, side) for exit in range(self.exits - 1))
        for prefix in itertools.product(*(cuts.tolist() for cuts in loop)):
            self._last_two(prefix, rows)
        return side >= max(outer)

    def _quantiles(self, exit: int, side: int) -> Tensor:
        """At most ``side`` cuts that stop evenly spaced shares of the samples, from none to all."""
        size = len(self.levels[exit]) + 1
        if size <= side:
            return torch.arange(size)
        stopped = self.ranks[exit].bincount().cumsum(0)
        shares = torch.linspace(0, self.samples, side, dtype=torch.float64).round().long()
        return torch.cat([torch.tensor([0]), torch.searchsorted(stopped, shares[1:]) + 1]).unique()

    def _last_two(self, prefix: tuple[int, ...], rows: Tensor) -> None:
        """Offer the cuts ``rows`` at the last exit but one, times every cut at the last, after the cuts ``prefix``."""
        stops = self._stops(prefix)
        alive = (stops == self.exits).nonzero().squeeze(1)
        # each sample changes the table at the first row and the first column that stop it; cumulative sums over both
        # axes then give the worth
        row, order = torch.bucketize(self.ranks[-2][alive], rows, right=True).sort(stable=True)
        alive, width = alive[order], len(self.levels[-1]) + 1
        column = self.ranks[-1][alive] + 1
        now, late, never = self.worth[-3:, :, alive]
        above = torch.zeros(2, width, dtype=torch.long)
        above[:, 0] = self._worth(stops).sum(1)
        above.index_add_(1, column, late - never)
        step = max(1, _CHUNK // width)
        for start in range(0, len(rows), step):
            height = min(step, len(rows) - start)
            first, end = torch.searchsorted(row, torch.tensor([start, start + height])).tolist()
            cell = (row[first:end] - start) * width
            table = torch.zeros(2, height * width, dtype=torch.long)
            table.index_add_(1, cell, (now - never)[:, first:end])
            table.index_add_(1, cell + column[first:end], (never - late)[:, first:end])
            table = table.view(2, height, width)
            table[:, 0] += above
            above = table.cumsum_(1)[:, -1].clone()

            def at(index: Tensor, start: int = start) -> Tensor:
                inner = torch.stack([rows[start + index // width], index % width], 1)
                return torch.cat([torch.tensor(prefix, dtype=torch.long).repeat(len(index), 1), inner], 1)

            self.offer(table.cumsum_(2).flatten(1), at)

    def refine(self, choose: Callable[[Tensor, Tensor], int]) -> None:
        """Sweep one exit at a time: around gates all along the front, then around the chosen one."""
        done: set[tuple[int, ...]] = set()

        def around(points: Tensor) -> bool:
            fresh = [cuts for cuts in self.cuts[points] if tuple(cuts.tolist()) not in done]
            for cuts in fresh:
                done.add(tuple(cuts.tolist()))
                for exit in range(self.exits):
                    self.sweep(cuts, exit)
            return bool(fresh)

        budget = max(_CURVE_POINTS, _WORK // (2 * self.exits * max(self.samples, _CALL)))
        while len(done) < budget and around(_thin(self.points(), budget - len(done))):
            pass
        while around((points := self.points())[choose(points, self.cost[points])][None]):
            pass

    def thresholds(self, correct: int) -> tuple[float | None, ...]:
        """The gate with ``correct`` correct predictions, in units of the measure, midway between observed values."""
        cuts = self.cuts[correct].tolist()
        return tuple(self._threshold(levels, cut) for levels, cut in zip(self.levels, cuts, strict=True))

    def _threshold(self, levels: Tensor, cut: int) -> float | None:
        if cut == 0:
            return None
        if cut == len(levels):
            return 0.0 if self.measure.higher_is_surer else 1.0
        surer, other = levels[cut - 1 : cut + 1].double()
        middle = ((surer + other) / 2).float()
        if middle >= other:  # adjacent float32 numbers, with none between them
            middle = levels[cut - 1]
        return -float(middle) if self.measure.higher_is_surer else float(middle)


def _at_least(cost: Tensor) -> Tensor:
    """Least cost for that many correct predictions or more, from the least cost for exactly that many."""
    return cost.flip(0).cummin(0).values.flip(0)


def _thin(points: Tensor, most: int) -> Tensor:
    """At most ``most`` (2 or more) evenly spaced points, including both ends."""
    if len(points) <= most:
        return points
    return points[torch.linspace(0, len(points) - 1, max(2, most), dtype=torch.float64).round().long()]


def _along(points: Tensor, cost: Tensor, chosen: int) -> Tensor:
    """50 points, evenly spaced in correct predictions plus cost, including both ends and ``chosen``; all if fewer.

    Where the last correct predictions cost most, even spacing in correct predictions alone would leave a gap.
    """
    if len(points) <= _CURVE_POINTS:
        return points
    others = points != chosen
    length = torch.stack([points[others], cost[others]]).double()
    length = ((length - length[:, :1]) / (length[:, -1:] - length[:, :1])).sum(0)
    order = torch.arange(_CURVE_POINTS - 1)
    picked = torch.searchsorted(length, torch.linspace(0, 2, len(order), dtype=torch.float64))
    picked = (picked - order).cummax(0).values + order  # where several marks hit the same point, also the next ones
    picked = picked.minimum(len(length) - len(order) + order)
    return torch.cat([points[others][picked], torch.tensor([chosen])]).sort().values


def _most(limit: float, scale: int, samples: int) -> int:
    """The largest count with ``count * scale / samples <= limit`` in floats: 3 of 1000 must count as 0.3 %."""
    count = math.floor(Fraction(limit) * samples / scale)
    while (count + 1) * scale / samples <= limit:
        count += 1
    return count


def search(
    scores: MemberScores, measure: str | Measure, *, max_drop: float | None = None, max_macs: float | None = None
) -> tuple[Outcome, list[Outcome]]:
    """Choose the thresholds of all exits together (our choice; the paper's rule is not public).

    Exact for two members, and wherever there are at most 150 million gates (three members: 12 000 samples). Beyond
    that, a joint quantile grid over all exits but the last one, which is always swept exactly; then one exit at a time
    is swept exactly, until no sweep improves the gate.

    Args:
        scores: Of the calibration samples, by ``measure``.
        measure: One, or a key of :data:`MEASURES`.
        max_drop: Percentage points that top-1 may lose against running every member. The cheapest such gate is
            chosen; of equally cheap ones, the most accurate.
        max_macs: Limit of the expected MACs per sample. The most accurate such gate is chosen; of equally accurate
            ones, the cheapest.

    Returns:
        The chosen gate, and the trade-off that it lies on: at most 50 Pareto-optimal gates, both MACs and top-1
        strictly ascending.

    Raises:
        UserError: Neither or both limits are given, ``max_drop`` is outside [0, 100], or ``max_macs`` is less than
            the first member alone.
    """
    macs, samples = whole_macs(scores.macs), scores.correct.shape[1]
    if (max_drop is None) == (max_macs is None):
        raise usage_error(f"Got max_drop={max_drop} and max_macs={max_macs}.", "Give exactly one of the two.")
    scores = MemberScores(scores.values.detach().cpu(), scores.correct.detach().cpu(), macs)
    if max_drop is not None:
        if not 0 <= max_drop <= 100:
            raise usage_error(f"max_drop {max_drop} is outside [0, 100].", "Give percentage points, such as 0.5.")
        needed = int(scores.correct[-1].sum()) - _most(max_drop, 100, samples)

        def choose(correct: Tensor, cost: Tensor) -> int:
            return int((correct < needed).sum())
    else:
        assert max_macs is not None
        if not max_macs >= macs[0]:
            raise usage_error(
                f"max_macs {max_macs} is out of reach: the first member alone costs {macs[0]} MACs.",
                f"Give {macs[0]} or more, or make the first member smaller.",
            )
        budget = _most(min(max_macs, sum(macs)), 1, samples)

        def choose(correct: Tensor, cost: Tensor) -> int:
            return int((cost <= budget).sum()) - 1

    front = _explored(scores, measure, choose)
    points = front.points()
    cost = front.cost[points]
    chosen = int(points[choose(points, cost)])
    curve = [outcome(scores, measure, front.thresholds(p)) for p in _along(points, cost, chosen).tolist()]
    return outcome(scores, measure, front.thresholds(chosen)), curve


def descent(scores: MemberScores, measure: str | Measure, max_drop: float, most: int = _CURVE_POINTS) -> list[Outcome]:
    """At most ``most`` Pareto-optimal gates that lose at most ``max_drop`` points on these samples, by descending MACs.

    Args:
        scores, measure: As for :func:`search`.
        max_drop: Percentage points of top-1, against running every member.
    """
    scores = MemberScores(scores.values.detach().cpu(), scores.correct.detach().cpu(), whole_macs(scores.macs))
    samples = scores.correct.shape[1]
    needed = int(scores.correct[-1].sum()) - _most(max_drop, 100, samples)
    front = _explored(scores, measure, lambda correct, cost: int((correct < needed).sum()))
    points = front.points()
    points = _thin(points[points >= needed], most).flip(0)
    return [outcome(scores, measure, front.thresholds(p)) for p in points.tolist()]


def towards(
    scores: MemberScores, measure: str | Measure, thresholds: Sequence[float | None], steps: int
) -> list[Outcome]:
    """Gates between running every member and a given gate: at each exit they stop a growing share of the number of
    samples that the given gate stops, the surest first.

    Args:
        scores, measure: As for :func:`search`.
        thresholds: The given gate, which is not among those returned.
        steps: One more than the number of gates returned.
    """
    surer = measure_of(measure).higher_is_surer
    stops = stops_at(scores, measure, thresholds).bincount(minlength=len(thresholds) + 1).tolist()
    gates = []
    for step in range(1, steps):
        going, limits = torch.ones_like(scores.correct[0]), list[float | None]()
        for values, count in zip(scores.values, stops[:-1], strict=True):
            wanted = min(math.ceil(count * step / steps), int(going.sum()))  # with ties, more may have stopped before
            limit = float(values[going].sort(descending=surer).values[wanted - 1]) if wanted else None
            if limit is not None:
                going &= values < limit if surer else values > limit
            limits.append(limit)
        gates.append(outcome(scores, measure, limits))
    return gates


def best_measure(measured: Mapping[AnyMeasure, MemberScores], **limit: float) -> AnyMeasure:
    """The measure with which :func:`search` finds the best gate for the given limit; of equal ones, the first.

    Args:
        measured: Scores of the same samples, by the measure or its name.
        limit: ``max_drop`` or ``max_macs``, as for :func:`search`.
    """
    if len(measured) == 1:
        return next(iter(measured))

    def rank(measure: AnyMeasure) -> tuple[float, float]:
        gate = search(measured[measure], measure, **limit)[0]
        return (gate.expected_macs, -gate.top1) if "max_drop" in limit else (-gate.top1, gate.expected_macs)

    return min(measured, key=rank)


def _explored(scores: MemberScores, measure: str | Measure, choose: Callable[[Tensor, Tensor], int]) -> _Front:
    """The front of these samples, searched as :func:`search` describes, most densely around the chosen gate."""
    front = _Front(scores, measure_of(measure))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tables are small, and several threads on a busy machine take 20 times as long
    try:
        if front.exits == 1:
            front.sweep(front.cuts[0], 0)
        elif front.exits > 1 and not front.grid():
            front.refine(choose)
    finally:
        torch.set_num_threads(threads)
    return front
