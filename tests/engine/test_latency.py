"""Milliseconds for one image."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcompress.data import Data, Preprocess, load_source
from kdcompress.engine import evaluate, latency
from kdcompress.engine.distributed import Place
from kdcompress.engine.latency import RUNS, WARM_UP, latency_ms
from kdcompress.options import EvalOptions

CPU = Place(torch.device("cpu"), "fp32")


@pytest.fixture(autouse=True)
def _as_many_as_users_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the tests time fewer images."""
    monkeypatch.setattr(latency, "RUNS", RUNS)


class Clock:
    """Seconds that a forward pass takes, one after the other; reading the clock takes none."""

    def __init__(self, seconds: Any) -> None:
        self.now, self.seconds, self.shapes = 0.0, iter(seconds), []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append((tuple(x.shape), float(x.sum())))
        self.now += next(self.seconds)
        return x

    def perf_counter(self) -> float:
        return self.now


def timed(seconds: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], Clock]:
    prep = Preprocess((8, 8), 1, (0.5,), (0.5,))
    batches = Data(load_source("digits"), prep, EvalOptions(), CPU.device).evaluation("test", 128)
    clock = Clock(seconds)
    monkeypatch.setattr(evaluate, "time", clock)
    return latency_ms(clock.forward, batches, CPU), clock


def test_median_and_tail_of_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over a batch is not what a camera waits for."""
    warm_up = [9.0] * WARM_UP
    found, clock = timed([*warm_up, *(0.001 * number for number in range(1, RUNS + 1))], monkeypatch)
    assert found == {"p50": pytest.approx(25.5), "p95": pytest.approx(47.55)}
    assert {shape for shape, _ in clock.shapes} == {(1, 1, 8, 8)}


def test_many_different_images_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that lets the first image exit early would look fast on all of them."""
    _, clock = timed(itertools.repeat(0.001), monkeypatch)
    assert len(clock.shapes) == WARM_UP + RUNS
    assert len({total for _, total in clock.shapes}) > RUNS // 2


def test_a_slow_network_is_not_run_for_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large network on one core would hold up eval by fifty of its images."""
    _, clock = timed(itertools.repeat(2.0), monkeypatch)
    assert len(clock.shapes) == 2 * WARM_UP
