"""The search for a gate's thresholds: all stages together, against accuracy and MACs at once (our choice).

M is members, N samples, G gates looked at in one go.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from kdcompress.errors import usage_error
from kdcompress.gating import Measure, Outcome, Stages, measure_of, outcome, stops_at, whole_macs

_CURVE_POINTS = 50
_WORK = 150_000_000  # gates that one search may look at: a few seconds on two cores
_CHUNK = 1 << 18  # gates held in memory at once
_CALL = 20_000  # what one call of the two-stage sweep costs at the least, in gates: small ones are all overhead
_UNREACHED = torch.iinfo(torch.int64).max


class _Front:
    """The cheapest gate found for each number of right answers, and the sweeps that look for cheaper ones.

    A gate is a row of cuts: cut ``c`` at a stage stops the samples on its ``c`` surest distinct values, 0 nobody.
    Costs are whole MACs summed over the samples. A sample's worth after a stage is its (MACs, right answers), and a
    gate's is the sum over samples, so moving a cut adds the difference in worth of the samples that it moves.
    """

    def __init__(self, stages: Stages, measure: Measure) -> None:
        self.measure = measure
        self.stages, self.samples = stages.values.shape
        self.levels, self.ranks = [], []
        for values in stages.values.float():
            levels, ranks = (-values if measure.higher_is_surer else values).unique(return_inverse=True)
            self.levels.append(levels)
            self.ranks.append(ranks)
        spent = torch.tensor(list(itertools.accumulate(whole_macs(stages.macs))))
        self.worth = torch.stack([spent[:, None].expand(-1, self.samples), stages.correct.long()], 1)  # [M, 2, N]
        self.cost = torch.full((self.samples + 1,), _UNREACHED)
        self.bound = self.cost.clone()  # cheapest gate with at least that many right answers
        self.cuts = torch.zeros(self.samples + 1, self.stages, dtype=torch.long)
        nobody = torch.zeros(1, self.stages, dtype=torch.long)
        self.offer(self.worth[-1].sum(1, keepdim=True), lambda index: nobody)

    def offer(self, worth: Tensor, cuts: Callable[[Tensor], Tensor]) -> None:
        """Keep the gates ``[2, G]`` that nothing found so far matches; ``cuts`` gives theirs by index."""
        cost, right = worth
        new = (cost < self.bound.take(right)).nonzero().squeeze(1)
        if len(new) == 0:
            return
        cost, right = cost[new], right[new]
        bound = _at_least(self.cost.scatter_reduce(0, right, cost, "amin"))
        best = cost == bound[right]
        new, cost, right = new[best], cost[best], right[best]
        right, order = right.sort(stable=True)  # of gates that tie, the first: the same answer on every run
        first = torch.ones_like(right, dtype=torch.bool)
        first[1:] = right[1:] != right[:-1]
        order, right = order[first], right[first]
        self.cost[right], self.cuts[right], self.bound = cost[order], cuts(new[order]), bound

    def points(self) -> Tensor:
        """Right answers of the Pareto-optimal gates, ascending; their cost ascends too."""
        after = torch.cat([self.bound[1:], torch.tensor([_UNREACHED])])
        return (self.cost < after).nonzero().squeeze(1)

    def _exits(self, cuts: Sequence[int]) -> Tensor:
        """The stage after which each sample ``[N]`` stops; stages that ``cuts`` leaves out stop nobody."""
        exits = torch.full((self.samples,), self.stages)
        for stage in reversed(range(len(cuts))):
            exits[self.ranks[stage] < cuts[stage]] = stage
        return exits

    def _worth(self, exits: Tensor) -> Tensor:
        return self.worth.gather(0, exits.expand(1, 2, -1))[0]

    def sweep(self, cuts: Tensor, stage: int) -> None:
        """Offer every cut at ``stage``, the other stages' ``cuts`` ``[M - 1]`` held."""
        held = cuts.tolist()
        held[stage] = 0
        exits = self._exits(held)
        worth, reaches = self._worth(exits), exits > stage
        table = torch.zeros(2, len(self.levels[stage]) + 1, dtype=torch.long)
        table[:, 0] = worth.sum(1)
        table.index_add_(1, self.ranks[stage][reaches] + 1, (self.worth[stage] - worth)[:, reaches])

        def at(index: Tensor) -> Tensor:
            rows = cuts.repeat(len(index), 1)
            rows[:, stage] = index
            return rows

        self.offer(table.cumsum(1), at)

    def grid(self) -> bool:
        """Offer every cut of the last stage for a joint grid over the others; whether that was every gate."""
        *outer, last = (len(levels) + 1 for levels in self.levels)

        def work(side: int) -> int:
            *loop, rows = (min(side, size) for size in outer)
            return math.prod(loop) * max(rows * last, _CALL)

        side = max(2, bisect.bisect_right(range(1, max(outer) + 1), _WORK, key=work))
        *loop, rows = (self._quantiles(stage, side) for stage in range(self.stages - 1))
        for prefix in itertools.product(*(cuts.tolist() for cuts in loop)):
            self._last_two(prefix, rows)
        return side >= max(outer)

    def _quantiles(self, stage: int, side: int) -> Tensor:
        """At most ``side`` cuts, nobody and all among them, that let even shares of the samples stop."""
        size = len(self.levels[stage]) + 1
        if size <= side:
            return torch.arange(size)
        stopped = self.ranks[stage].bincount().cumsum(0)
        shares = torch.linspace(0, self.samples, side, dtype=torch.float64).round().long()
        return torch.cat([torch.tensor([0]), torch.searchsorted(stopped, shares[1:]) + 1]).unique()

    def _last_two(self, prefix: tuple[int, ...], rows: Tensor) -> None:
        """Offer the cuts ``rows`` of the last stage but one, times every cut of the last; ``prefix`` goes before."""
        exits = self._exits(prefix)
        alive = (exits == self.stages).nonzero().squeeze(1)
        # The first row that stops each sample and the first column that does: summed both ways, they give the worth.
        row, order = torch.bucketize(self.ranks[-2][alive], rows, right=True).sort(stable=True)
        alive, width = alive[order], len(self.levels[-1]) + 1
        column = self.ranks[-1][alive] + 1
        now, late, never = self.worth[-3:, :, alive]
        above = torch.zeros(2, width, dtype=torch.long)
        above[:, 0] = self._worth(exits).sum(1)
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
        """Sweep each stage, the others held: around gates all along the front, then around the chosen one."""
        done: set[tuple[int, ...]] = set()

        def around(points: Tensor) -> bool:
            fresh = [cuts for cuts in self.cuts[points] if tuple(cuts.tolist()) not in done]
            for cuts in fresh:
                done.add(tuple(cuts.tolist()))
                for stage in range(self.stages):
                    self.sweep(cuts, stage)
            return bool(fresh)

        budget = max(_CURVE_POINTS, _WORK // (2 * self.stages * max(self.samples, _CALL)))
        while len(done) < budget and around(_thin(self.points(), budget - len(done))):
            pass
        while around((points := self.points())[choose(points, self.cost[points])][None]):
            pass

    def thresholds(self, right: int) -> tuple[float | None, ...]:
        """The gate kept for that many right answers, in the measure's units, midway between observed values."""
        cuts = self.cuts[right].tolist()
        return tuple(self._threshold(levels, cut) for levels, cut in zip(self.levels, cuts, strict=True))

    def _threshold(self, levels: Tensor, cut: int) -> float | None:
        if cut == 0:
            return None
        if cut == len(levels):
            return 0.0 if self.measure.higher_is_surer else 1.0
        surer, other = levels[cut - 1 : cut + 1].double()
        middle = ((surer + other) / 2).float()
        if middle >= other:  # neighbours in float32: nothing lies between them
            middle = levels[cut - 1]
        return -float(middle) if self.measure.higher_is_surer else float(middle)


def _at_least(cost: Tensor) -> Tensor:
    """Cheapest cost for that many right answers or more, from the cheapest for exactly that many."""
    return cost.flip(0).cummin(0).values.flip(0)


def _thin(points: Tensor, most: int) -> Tensor:
    """At most ``most`` (2 or more) evenly chosen points, the ends among them."""
    if len(points) <= most:
        return points
    return points[torch.linspace(0, len(points) - 1, max(2, most), dtype=torch.float64).round().long()]


def _along(points: Tensor, cost: Tensor, chosen: int) -> Tensor:
    """50 points, the ends and the ``chosen`` one among them, evenly by right answers and cost alike; or all, if fewer.

    Where the last right answers cost most, points that are even by right answers alone would leave a gap.
    """
    if len(points) <= _CURVE_POINTS:
        return points
    others = points != chosen
    way = torch.stack([points[others], cost[others]]).double()
    way = ((way - way[:, :1]) / (way[:, -1:] - way[:, :1])).sum(0)
    order = torch.arange(_CURVE_POINTS - 1)
    found = torch.searchsorted(way, torch.linspace(0, 2, len(order), dtype=torch.float64))
    found = (found - order).cummax(0).values + order  # where several marks meet the same point, the next ones
    found = found.minimum(len(way) - len(order) + order)
    return torch.cat([points[others][found], torch.tensor([chosen])]).sort().values


def _most(limit: float, scale: int, samples: int) -> int:
    """The largest count with ``count * scale / samples <= limit`` in floats: 3 of 1000 are 0.3 %, which no float is."""
    count = math.floor(Fraction(limit) * samples / scale)
    while (count + 1) * scale / samples <= limit:
        count += 1
    return count


def search(
    stages: Stages, measure: str, *, max_drop: float | None = None, max_macs: float | None = None
) -> tuple[Outcome, list[Outcome]]:
    """Choose all stages' thresholds together (our choice; the paper's rule is not public).

    Exact for one stage, and wherever all gates together number at most 150 million (two stages: 12 000 samples).
    Beyond that, a joint quantile grid over all stages but the last, which is always swept exactly; then each stage
    is swept exactly with the others held, until no sweep improves the gate.

    Args:
        stages: The calibration samples, measured by ``measure``.
        measure: A key of :data:`MEASURES`.
        max_drop: Percentage points that top-1 may lose against running every member. The cheapest such gate is
            chosen; of equally cheap ones, the most accurate.
        max_macs: Expected MACs that one sample may cost. The most accurate such gate is chosen; of equally accurate
            ones, the cheapest.

    Returns:
        The chosen gate, and the trade-off with it: Pareto-optimal gates, both MACs and top-1 strictly ascending, at
        most 50.

    Raises:
        UserError: Neither or both limits are given, ``max_drop`` is outside [0, 100], or ``max_macs`` is less than
            the first member alone.
    """
    macs, samples = whole_macs(stages.macs), stages.correct.shape[1]
    if (max_drop is None) == (max_macs is None):
        raise usage_error(f"Got max_drop={max_drop} and max_macs={max_macs}.", "Give exactly one of the two.")
    stages = Stages(stages.values.detach().cpu(), stages.correct.detach().cpu(), macs)
    if max_drop is not None:
        if not 0 <= max_drop <= 100:
            raise usage_error(f"max_drop {max_drop} is outside [0, 100].", "Give percentage points, such as 0.5.")
        needed = int(stages.correct[-1].sum()) - _most(max_drop, 100, samples)

        def choose(right: Tensor, cost: Tensor) -> int:
            return int((right < needed).sum())
    else:
        assert max_macs is not None
        if not max_macs >= macs[0]:
            raise usage_error(
                f"max_macs {max_macs} is out of reach: the first member alone costs {macs[0]} MACs.",
                f"Give {macs[0]} or more, or make the first member smaller.",
            )
        budget = _most(min(max_macs, sum(macs)), 1, samples)

        def choose(right: Tensor, cost: Tensor) -> int:
            return int((cost <= budget).sum()) - 1

    front = _explored(stages, measure, choose)
    points = front.points()
    cost = front.cost[points]
    chosen = int(points[choose(points, cost)])
    curve = [outcome(stages, measure, front.thresholds(p)) for p in _along(points, cost, chosen).tolist()]
    return outcome(stages, measure, front.thresholds(chosen)), curve


def descent(stages: Stages, measure: str, max_drop: float) -> list[Outcome]:
    """Gates that lose at most ``max_drop`` points on these samples: Pareto-optimal, at most 50, the dearest first.

    Args:
        stages, measure: As for :func:`search`.
        max_drop: Percentage points of top-1, against running every member.
    """
    stages = Stages(stages.values.detach().cpu(), stages.correct.detach().cpu(), whole_macs(stages.macs))
    samples = stages.correct.shape[1]
    needed = int(stages.correct[-1].sum()) - _most(max_drop, 100, samples)
    front = _explored(stages, measure, lambda right, cost: int((right < needed).sum()))
    points = front.points()
    points = _thin(points[points >= needed], _CURVE_POINTS).flip(0)
    return [outcome(stages, measure, front.thresholds(p)) for p in points.tolist()]


def towards(stages: Stages, measure: str, thresholds: Sequence[float | None], steps: int) -> list[Outcome]:
    """Gates on the way to a gate: of as many samples as it stops at a stage an ever larger share, the surest first.

    Args:
        stages, measure: As for :func:`search`.
        thresholds: The gate, which is not among those returned.
        steps: One more than there are gates.
    """
    surer = measure_of(measure).higher_is_surer
    stops = stops_at(stages, measure, thresholds).bincount(minlength=len(thresholds) + 1).tolist()
    found = []
    for step in range(1, steps):
        going, limits = torch.ones_like(stages.correct[0]), list[float | None]()
        for values, count in zip(stages.values, stops[:-1], strict=True):
            wanted = min(math.ceil(count * step / steps), int(going.sum()))  # of those that tie, all have stopped
            limit = float(values[going].sort(descending=surer).values[wanted - 1]) if wanted else None
            if limit is not None:
                going &= values < limit if surer else values > limit
            limits.append(limit)
        found.append(outcome(stages, measure, limits))
    return found


def best_measure(measured: Mapping[str, Stages], **limit: float) -> str:
    """The measure by which :func:`search` finds the best gate for the given limit; of equal ones, the first.

    Args:
        measured: The same samples by each measure.
        limit: ``max_drop`` or ``max_macs``, as for :func:`search`.
    """
    if len(measured) == 1:
        return next(iter(measured))

    def rank(name: str) -> tuple[float, float]:
        found = search(measured[name], name, **limit)[0]
        return (found.expected_macs, -found.top1) if "max_drop" in limit else (-found.top1, found.expected_macs)

    return min(measured, key=rank)


def _explored(stages: Stages, measure: str, choose: Callable[[Tensor, Tensor], int]) -> _Front:
    """The front of these samples, found as :func:`search` describes it; at its best around the chosen gate."""
    front = _Front(stages, measure_of(measure))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tables are small: on a busy machine, threads that wait for each other cost 20 times
    try:
        if front.stages == 1:
            front.sweep(front.cuts[0], 0)
        elif front.stages > 1 and not front.grid():
            front.refine(choose)
    finally:
        torch.set_num_threads(threads)
    return front
