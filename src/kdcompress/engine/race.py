"""Networks timed beside each other: turn by turn on the same images, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompress.data import spread
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import timed

WARM_UP, LEAST_PASSES, MOST_PASSES = 3, 3, 20  # batches; passes over the images
LEAST_BATCHES = 5
SECONDS = 4.0  # of one network, for all passes (our choice)

Forward = Callable[[Tensor], tuple[Any, Tensor | None]]


@dataclass(frozen=True)
class Times:
    """Of one network.

    Attributes:
        seconds: Of each batch in each pass, [P, N].
        images: In each batch, [N].
        exits: Of each image, the last stage that it ran; None without a gate.
    """

    seconds: np.ndarray
    images: np.ndarray
    exits: Tensor | None

    @property
    def images_per_second(self) -> float:
        """Median over the passes."""
        return float(self.images.sum() / np.median(self.seconds.sum(1)))

    @property
    def mean_ms(self) -> float:
        """Milliseconds of a batch: mean over the batches, of which median over the passes."""
        return 1000 * float(np.median(self.seconds.mean(1)))

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds of a batch, over batches and passes."""
        return 1000 * float(np.percentile(self.seconds, percent))

    def over(self, other: Times) -> float:
        """Time of this network over that of another one in the same race: median over the passes."""
        return statistics.median((self.seconds.sum(1) / other.seconds.sum(1)).tolist())

    def rates(self, stages: int) -> list[float]:
        """Share of the images that exit at each stage."""
        if self.exits is None:
            return [0.0] * (stages - 1) + [1.0]
        counts = torch.bincount(self.exits, minlength=stages)
        return [count / len(self.exits) for count in counts.tolist()]


def race(
    forwards: Sequence[Forward], batches: Sequence[Sequence[Tensor]], place: Place, *, seconds: float | None = None
) -> list[Times]:
    """Time networks on the same batches.

    There are 3 to 20 passes, as many as fit into the time for each network. Where three passes over all batches would
    take longer, fewer batches are run, from all over them, but at least 5.

    Args:
        forwards: Of each network, from a batch of images to logits and, of a gated one, exits.
        batches: For each network.
        place: Where they run; the host waits for the device after each batch.
        seconds: For each network; None for 4.
    """
    budget = SECONDS if seconds is None else seconds
    with torch.inference_mode(), place.autocast():
        chosen = _chosen(max(map(partial(_warm, place=place), forwards, batches)), len(batches[0]), budget)
        passes: list[list[list[float]]] = []
        exits: list[list[Tensor]] | None = None
        began = time.perf_counter()
        while len(passes) < LEAST_PASSES or (
            len(passes) < MOST_PASSES and time.perf_counter() - began < budget * len(forwards)
        ):
            taken, stopped = _pass(forwards, batches, chosen, place)
            passes.append(taken)
            exits = exits or stopped
    assert exits is not None
    sizes = np.array([len(batches[0][number]) for number in chosen])
    by_network = np.array(passes).transpose(2, 0, 1)  # [networks, passes, batches]
    return [
        Times(own, sizes, torch.cat(found) if found else None) for own, found in zip(by_network, exits, strict=True)
    ]


def _warm(forward: Forward, batches: Sequence[Tensor], place: Place) -> float:
    """Seconds of a batch, when a network has run."""
    return min(timed(forward, batches[0], place)[1] for _ in range(WARM_UP))


def _chosen(seconds: float, count: int, budget: float) -> list[int]:
    """Which of ``count`` batches to run in ``budget`` seconds, of which one takes so many seconds."""
    most = max(LEAST_BATCHES, int(budget / LEAST_PASSES / max(seconds, 1e-9)))
    positions: list[int] = spread(count, most).tolist()
    return positions


def _pass(
    forwards: Sequence[Forward], batches: Sequence[Sequence[Tensor]], chosen: Sequence[int], place: Place
) -> tuple[list[list[float]], list[list[Tensor]]]:
    """Seconds of each batch and network [batches, networks], and for each network the exits of each batch, if any."""
    seconds: list[list[float]] = []
    exits: list[list[Tensor]] = [[] for _ in forwards]
    for number in chosen:
        row: list[float] = []
        for forward, own, found in zip(forwards, batches, exits, strict=True):
            (_, stopped), taken = timed(forward, own[number], place)
            row.append(taken)
            if stopped is not None:
                found.append(stopped.cpu())
        seconds.append(row)
    return seconds, exits
