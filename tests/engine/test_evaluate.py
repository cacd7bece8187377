"""Scores, against the plainest way to compute them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcompress.data import EvalBatches, Preprocess
from kdcompress.data.batches import MemoryImages
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import collect, compare, evaluate

engine = importlib.import_module("kdcompress.engine.evaluate")
CPU = Place(torch.device("cpu"), "fp32")


def split(images: int = 53, classes: int = 10, batch: int = 16) -> tuple[EvalBatches, Tensor, Tensor]:
    """Random pixels; the batches, and all of it at once."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (images * 16, 1), dtype=torch.uint8)
    labels = torch.randint(0, classes, (images,))
    memory = MemoryImages(pixels, labels, np.arange(images), Preprocess((4, 4), 1, (0.5,), (0.5,)))
    batches = EvalBatches(memory, batch)
    return batches, torch.cat([x for x, _ in batches]), labels


def linear(classes: int) -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes)).eval()


@pytest.mark.parametrize("classes", [2, 5, 6, 10])
@pytest.mark.parametrize("batch", [1, 16, 53, 100])
@torch.no_grad()
def test_scores_equal_a_naive_implementation(classes: int, batch: int) -> None:
    """The figure that every claim rests on; a last, smaller batch must count by its images."""
    batches, x, labels = split(classes=classes, batch=batch)
    model = linear(classes)
    scores = evaluate(model, batches, CPU)
    rows = model(x).tolist()
    ranks = [sorted(range(classes), key=lambda k, row=row: -row[k]) for row in rows]
    right = sum(rank[0] == label for rank, label in zip(ranks, labels.tolist(), strict=True))
    right5 = sum(label in rank[:5] for rank, label in zip(ranks, labels.tolist(), strict=True))
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[label]
        for row, label in zip(rows, labels.tolist(), strict=True)
    ]
    assert scores.n == 53
    assert scores.top1 == pytest.approx(100 * right / 53)
    assert scores.loss == pytest.approx(sum(losses) / 53, rel=1e-5)
    if classes > 5:
        assert scores.top5 == pytest.approx(100 * right5 / 53)
    else:
        assert scores.top5 is None  # always 100 % would look like a merit
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label, rank in zip(rows, labels.tolist(), ranks, strict=True):
        confidence = 1 / sum(math.exp(value - max(row)) for value in row)
        bins.setdefault(min(int(15 * confidence), 14), []).append((confidence, rank[0] == label))
    gaps = [abs(sum(confidence - hit for confidence, hit in found)) for found in bins.values()]
    assert scores.ece == pytest.approx(100 * sum(gaps) / 53, rel=1e-4)
    assert scores.images_per_second > 0
    assert scores.exits == ()


def test_compared_networks_score_as_alone_and_take_turns() -> None:
    """A machine that slows down half-way would make one network look faster than the other."""
    batches, _, _ = split()
    models = [linear(10), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 10)).eval()]
    seen: list[int] = []

    def recording(number: int) -> Callable[[Tensor], Tensor]:
        return lambda x: seen.append(number) or models[number](x)  # type: ignore[func-returns-value]

    both = compare([recording(0), recording(1)], batches, CPU, passes=2, exits=(0, 0))
    for scores, model in zip(both, models, strict=True):
        alone = evaluate(model, batches, CPU)
        assert (scores.top1, scores.loss, scores.n) == (alone.top1, alone.loss, alone.n)
    assert seen == [0, 1] * (len(seen) // 2)


def test_exits_are_counted() -> None:
    """Expected MACs are these counts times the cost of each member."""
    batches, x, _labels = split()
    model = linear(10)
    stage_of = {tuple(image.flatten().tolist()): number % 3 for number, image in enumerate(x)}

    def gated(batch: Tensor) -> tuple[Tensor, Tensor]:
        stages = [stage_of[tuple(image.flatten().tolist())] for image in batch]
        return model(batch), torch.tensor(stages)

    (scores,) = compare([gated], batches, CPU, exits=[4])
    assert scores.exits == (18, 18, 17, 0)
    assert scores.top1 == evaluate(model, batches, CPU).top1


def test_more_passes_change_only_the_speed() -> None:
    """Counting each pass would report several times the images."""
    batches, _, _ = split()
    calls: list[int] = []
    model = linear(10)

    def forward(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x)

    once, thrice = evaluate(model, batches, CPU), evaluate(forward, batches, CPU, passes=3)
    assert (thrice.top1, thrice.loss, thrice.n) == (once.top1, once.loss, once.n)
    assert calls == [16, *[16] * 3, *[16] * 3, *[16] * 3, *[5] * 3]  # a warm-up first


def test_passes_are_repeated_until_enough_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slow network and many images, half of the time went into a speed that was known."""
    batches, _, _ = split()
    calls: list[int] = []

    def timed(forward: Callable[[Tensor], Tensor], x: Tensor, _: Place) -> tuple[Tensor, float]:
        calls.append(len(x))
        return forward(x), 0.4 * engine.ENOUGH

    monkeypatch.setattr(engine, "timed", timed)
    assert evaluate(linear(10), batches, CPU, passes=2).n == 53
    assert calls == [16, 16, 16, 16, 16, 16, 5], "three batches twice, then once"


def test_speed_is_that_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images per second of the fastest pass, without reading and without the warm-up."""
    import kdcompress.engine.evaluate as module

    clock = iter(np.cumsum([0, 1, 50, 2, 50, 4, 50, 1, 50, 3, 50, 1]).tolist())  # pairs: from, to
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    batches, _, _ = split(images=30)
    scores = evaluate(linear(10), batches, CPU, passes=3)
    assert scores.images_per_second == pytest.approx(30 / (1 + 1))


@torch.no_grad()
def test_collect_gives_all_outputs_in_order() -> None:
    """Thresholds are searched on these: a row out of place belongs to another label."""
    batches, x, labels = split()
    model = linear(10)
    logits, found = collect(model, batches, CPU)
    torch.testing.assert_close(logits, model(x))
    assert torch.equal(found, labels)
    stacked, _ = collect(lambda x: torch.stack([model(x), -model(x)]), batches, CPU)
    assert stacked.shape == (2, 53, 10)
    torch.testing.assert_close(stacked[1], -model(x))


def test_shares_of_processes_cover_each_image_once() -> None:
    """Two processes that score the same images would weigh them double."""
    batches, x, _ = split()
    parts = [EvalBatches(batches.images, 16, rank, 2) for rank in range(2)]
    seen = torch.cat([x for part in parts for x, _ in part])
    assert len(seen) == 53
    assert sorted(seen.flatten(1).tolist()) == sorted(x.flatten(1).tolist())
