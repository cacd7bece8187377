"""Early exit: certainty measures, thresholds and what they cost (ResKD, arXiv 2006.04719).

After each member of a cascade there are logits from all members so far. A sample whose certainty passes the threshold
of that exit stops there, and the members after it do not run. That inference adapts to the sample is the paper's idea;
the measures and the joint search for the thresholds are our choice.

Everything here is a pure function of tensors. M is members, N samples, B a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcompress.errors import UserError, usage_error


def _log_odds(value: Tensor) -> Tensor:
    return torch.logit(value, 1e-6)


@dataclass(frozen=True)
class Measure:
    """How sure a prediction is.

    Args:
        name: Its key in :data:`MEASURES`.
        value: Logits ``[B, K]`` after a member, then those after each member before it, to ``[B]`` in [0, 1], computed
            in float32. NaN where the logits are.
        higher_is_surer: Whether a sample stops at or above the threshold; else at or below it.
        looks_back: Whether it needs the logits after earlier members.
        unbounded: Maps values from [0, 1], where most lie near a bound, to the real line.
        heads: Of a measure that was fitted.
    """

    name: str
    value: Callable[..., Tensor]
    higher_is_surer: bool = True
    looks_back: bool = False
    unbounded: Callable[[Tensor], Tensor] = _log_odds
    heads: Heads | None = None


def _softmax(logits: Tensor) -> Tensor:
    if logits.shape[-1] < 2:
        raise UserError(f"A gate needs two classes or more, got logits of shape {list(logits.shape)}.")
    return logits.float().softmax(-1)


def confidence(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Largest softmax probability: logits ``[B, K]`` to ``[B]`` in [1/K, 1]."""
    return _softmax(logits).amax(-1)


