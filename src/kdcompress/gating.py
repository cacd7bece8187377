"""When may a cascade stop: certainty measures, thresholds and what they cost (ResKD, arXiv 2006.04719).

The logits after stage ``s`` are the sum of the first ``s + 1`` members' logits. A sample whose certainty passes
that stage's threshold stops there, and the members after it are never run. That inference adapts to the sample
is the paper's idea; the measures and the joint search for the thresholds are our choice.

Everything here is a pure function of tensors. M is members, N samples, B a batch, K classes.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .errors import UserError, usage_error

_CURVE_POINTS = 50
_WORK = 150_000_000  # gates that one search may look at: a few seconds on two cores
_CHUNK = 1 << 18  # gates held in memory at once
_CALL = 20_000  # what one call of the two-stage sweep costs at the least, in gates: small ones are all overhead
_UNREACHED = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Measure:
    """How sure a prediction is.

    Args:
        name: Its key in :data:`MEASURES`.
        value: Logits ``[B, K]`` to ``[B]`` in [0, 1], computed in float32. NaN where the logits are.
        higher_is_surer: Whether a sample stops at or above the threshold, or at or below it.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    higher_is_surer: bool


def _softmax(logits: Tensor) -> Tensor:
    if logits.shape[-1] < 2:
        raise UserError(f"a gate needs two classes or more, got logits of shape {list(logits.shape)}")
    return logits.float().softmax(-1)


def confidence(logits: Tensor) -> Tensor:
    """Largest softmax probability: logits ``[B, K]`` to ``[B]`` in [1/K, 1]."""
    return _softmax(logits).amax(-1)


