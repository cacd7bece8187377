"""Networks timed beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcompress.engine import evaluate, race
from kdcompress.engine.distributed import Place
from kdcompress.engine.race import LEAST_BATCHES, LEAST_PASSES, MOST_PASSES, Times

CPU = Place(torch.device("cpu"), "fp32")


class Clock:
    """Time that passes only while a network runs: so many seconds for an image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.runs = 0.0, list[tuple[str, float]]()
        monkeypatch.setattr(evaluate, "time", self)
        monkeypatch.setattr(race, "time", self)

    def network(self, name: str, seconds: float, exits: int = 0) -> Any:
        def forward(images: Tensor) -> tuple[Tensor, Tensor | None]:
            self.now += seconds * len(images)
            self.runs.append((name, float(images[0])))
            return images, images.long() % exits if exits else None

        return forward

    def perf_counter(self) -> float:
        return self.now


def batches(count: int, size: int = 1) -> list[Tensor]:
    return list(torch.arange(float(count * size)).split(size))


def test_time_is_compared_on_the_same_images_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy for a second would make one of two equal networks look slow."""
    clock = Clock(monkeypatch)
    parts = batches(7, 4)
    found = race.race([clock.network("slow", 0.01), clock.network("fast", 0.0025)], [parts, parts], CPU)
    measured = clock.runs[-2 * len(parts) :]
    assert measured == [(name, float(part[0])) for part in parts for name in ("slow", "fast")]
    slow, fast = found
    assert fast.over(slow) == pytest.approx(0.25)
    assert slow.mean_ms == slow.percentile_ms(50) == pytest.approx(40)
    assert fast.images_per_second == pytest.approx(400)


@pytest.mark.parametrize(("seconds", "passes", "count"), [(1e-6, MOST_PASSES, 40), (2.0, LEAST_PASSES, LEAST_BATCHES)])
def test_passes_and_images_suit_the_slowest(
    seconds: float, passes: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large network would take an hour, and a small one be measured once."""
    clock = Clock(monkeypatch)
    parts = batches(40)
    found = race.race([clock.network("one", seconds), clock.network("other", seconds / 2)], [parts, parts], CPU)
    assert [each.seconds.shape for each in found] == [(passes, count)] * 2
    ran = {image for _, image in clock.runs[-2 * count :]}
    assert len(ran) == count
    assert {0.0, 39.0} <= ran  # from all over them


def test_exits_are_those_of_the_images_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of the MACs would be that of other images."""
    clock = Clock(monkeypatch)
    parts = batches(4, 3)
    gated, full = race.race([clock.network("gated", 0.1, exits=3), clock.network("full", 0.1)], [parts, parts], CPU)
    assert gated.rates(3) == pytest.approx([1 / 3] * 3)
    assert full.rates(3) == [0, 0, 1]


def test_one_slow_moment_does_not_count() -> None:
    """A single pause of the machine would decide a comparison."""
    seconds = np.full((5, 4), 0.01)
    seconds[2, 1] = 3.0
    times, other = Times(seconds, np.full(4, 2), None), Times(np.full((5, 4), 0.02), np.full(4, 2), None)
    assert times.images_per_second == pytest.approx(200)
    assert times.over(other) == pytest.approx(0.5)
    assert times.mean_ms == pytest.approx(10)