def margin(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Largest softmax probability minus the second largest: logits ``[B, K]`` to ``[B]`` in [0, 1]."""
    first, second = _softmax(logits).topk(2, dim=-1).values.unbind(-1)
    return first - second


def entropy(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Entropy of the softmax divided by its maximum, log K: logits ``[B, K]`` to ``[B]`` in [0, 1], 0 is sure."""
    p = _softmax(logits)
    # xlogy is 0 at p = 0 (a class that underflows), where p * log p would be NaN; rounding may exceed [0, 1]
    return (torch.xlogy(p, p).sum(-1) / -math.log(p.shape[-1])).clamp(0.0, 1.0)


def energy(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Logsumexp, the negative energy of arXiv 2010.03759: logits ``[B, K]`` to ``[B]`` in [0, 1].

    ``e / (1 + |e|)`` maps it to that range (our choice): it keeps the order, and large values stay distinct in float32.
    """
    value = logits.float().logsumexp(-1)
    return 0.5 + 0.5 * value / (1 + value.abs())


def _as_energy(value: Tensor) -> Tensor:
    """The logsumexp of which :func:`energy` made ``value``."""
    inner = 2 * value.clamp(1e-6, 1 - 1e-6) - 1
    return inner / (1 - inner.abs())


def agreement(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Mean over this exit and all before of the probability of the class predicted here: ``[B, K]`` each to ``[B]``.

    After the first member it is the confidence (our choice).
    """
    predicted = logits.argmax(-1, keepdim=True)
    probabilities = [_softmax(each).gather(-1, predicted) for each in (logits, *earlier)]
    return torch.cat(probabilities, -1).mean(-1)


MEASURES: dict[str, Measure] = {
    "confidence": Measure("confidence", confidence),
    "margin": Measure("margin", margin),
    "entropy": Measure("entropy", entropy, higher_is_surer=False),
    "energy": Measure("energy", energy, unbounded=_as_energy),
    "agreement": Measure("agreement", agreement, looks_back=True),
}


LEARNED = "learned"
LEAST_LOG = -15.0  # of a probability: what is less likely is all the same


@dataclass(frozen=True)
class Heads:
    """Logistic heads that predict, at each exit, what going on would do to the answer (arXiv 2307.02764).

    What a head sees after its member, and after each member before it, are the largest log-probabilities, sorted, and
    the energy.

    Args:
        top: How many log-probabilities of each member it sees.
        mends: For each exit the weights by which going on mends a wrong answer: of what is seen after its own member
            first, then after those before it in their order; the last one is the bias.
        spoils: The same for a right answer that going on spoils.
    """

    top: int
    mends: tuple[tuple[float, ...], ...]
    spoils: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for rows in (self.mends, self.spoils):
            sizes = [len(own) for own in rows]
            if sizes != [(self.top + 1) * exits + 1 for exits in range(1, len(self.mends) + 1)]:
                problem = f"Heads of {sizes} weights do not fit {self.top} log-probabilities of each member."
                raise UserError(problem, "Calibrate the gate again.")
        if not all(math.isfinite(value) for own in (*self.mends, *self.spoils) for value in own):
            raise UserError("The heads of a gate hold numbers that are not finite.", "Calibrate the gate again.")

    def value(self, logits: Tensor, *earlier: Tensor) -> Tensor:
        """How little going on would gain: logits ``[B, K]`` each to ``(1 - P(mends) + P(spoils)) / 2``, ``[B]``."""
        exit, seen = len(earlier), features(self.top, logits, *earlier)
        mends, spoils = (  # without a matrix product, which autocast would round
            torch.sigmoid((seen * torch.tensor(row[:-1], device=seen.device)).sum(-1) + row[-1])
            for row in (self.mends[exit], self.spoils[exit])
        )
        return 0.5 - 0.5 * mends + 0.5 * spoils

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"top": self.top, **{key: [list(own) for own in getattr(self, key)] for key in ("mends", "spoils")}}


def features(top: int, logits: Tensor, *earlier: Tensor) -> Tensor:
    """The ``top`` largest log-probabilities of each, sorted, then its energy: logits ``[B, K]`` each to ``[B, F]``."""
    parts = []
    for each in (logits, *earlier):
        logs = each.float().log_softmax(-1).topk(top, dim=-1).values
        parts += [torch.where(logs < LEAST_LOG, LEAST_LOG, logs), energy(each)[:, None]]
    return torch.cat(parts, -1)


def learned(heads: Heads) -> Measure:
    """The measure of fitted heads."""
    return Measure(LEARNED, heads.value, looks_back=True, heads=heads)


def measure_of(measure: str | Measure) -> Measure:
    """The measure of that name; a measure is returned as it is.

    Raises:
        UserError: There is none.
    """
    if isinstance(measure, Measure):
        return measure
    if measure not in MEASURES:
        raise usage_error(f"There is no measure {measure!r}.", f"Choose from: {', '.join(MEASURES)}.")
    return MEASURES[measure]


def _passes(measure: Measure, values: Tensor, threshold: float | None) -> Tensor:
    """Which of ``values`` ``[B]`` pass the threshold. NaN never does, so such a sample runs every member."""
    if threshold is None:
        return torch.zeros_like(values, dtype=torch.bool)
    # always compared in float32: calibration on one device must agree with inference on another
    limit = torch.tensor(threshold, dtype=torch.float32)
    return values.float() >= limit if measure.higher_is_surer else values.float() <= limit


@dataclass(frozen=True)
class Gate:
    """The rule by which samples leave a cascade of M members.

    Args:
        measure: A key of :data:`MEASURES`, or ``learned``.
        thresholds: One for each member but the last (M - 1), in the units of the measure; None: no sample stops there.
        heads: Of the measure ``learned``.

    Raises:
        UserError: The measure is unknown, or a threshold is outside [0, 1].
    """

    measure: str
    thresholds: tuple[float | None, ...]
    heads: Heads | None = None

    def __post_init__(self) -> None:
        if (self.measure == LEARNED) != (self.heads is not None):
            raise UserError(f"A gate by {self.measure!r} has heads, or lacks them.", "Calibrate the gate again.")
        if self.heads is None:
            measure_of(self.measure)
        elif len(self.heads.mends) != len(self.thresholds):
            counts = f"{len(self.heads.mends)} heads for {len(self.thresholds)} thresholds"
            raise UserError(f"A gate has {counts}.", "Calibrate the gate again.")
        for threshold in self.thresholds:
            if threshold is not None and not 0 <= threshold <= 1:
                raise usage_error(f"The threshold {threshold} is outside [0, 1].", "Measures lie between 0 and 1.")
        object.__setattr__(self, "thresholds", tuple(None if t is None else float(t) for t in self.thresholds))

    @classmethod
    def by(cls, measure: str | Measure, thresholds: Sequence[float | None]) -> Gate:
        """A gate by a measure or its name."""
        own = measure_of(measure)
        return cls(own.name, tuple(thresholds), own.heads)

    @property
    def measured(self) -> Measure:
        """The measure itself."""
        return MEASURES[self.measure] if self.heads is None else learned(self.heads)

    @property
    def looks_back(self) -> bool:
        """Whether :meth:`stops` needs the logits after earlier members."""
        return self.measured.looks_back

    def stops(self, logits: Tensor, member: int, earlier: Sequence[Tensor] = ()) -> Tensor:
        """Which samples stop after a member: summed logits ``[B, K]`` to bool ``[B]`` on the same device.

        Args:
            member: From 0.
            earlier: Summed logits after each earlier member, where the gate looks back.
        """
        measure, threshold = self.measured, self.thresholds[member]
        if threshold is None:
            return torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        return _passes(measure, measure.value(logits, *earlier), threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, such as a model's ``config.json`` holds; :meth:`from_dict` gives the same gate."""
        plain = {"measure": self.measure, "thresholds": list(self.thresholds)}
        return plain if self.heads is None else {**plain, "heads": self.heads.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gate:
        """The gate that :meth:`to_dict` wrote.

        Raises:
            UserError: ``data`` does not describe a gate.
        """
        try:
            return cls(data["measure"], tuple(data["thresholds"]), _heads(data.get("heads")))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{data!r} is not a gate.", "It needs 'measure' and a list of 'thresholds'.") from error


def _heads(data: Mapping[str, Any] | None) -> Heads | None:
    if data is None:
        return None
    mends, spoils = (tuple(tuple(map(float, own)) for own in data[key]) for key in ("mends", "spoils"))
    return Heads(int(data["top"]), mends, spoils)


def whole_macs(macs: Tensor | Sequence[int]) -> tuple[int, ...]:
    """MACs as integers, so that sums and ties are exact.

    Raises:
        UserError: They are negative, or not whole numbers.
    """
    given = macs.tolist() if isinstance(macs, Tensor) else macs
    counts = tuple(int(m) for m in given)
    if any(c != m or c < 0 for c, m in zip(counts, given, strict=True)):
        raise UserError(f"MACs must be whole numbers, 0 or more, not {list(given)}.")
    return counts


@dataclass(frozen=True, eq=False)
class MemberScores:
    """Certainty and correctness after each member on N labelled samples: all that calibrating a gate needs.

    Args:
        values: ``[M - 1, N]``, the measure after each member but the last.
        correct: ``[M, N]`` bool, whether the prediction of the sum is correct after each member.
        macs: ``[M]``, MACs of each member by itself.

    Raises:
        UserError: Shapes disagree, there are no samples, or a value is NaN.
    """

    values: Tensor
    correct: Tensor
    macs: Tensor | Sequence[int]

    def __post_init__(self) -> None:
        members, samples = self.correct.shape
        if self.values.shape != (members - 1, samples) or len(whole_macs(self.macs)) != members:
            shapes = f"values {list(self.values.shape)}, correct {list(self.correct.shape)}, {len(self.macs)} MACs"
            raise UserError(f"The shapes do not match: {shapes}.", "Give [M - 1, N], [M, N] and M.")
        if samples == 0:
            raise UserError("There are no images to calibrate a gate on.", "Use a larger --holdout.")
        if bool(self.values.isnan().any()):
            raise UserError("The certainty of a sample is NaN.", "Check the members' logits for NaN and infinity.")

    @classmethod
    def from_logits(
        cls, logits: Tensor, labels: Tensor, macs: Tensor | Sequence[int], measure: str | Measure
    ) -> MemberScores:
        """Certainty and correctness from summed logits.

        Args:
            logits: ``[M, N, K]``, summed logits after each member.
            labels: ``[N]`` class indices.
            macs: ``[M]``, MACs of each member by itself.
            measure: One, or a key of :data:`MEASURES`.

        Raises:
            UserError: The logits hold NaN, or infinities that make one; the measure is unknown; shapes disagree.
        """
        value = measure_of(measure).value
        members, samples, _ = logits.shape
        values = torch.empty(members - 1, samples, device=logits.device)
        correct = torch.empty(members, samples, dtype=torch.bool, device=logits.device)
        for member, after in enumerate(logits):
            correct[member] = after.argmax(-1) == labels.to(logits.device)
            if member < members - 1:
                values[member] = value(after, *logits[:member])
            if bool(after.isnan().any() | values[: member + 1].isnan().any()):
                raise UserError(
                    f"The logits of member {member} hold NaN or infinity.",
                    "Use --precision fp32, or train that member again.",
                )
        return cls(values, correct, macs)


@dataclass(frozen=True)
class Outcome:
    """What a gate does on given samples.

    Args:
        thresholds: One for each member but the last; None: no sample stops there.
        exit_rates: Share of the samples that stop after each of the M members; they sum to 1.
        expected_macs: Average MACs per sample.
        top1: Accuracy in percent.
    """

    thresholds: tuple[float | None, ...]
    exit_rates: tuple[float, ...]
    expected_macs: float
    top1: float


def expected_macs(exit_rates: Sequence[float], macs: Tensor | Sequence[int]) -> float:
    """Average MACs per sample: the sum over members of (share of samples that run it) x (its MACs).

    Args:
        exit_rates: ``[M]``, share of the samples that stop after each member.
        macs: ``[M]``, MACs of each member by itself.
    """
    costs = macs.tolist() if isinstance(macs, Tensor) else macs
    ran = [math.fsum(exit_rates[member:]) for member in range(len(exit_rates))]
    return math.fsum(share * cost for share, cost in zip(ran, costs, strict=True))


def stops_at(scores: MemberScores, measure: str | Measure, thresholds: Sequence[float | None]) -> Tensor:
    """The member ``[N]`` after which each sample stops at the gate (``measure``, ``thresholds``).

    Raises:
        UserError: The measure is unknown, a threshold is outside [0, 1], or their number does not match.
    """
    gate, (count, samples) = Gate.by(measure, thresholds), scores.values.shape
    if len(gate.thresholds) != count:
        raise usage_error(f"{len(gate.thresholds)} thresholds for {count + 1} members.", "Give one fewer than members.")
    last = torch.full((samples,), count, device=scores.values.device)
    for member in reversed(range(count)):
        last[_passes(gate.measured, scores.values[member], gate.thresholds[member])] = member
    return last


def outcome(scores: MemberScores, measure: str | Measure, thresholds: Sequence[float | None]) -> Outcome:
    """Exit rates, cost and accuracy of the gate (``measure``, ``thresholds``) on these samples.

    Args:
        scores: By that measure.

    Raises:
        UserError: As :func:`stops_at`.
    """
    macs, samples = whole_macs(scores.macs), scores.correct.shape[1]
    last = stops_at(scores, measure, thresholds)
    exits = last.bincount(minlength=len(macs)).tolist()
    correct = int(scores.correct.gather(0, last[None]).sum())
    # in whole MACs and divided once, so that two gates that cost the same compare equal
    total = sum(count * sum(macs[: member + 1]) for member, count in enumerate(exits))
    limits = Gate.by(measure, thresholds).thresholds
    return Outcome(limits, tuple(e / samples for e in exits), total / samples, 100 * correct / samples)