def margin(logits: Tensor) -> Tensor:
    """Largest softmax probability less the second: logits ``[B, K]`` to ``[B]`` in [0, 1]."""
    first, second = _softmax(logits).topk(2, dim=-1).values.unbind(-1)
    return first - second


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over its greatest value, log K: logits ``[B, K]`` to ``[B]`` in [0, 1], 0 is sure."""
    p = _softmax(logits)
    # xlogy is 0 at p = 0, where p * log p would be NaN (a class that underflows); rounding can leave [0, 1].
    return (torch.xlogy(p, p).sum(-1) / -math.log(p.shape[-1])).clamp(0.0, 1.0)


MEASURES: dict[str, Measure] = {
    "confidence": Measure("confidence", confidence, higher_is_surer=True),
    "margin": Measure("margin", margin, higher_is_surer=True),
    "entropy": Measure("entropy", entropy, higher_is_surer=False),
}


def _measure(name: str) -> Measure:
    if name not in MEASURES:
        raise usage_error(f"unknown measure {name!r}", f"choose one of {', '.join(MEASURES)}")
    return MEASURES[name]


def _passes(measure: Measure, values: Tensor, threshold: float | None) -> Tensor:
    """Which of ``values`` ``[B]`` are sure enough. NaN never is, so such a sample runs every member."""
    if threshold is None:
        return torch.zeros_like(values, dtype=torch.bool)
    # Both sides in float32, always: calibration on one device must agree with inference on another.
    limit = torch.tensor(threshold, dtype=torch.float32)
    return values.float() >= limit if measure.higher_is_surer else values.float() <= limit


@dataclass(frozen=True)
class Gate:
    """The rule by which samples leave a cascade of M members.

    Args:
        measure: A key of :data:`MEASURES`.
        thresholds: One for each stage but the last (M - 1), in the measure's own units; None: nobody stops there.

    Raises:
        UserError: The measure is unknown, or a threshold is outside [0, 1].
    """

    measure: str
    thresholds: tuple[float | None, ...]

    def __post_init__(self) -> None:
        _measure(self.measure)
        for threshold in self.thresholds:
            if threshold is not None and not 0 <= threshold <= 1:
                raise usage_error(f"threshold {threshold} is outside [0, 1]", "every measure lies between 0 and 1")
        object.__setattr__(self, "thresholds", tuple(None if t is None else float(t) for t in self.thresholds))

    def stops(self, logits: Tensor, stage: int) -> Tensor:
        """Which samples stop after ``stage``: summed logits ``[B, K]`` to bool ``[B]`` on the same device."""
        measure, threshold = MEASURES[self.measure], self.thresholds[stage]
        if threshold is None:
            return torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        return _passes(measure, measure.value(logits), threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, such as a model's ``config.json`` holds; :meth:`from_dict` gives the same gate."""
        return {"measure": self.measure, "thresholds": list(self.thresholds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gate:
        """The gate that :meth:`to_dict` wrote. Raises :class:`UserError` when it is not one."""
        try:
            return cls(data["measure"], tuple(data["thresholds"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"not a gate: {data!r}", "it needs 'measure' and a list of 'thresholds'") from error


def _whole(macs: Tensor | Sequence[int]) -> tuple[int, ...]:
    """MACs as integers, so that sums and ties are exact."""
    given = macs.tolist() if isinstance(macs, Tensor) else macs
    counts = tuple(int(m) for m in given)
    if any(c != m or c < 0 for c, m in zip(counts, given, strict=True)):
        raise UserError(f"MACs must be whole numbers, 0 or more, got {list(given)}")
    return counts


@dataclass(frozen=True, eq=False)
class Stages:
    """What a cascade says about N labelled samples: all that calibrating a gate needs.

    Args:
        values: ``[M - 1, N]``, the measure after each stage but the last.
        correct: ``[M, N]`` bool, whether the summed prediction is right after each stage.
        macs: ``[M]``, MACs of each member by itself.

    Raises:
        UserError: Shapes disagree, there are no samples, or a value is NaN.
    """

    values: Tensor
    correct: Tensor
    macs: Tensor | Sequence[int]

    def __post_init__(self) -> None:
        members, samples = self.correct.shape
        if self.values.shape != (members - 1, samples) or len(_whole(self.macs)) != members:
            shapes = f"values {list(self.values.shape)}, correct {list(self.correct.shape)}, {len(self.macs)} MACs"
            raise UserError(f"stages do not fit together: {shapes}", "expected [M - 1, N], [M, N] and M")
        if samples == 0:
            raise UserError("no samples to calibrate a gate on", "use a larger calibration split")
        if bool(self.values.isnan().any()):
            raise UserError("a certainty is NaN", "check the members' logits for NaN and infinity")

    @classmethod
    def from_logits(cls, member_logits: Tensor, labels: Tensor, macs: Tensor | Sequence[int], measure: str) -> Stages:
        """Measure each prefix of the cascade.

        Args:
            member_logits: ``[M, N, K]``, each member's own logits (not summed); they are summed in float32.
            labels: ``[N]`` class indices.
            macs: ``[M]``, MACs of each member by itself.
            measure: A key of :data:`MEASURES`.

        Raises:
            UserError: The logits hold NaN, or infinities that make one; the measure is unknown; shapes disagree.
        """
        value = _measure(measure).value
        members, samples, classes = member_logits.shape
        values = torch.empty(members - 1, samples, device=member_logits.device)
        correct = torch.empty(members, samples, dtype=torch.bool, device=member_logits.device)
        total = torch.zeros(samples, classes, device=member_logits.device)
        for stage in range(members):
            total = total + member_logits[stage]
            correct[stage] = total.argmax(-1) == labels.to(total.device)
            if stage < members - 1:
                values[stage] = value(total)
            if bool(total.isnan().any() | values[: stage + 1].isnan().any()):
                raise UserError(f"the logits of member {stage} hold NaN or infinity", "train that member again")
        return cls(values, correct, macs)


@dataclass(frozen=True)
class Outcome:
    """What a gate does on given samples.

    Args:
        thresholds: One for each stage but the last; None: nobody stops there.
        exit_rates: Share of the samples that stop after each of the M stages; they sum to 1.
        expected_macs: MACs of one sample, on average.
        top1: Accuracy in percent.
    """

    thresholds: tuple[float | None, ...]
    exit_rates: tuple[float, ...]
    expected_macs: float
    top1: float


def expected_macs(exit_rates: Sequence[float], macs: Tensor | Sequence[int]) -> float:
    """MACs of one sample on average: the sum over members of (share of samples that ran it) x (its MACs).

    Args:
        exit_rates: ``[M]``, share of the samples that stop after each stage.
        macs: ``[M]``, MACs of each member by itself.
    """
    costs = macs.tolist() if isinstance(macs, Tensor) else macs
    ran = [math.fsum(exit_rates[member:]) for member in range(len(exit_rates))]
    return math.fsum(share * cost for share, cost in zip(ran, costs, strict=True))


def outcome(stages: Stages, measure: str, thresholds: Sequence[float | None]) -> Outcome:
    """What the gate (``measure``, ``thresholds``) does on these samples; ``stages`` must hold that measure.

    Raises:
        UserError: The measure is unknown, a threshold is outside [0, 1], or there is not one for each stage.
    """
    gate, macs = Gate(measure, tuple(thresholds)), _whole(stages.macs)
    if len(gate.thresholds) != len(macs) - 1:
        raise usage_error(f"{len(gate.thresholds)} thresholds for {len(macs)} members", "give one fewer than members")
    samples = stages.correct.shape[1]
    running = torch.ones(samples, dtype=torch.bool, device=stages.correct.device)
    exits, right = [], 0
    for stage in range(len(macs)):
        stop = running
        if stage < len(macs) - 1:
            stop = running & _passes(MEASURES[measure], stages.values[stage], gate.thresholds[stage])
        exits.append(int(stop.sum()))
        right += int((stop & stages.correct[stage]).sum())
        running = running & ~stop
    # In whole MACs and divided once, so that two gates that cost the same compare equal.
    total = sum(count * sum(macs[: stage + 1]) for stage, count in enumerate(exits))
    return Outcome(gate.thresholds, tuple(e / samples for e in exits), total / samples, 100 * right / samples)


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
        spent = torch.tensor(list(itertools.accumulate(_whole(stages.macs))))
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
        The chosen gate, and the trade-off: Pareto-optimal gates, both MACs and top-1 strictly ascending, at most 50.

    Raises:
        UserError: Neither or both limits are given, ``max_drop`` is outside [0, 100], or ``max_macs`` is less than
            the first member alone.
    """
    macs, samples = _whole(stages.macs), stages.correct.shape[1]
    if (max_drop is None) == (max_macs is None):
        raise usage_error(f"got max_drop={max_drop} and max_macs={max_macs}", "give exactly one of the two")
    stages = Stages(stages.values.detach().cpu(), stages.correct.detach().cpu(), macs)
    if max_drop is not None:
        if not 0 <= max_drop <= 100:
            raise usage_error(f"max_drop {max_drop} is outside [0, 100]", "give percentage points, such as 0.5")
        needed = int(stages.correct[-1].sum()) - _most(max_drop, 100, samples)

        def choose(right: Tensor, cost: Tensor) -> int:
            return int((right < needed).sum())
    else:
        assert max_macs is not None
        if not max_macs >= macs[0]:
            raise usage_error(
                f"max_macs {max_macs} is out of reach: the first member alone costs {macs[0]} MACs",
                f"give {macs[0]} or more, or make the first member smaller",
            )
        budget = _most(min(max_macs, sum(macs)), 1, samples)

        def choose(right: Tensor, cost: Tensor) -> int:
            return int((cost <= budget).sum()) - 1

    front = _Front(stages, _measure(measure))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tables are small: on a busy machine, threads that wait for each other cost 20 times
    try:
        if front.stages == 1:
            front.sweep(front.cuts[0], 0)
        elif front.stages > 1 and not front.grid():
            front.refine(choose)
    finally:
        torch.set_num_threads(threads)
    points = front.points()
    chosen = int(points[choose(points, front.cost[points])])
    curve = [outcome(stages, measure, front.thresholds(p)) for p in _thin(points, _CURVE_POINTS).tolist()]
    return outcome(stages, measure, front.thresholds(chosen)), curve
