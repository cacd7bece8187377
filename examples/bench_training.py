"""What a step of distillation costs: bare, in our loop with a live teacher, and with targets computed once::

    python examples/bench_training.py --student resnet20_cifar --teacher resnet56_cifar --batch-size 128

All loops run in one process, turn by turn, so that a noisy machine is noisy for all of them. Prints one line of JSON:
images per second, and as medians over the rounds the ratios

* ``plain_loop``: our loop on labels / the bare student step;
* ``live``: our loop with a live teacher / bare steps of student and teacher;
* ``kept``: our loop with kept targets / the bare student step;
* ``res_student``: the same for a res-student after ``--members`` frozen networks like itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcompress.cache import ArrayStore
from kdcompress.data import Data, TrainBatches
from kdcompress.data.sources import ArrayImages, DataSource
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.fit import Plan, Trainer
from kdcompress.engine.interrupt import StopSignal
from kdcompress.engine.progress import Silent
from kdcompress.engine.targets import Targets, ToldBatches
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import TrainingOptions
from kdcompress.runs import RunFolder

Turn = Callable[[], float]
VIEWS = 2


class Sum(nn.Module):
    """Frozen members, as a cascade runs them when nothing is skipped."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x) for member in self.members]).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet20_cifar")
    parser.add_argument("--teacher", default="resnet56_cifar")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--side", type=int, default=32, help="of the images")
    asked = parser.parse_args()
    place = start("auto", asked.precision)

    def network(spec: str, seed: int = 0) -> nn.Module:
        size = (asked.side, asked.side)
        return new_network(ModelSpec.parse(spec), num_classes=10, channels=3, size=size, seed=seed).model

    options = TrainingOptions(epochs=10_000, batch_size=asked.batch_size, loading="memory")
    batches = _batches(asked, options, place, network(asked.student))
    teacher = Frozen(network(asked.teacher)).to(place.device)
    members = Frozen(Sum([network(asked.student, seed).eval() for seed in range(asked.members)])).to(place.device)
    tasks = {
        "plain_loop": SupervisedTask(network(asked.student)),
        "live": KdTask(network(asked.student), teacher),
        "kept": KdTask(network(asked.student), teacher),
        "res_student": ResKdTask(network(asked.student), members, teacher),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = ArrayStore(Path(folder) / "targets", 1e12)
        turns: dict[str, Turn] = {
            "bare": _bare(network(asked.student), None, batches, place),
            "bare_with_teacher": _bare(network(asked.student), teacher, batches, place),
            "data": lambda: _timed(lambda: [None for _ in batches.epoch(0)], batches, place),
        }
        for name, task in tasks.items():
            source: Any = batches
            if name in ("kept", "res_student"):
                targets = Targets(task.frozen(), batches, "random", 10, store, place, print)
                source = ToldBatches(batches, targets, VIEWS)
                for view in range(VIEWS):
                    source.prepare(view, lambda: False)
            turns[name] = _ours(task, source, batches, options, place, RunFolder(Path(folder)))
        for turn in turns.values():
            turn()  # warm-up
        rounds = [{name: turn() for name, turn in turns.items()} for _ in range(asked.rounds)]
    against = {"plain_loop": "bare", "live": "bare_with_teacher", "kept": "bare", "res_student": "bare"}
    result = {
        **{key: getattr(asked, key) for key in ("student", "teacher", "members", "batch_size", "side")},
        "precision": place.precision,
        "hardware": place.describe(),
        "images_per_second": {name: round(1 / statistics.median(row[name] for row in rounds)) for name in turns},
        "ratios": {
            name: round(statistics.median(row[base] / row[name] for row in rounds), 4) for name, base in against.items()
        },
    }
    print(json.dumps(result))


def _batches(asked: argparse.Namespace, options: TrainingOptions, place: Place, student: nn.Module) -> TrainBatches:
    """Images of noise, in memory."""
    from kdcompress.data import Preprocess

    images = round(asked.batch_size * asked.steps / 0.9)
    pixels = np.random.default_rng(0).integers(0, 256, (images, asked.side, asked.side, 3), dtype=np.uint8)
    source = DataSource("random", ArrayImages(pixels, np.arange(images) % 10), None, 10, None, "random")
    return Data(source, Preprocess.of(student), options, place.device).training(asked.batch_size, 0, "crop-flip")


def _bare(student: nn.Module, teacher: nn.Module | None, batches: TrainBatches, place: Place) -> Turn:
    """Nothing but forward, backward and update, on one batch again and again."""
    student.train().to(place.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, y = next(iter(batches.epoch(0)))
    x = x.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(len(batches)):
            with place.autocast():
                logits = student(x).float()
                loss = nn.functional.cross_entropy(logits, y)
                if teacher is not None:
                    wanted = teacher(x)
                    loss = loss + nn.functional.kl_div(logits.log_softmax(1), wanted.softmax(1), reduction="batchmean")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return lambda: _timed(run, batches, place)


def _ours(
    task: StudentTask, source: Any, batches: TrainBatches, options: TrainingOptions, place: Place, run: RunFolder
) -> Turn:
    """An epoch of our loop, without the evaluation that follows it."""
    plan = dataclasses.replace(Plan.of(options, len(batches.images.ids)), lr=0.01)
    trainer = Trainer(task, source, options, plan, place, run, num_classes=10)

    def epoch() -> None:
        with StopSignal() as stop:
            trainer.run_epoch(stop, Silent())
        trainer.next_epoch()

    return lambda: _timed(epoch, batches, place)


def _timed(work: Callable[[], Any], batches: TrainBatches, place: Place) -> float:
    """Seconds an image."""
    began = time.perf_counter()
    work()
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    return (time.perf_counter() - began) / len(batches.images.ids)


if __name__ == "__main__":
    main()
