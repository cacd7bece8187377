"""Thresholds for a budget of milliseconds: members are timed on this device, and so is the gate that is chosen."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompress.api.exported_members import OPSET, exported
from kdcompress.api.gated import Calibration
from kdcompress.data import spread
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter
from kdcompress.engine.race import Forward, Times, race
from kdcompress.errors import usage_error
from kdcompress.export.compose import Cascade, compose, serialized
from kdcompress.export.onnx_network import new_session, runner
from kdcompress.gate_search import descent
from kdcompress.gating import Gate, Measure, MemberScores, Outcome, outcome, stops_at
from kdcompress.models.fold import for_inference
from kdcompress.models.staged import Staged

ROUNDS = 6  # of choosing a gate, timing it, and correcting what its members promised
CLOSE, NOTABLE = 0.03, 0.1  # shares of the target: near enough, and so far below it that a word is due
GATES = 1000  # to choose from, for each measure
MOST = 512  # images that are timed
NANOSECONDS = 1_000_000  # in a millisecond: the search adds up whole numbers


@dataclass(frozen=True)
class MemberTimes:
    """Milliseconds of each member for batches of several sizes.

    Attributes:
        rows: Sizes, ascending, [S]; the last one is that of the batch that comes in.
        ms: [M, S].
    """

    rows: np.ndarray
    ms: np.ndarray

    def of_batches(self, exits: np.ndarray) -> float:
        """Mean milliseconds of a batch whose images exit at these stages [N], in their order; the rest is left out."""
        size = int(self.rows[-1])
        whole = exits[: max(1, len(exits) // size) * size]
        batches = np.resize(whole, (max(1, len(whole) // size), size))
        total = np.zeros(len(batches))
        for stage, own in enumerate(self.ms):
            arriving = (batches >= stage).sum(1)
            total += np.where(arriving > 0, np.interp(arriving, self.rows, own), 0.0)
        return float(total.mean())

    @property
    def per_image(self) -> list[int]:
        """Nanoseconds an image of each member, in a whole batch."""
        return [max(1, round(own * NANOSECONDS / self.rows[-1])) for own in self.ms[:, -1].tolist()]


class Device:
    """Where and by what a cascade is timed, on calibration images.

    Args:
        size: Images in a batch.

    Raises:
        UserError: A member cannot be exported.
    """

    def __init__(self, calibration: Calibration, engine: str, size: int, place: Place, reporter: Reporter) -> None:
        place = place if engine == "torch" else Place(torch.device("cpu"), "fp32")  # where ONNX Runtime runs
        self.engine, self.size, self.place = engine, size, place
        network = calibration.network
        self.images = _images(calibration).to(place.device)
        self.model: Any = None
        if engine == "torch":
            self.model = for_inference(network.model, place.device)
            assert isinstance(self.model, Staged)
            self.members: list[Forward] = [_one(stage) for stage in self.model.stages()]
        else:
            self.cascade: Cascade = exported(network, OPSET, full=True, note=reporter.note)
            self.input_size = network.input_size
            alone = [dataclasses.replace(self.cascade, members=[member]) for member in self.cascade.members]
            self.members = [_one(self._session(each)) for each in alone]

    def member_times(self) -> MemberTimes:
        """Each member by itself, for batches of 1, 2, 4 … images."""
        rows = [1 << power for power in range(self.size.bit_length()) if 1 << power < self.size] + [self.size]
        ms = []
        for count in rows:
            batches = self._batches(count)
            ms.append([each.mean_ms for each in race(self.members, [batches] * len(self.members), self.place)])
        return MemberTimes(np.array(rows), np.array(ms).T)

    def gated_times(self, gate: Gate) -> Times:
        """The cascade with a gate."""
        if self.model is not None:
            self.model.gate = gate
            forward = self.model.forward_gated
        else:
            forward = self._session(dataclasses.replace(self.cascade, gate=gate))
        return race([forward], [self._batches(self.size)], self.place)[0]

    def _session(self, cascade: Cascade) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return runner(new_session(serialized(compose(cascade, self.input_size)), torch.get_num_threads()))

    def _batches(self, size: int) -> list[Tensor]:
        layout = torch.channels_last if self.engine == "torch" else torch.contiguous_format
        count = len(self.images)
        wanted = torch.arange(max(1, count // size) * size) % count
        return [self.images[part].contiguous(memory_format=layout) for part in wanted.split(size)]


def gate_within(
    calibration: Calibration, measures: list[Measure], target_ms: float, device: Device, reporter: Reporter
) -> tuple[Measure, Outcome, dict[str, Any]]:
    """The most accurate gate whose batches take at most ``target_ms`` on average.

    Args:
        measures: To choose from.

    Returns:
        The measure, the outcome of the gate, and what was measured, as :class:`~kdcompress.results.GateResult` has it.

    Raises:
        UserError: The first member alone takes longer.
    """
    reporter.note(f"Timing {len(device.members)} members on batches of {device.size}.")
    members, factor = device.member_times(), 1.0
    gates = [gate for measure in measures for gate in _gates(calibration.member_scores(measure), measure, members)]
    fastest = min(range(len(gates)), key=lambda number: gates[number].ms)
    timed: dict[int, Times] = {}  # by the number of the gate
    factors: list[float] = []

    def measured(number: int) -> Times:
        if number not in timed:
            timed[number] = device.gated_times(Gate.by(gates[number].measure, gates[number].outcome.thresholds))
        return timed[number]

    for _ in range(ROUNDS):
        within = [number for number, gate in enumerate(gates) if factor * gate.ms <= target_ms] or [fastest]
        # the most accurate within the budget; of equally accurate ones the fastest
        number = max(within, key=lambda number: (gates[number].outcome.top1, -gates[number].ms))
        known, times = number in timed, measured(number)
        if known or abs(times.mean_ms / target_ms - 1) <= CLOSE:
            break
        assert times.exits is not None
        factors.append(times.mean_ms / members.of_batches(times.exits.numpy()))
        factor = statistics.median(factors)  # single measurements would make it swing
    if all(_off(times, target_ms)[0] for times in timed.values()) and _off(measured(fastest), target_ms)[0]:
        least = _rounded_up(measured(fastest).mean_ms)
        remedy = f"The lowest possible is about --target-ms {least}; for less, distil a smaller student."
        problem = f"--target-ms {target_ms:g} is out of reach: with every image stopped by the first member, a batch of"
        raise usage_error(f"{problem} {device.size} takes longer.", remedy)
    kept = [number for number, times in timed.items() if not _off(times, target_ms)[0]]
    # of those that keep the time the most accurate, then the fastest
    number = min(kept, key=lambda number: (-gates[number].outcome.top1, timed[number].mean_ms))
    gate, times = gates[number], timed[number]
    if times.mean_ms < (1 - NOTABLE) * target_ms:
        reporter.note(
            f"Notice: the gate takes {times.mean_ms:.3g} ms, less than --target-ms {target_ms:g}: none that was found "
            "nearer to it is more accurate."
        )
    return gate.measure, gate.outcome, _measured(device, members, times, target_ms)


def _rounded_up(ms: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(ms)))
    return f"{math.ceil(ms * 10**digits) / 10**digits:g}"


@dataclass(frozen=True)
class _Timed:
    """A gate, and the milliseconds of a batch that its members promise."""

    measure: Measure
    outcome: Outcome
    ms: float


def _gates(scores: MemberScores, measure: Measure, members: MemberTimes) -> list[_Timed]:
    """Pareto-optimal gates, by time in place of MACs.

    The search adds up the time of each image by itself; what a batch takes is found afterwards.
    """
    timed = MemberScores(scores.values, scores.correct, members.per_image)
    gates = []
    for found in descent(timed, measure, max_drop=100.0, most=GATES):
        exits = stops_at(scores, measure, found.thresholds).numpy()
        gates.append(_Timed(measure, outcome(scores, measure, found.thresholds), members.of_batches(exits)))
    return gates


def _off(times: Times, target_ms: float) -> tuple[bool, float]:
    """How far a gate is from its target; one that is too slow comes last."""
    over = times.mean_ms / target_ms - 1
    return over > CLOSE, abs(over)


def _measured(device: Device, members: MemberTimes, times: Times, target_ms: float) -> dict[str, Any]:
    return {
        "engine": device.engine,
        "device": str(device.place.device),
        "hardware": device.place.describe(),
        "threads": torch.get_num_threads(),
        "batch_size": device.size,
        "target_ms": target_ms,
        "mean_ms": round(times.mean_ms, 4),
        "p50_ms": round(times.percentile_ms(50), 4),
        "p95_ms": round(times.percentile_ms(95), 4),
        "member_ms": [round(own, 4) for own in members.ms[:, -1].tolist()],
    }


def _one(forward: Callable[[Tensor], Any]) -> Forward:
    return lambda images: (forward(images), None)


def _images(calibration: Calibration) -> Tensor:
    """Calibration images, from all over the split."""
    batches = calibration.data.evaluation("calibration", 64)
    chosen = spread(len(batches.images.ids), MOST)
    loaded = batches.load([chosen[start : start + 64] for start in range(0, len(chosen), 64)])
    return torch.cat([images for images, _ in loaded])
