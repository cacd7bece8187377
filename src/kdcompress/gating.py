"""When may a cascade stop: certainty measures, thresholds and what they cost (ResKD, arXiv 2006.04719).

After each member there are logits from what all members so far say. A sample whose certainty passes that
stage's threshold stops there, and the members after it are never run. That inference adapts to the sample
is the paper's idea; the measures and the joint search for the thresholds are our choice.

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
        value: Logits ``[B, K]`` after a stage, then those after each stage before it, to ``[B]`` in [0, 1], computed in
            float32. NaN where the logits are.
        higher_is_surer: Whether a sample stops at or above the threshold, or at or below it.
        looks_back: Whether it needs the stages before.
        unbounded: From its values to ones without the bounds 0 and 1, near which most of them lie.
    """

    name: str
    value: Callable[..., Tensor]
    higher_is_surer: bool = True
    looks_back: bool = False
    unbounded: Callable[[Tensor], Tensor] = _log_odds


def _softmax(logits: Tensor) -> Tensor:
    if logits.shape[-1] < 2:
        raise UserError(f"A gate needs two classes or more, got logits of shape {list(logits.shape)}.")
    return logits.float().softmax(-1)


def confidence(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Largest softmax probability: logits ``[B, K]`` to ``[B]`` in [1/K, 1]."""
    return _softmax(logits).amax(-1)


def margin(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Largest softmax probability less the second: logits ``[B, K]`` to ``[B]`` in [0, 1]."""
    first, second = _softmax(logits).topk(2, dim=-1).values.unbind(-1)
    return first - second


def entropy(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Entropy of the softmax over its greatest value, log K: logits ``[B, K]`` to ``[B]`` in [0, 1], 0 is sure."""
    p = _softmax(logits)
    # xlogy is 0 at p = 0, where p * log p would be NaN (a class that underflows); rounding can leave [0, 1].
    return (torch.xlogy(p, p).sum(-1) / -math.log(p.shape[-1])).clamp(0.0, 1.0)


def energy(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Log of the summed exponentials, the negative energy of arXiv 2010.03759: ``[B, K]`` to ``[B]`` in [0, 1].

    ``e / (1 + |e|)`` brings it there (our choice): that changes no order, and large values stay apart in float32.
    """
    found = logits.float().logsumexp(-1)
    return 0.5 + 0.5 * found / (1 + found.abs())


def _as_energy(value: Tensor) -> Tensor:
    """What :func:`energy` was before it was brought to [0, 1]."""
    inner = 2 * value.clamp(1e-6, 1 - 1e-6) - 1
    return inner / (1 - inner.abs())


def agreement(logits: Tensor, *earlier: Tensor) -> Tensor:
    """Mean probability that this stage and those before give the class predicted now: ``[B, K]`` each to ``[B]``.

    After the first stage it is the confidence (our choice).
    """
    predicted = logits.argmax(-1, keepdim=True)
    given = [_softmax(each).gather(-1, predicted) for each in (logits, *earlier)]
    return torch.cat(given, -1).mean(-1)


MEASURES: dict[str, Measure] = {
    "confidence": Measure("confidence", confidence),
    "margin": Measure("margin", margin),
    "entropy": Measure("entropy", entropy, higher_is_surer=False),
    "energy": Measure("energy", energy, unbounded=_as_energy),
    "agreement": Measure("agreement", agreement, looks_back=True),
}


def measure_of(name: str) -> Measure:
    if name not in MEASURES:
        raise usage_error(f"There is no measure {name!r}.", f"Choose from: {', '.join(MEASURES)}.")
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
        measure_of(self.measure)
        for threshold in self.thresholds:
            if threshold is not None and not 0 <= threshold <= 1:
                raise usage_error(f"The threshold {threshold} is outside [0, 1].", "Measures lie between 0 and 1.")
        object.__setattr__(self, "thresholds", tuple(None if t is None else float(t) for t in self.thresholds))

    @property
    def measured(self) -> Measure:
        return MEASURES[self.measure]

    @property
    def looks_back(self) -> bool:
        """Whether :meth:`stops` needs the logits after earlier stages."""
        return self.measured.looks_back

    def stops(self, logits: Tensor, stage: int, earlier: Sequence[Tensor] = ()) -> Tensor:
        """Which samples stop after ``stage``: summed logits ``[B, K]`` to bool ``[B]`` on the same device.

        Args:
            earlier: Those after each stage before, where the gate looks back.
        """
        measure, threshold = self.measured, self.thresholds[stage]
        if threshold is None:
            return torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        return _passes(measure, measure.value(logits, *earlier), threshold)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, such as a model's ``config.json`` holds; :meth:`from_dict` gives the same gate."""
        return {"measure": self.measure, "thresholds": list(self.thresholds)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Gate:
        """The gate that :meth:`to_dict` wrote. Raises :class:`UserError` when it is not one."""
        try:
            return cls(data["measure"], tuple(data["thresholds"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{data!r} is no gate.", "It needs 'measure' and a list of 'thresholds'.") from error


def whole_macs(macs: Tensor | Sequence[int]) -> tuple[int, ...]:
    """MACs as integers, so that sums and ties are exact."""
    given = macs.tolist() if isinstance(macs, Tensor) else macs
    counts = tuple(int(m) for m in given)
    if any(c != m or c < 0 for c, m in zip(counts, given, strict=True)):
        raise UserError(f"MACs must be whole numbers, 0 or more, not {list(given)}.")
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
        if self.values.shape != (members - 1, samples) or len(whole_macs(self.macs)) != members:
            shapes = f"values {list(self.values.shape)}, correct {list(self.correct.shape)}, {len(self.macs)} MACs"
            raise UserError(f"The stages do not fit together: {shapes}.", "Give [M - 1, N], [M, N] and M.")
        if samples == 0:
            raise UserError("There are no images to calibrate a gate on.", "Use a larger --holdout.")
        if bool(self.values.isnan().any()):
            raise UserError("A certainty is NaN.", "Check the members' logits for NaN and infinity.")

    @classmethod
    def from_logits(cls, logits: Tensor, labels: Tensor, macs: Tensor | Sequence[int], measure: str) -> Stages:
        """Measure each prefix of the cascade.

        Args:
            logits: ``[M, N, K]``, those after each member.
            labels: ``[N]`` class indices.
            macs: ``[M]``, MACs of each member by itself.
            measure: A key of :data:`MEASURES`.

        Raises:
            UserError: The logits hold NaN, or infinities that make one; the measure is unknown; shapes disagree.
        """
        value = measure_of(measure).value
        members, samples, _ = logits.shape
        values = torch.empty(members - 1, samples, device=logits.device)
        correct = torch.empty(members, samples, dtype=torch.bool, device=logits.device)
        for stage, after in enumerate(logits):
            correct[stage] = after.argmax(-1) == labels.to(logits.device)
            if stage < members - 1:
                values[stage] = value(after, *logits[:stage])
            if bool(after.isnan().any() | values[: stage + 1].isnan().any()):
                raise UserError(f"The logits of member {stage} hold NaN or infinity.", "Train that member again.")
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


def stops_at(stages: Stages, measure: str, thresholds: Sequence[float | None]) -> Tensor:
    """The stage ``[N]`` after which the gate (``measure``, ``thresholds``) lets each sample stop.

    Raises:
        UserError: The measure is unknown, a threshold is outside [0, 1], or there is not one for each stage.
    """
    gate, (count, samples) = Gate(measure, tuple(thresholds)), stages.values.shape
    if len(gate.thresholds) != count:
        raise usage_error(f"{len(gate.thresholds)} thresholds for {count + 1} members.", "Give one fewer than members.")
    found = torch.full((samples,), count, device=stages.values.device)
    for stage in reversed(range(count)):
        found[_passes(MEASURES[measure], stages.values[stage], gate.thresholds[stage])] = stage
    return found


def outcome(stages: Stages, measure: str, thresholds: Sequence[float | None]) -> Outcome:
    """What the gate (``measure``, ``thresholds``) does on these samples; ``stages`` must hold that measure.

    Raises:
        UserError: As :func:`stops_at`.
    """
    macs, samples = whole_macs(stages.macs), stages.correct.shape[1]
    found = stops_at(stages, measure, thresholds)
    exits = found.bincount(minlength=len(macs)).tolist()
    right = int(stages.correct.gather(0, found[None]).sum())
    # In whole MACs and divided once, so that two gates that cost the same compare equal.
    total = sum(count * sum(macs[: stage + 1]) for stage, count in enumerate(exits))
    limits = Gate(measure, tuple(thresholds)).thresholds
    return Outcome(limits, tuple(e / samples for e in exits), total / samples, 100 * right / samples)
