"""What a step of distillation costs: bare, in our loop with a live teacher, and with targets computed once::

    python examples/benchmarks/bench_training.py resnet56_cifar:resnet20_cifar resnet20_cifar:resnet8_cifar,width=0.5 \\
        --precision fp32 bf16 --table examples/benchmarks/README.md

All loops run in one process, turn by turn and each round in another order, so that a noisy machine is noisy for all of
them. Prints a line of JSON for each pair of teacher and student: images per second, and as medians and quartiles over
the rounds the ratios of the speeds

* ``plain_loop``: our loop on labels / the bare student step;
* ``live``: our loop with a live teacher / bare steps of student and teacher;
* ``kept``: our loop with kept targets / the bare student step;
* ``res_student``: the same for a res-student after ``--members`` frozen networks like itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcompress.cache import ArrayStore
from kdcompress.data import Preprocess, TrainBatches
from kdcompress.data.batches import MemoryImages
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.fit import Trainer, memory_format_of
from kdcompress.engine.interrupt import StopSignal
from kdcompress.engine.plan import Plan
from kdcompress.engine.precision import Process
from kdcompress.engine.progress import Silent
from kdcompress.engine.targets import CachedBatches, Targets
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import TrainingOptions
from kdcompress.runs import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between

Turn = Callable[[], float]
VIEWS = 2
AGAINST = {"plain_loop": "bare", "live": "bare_with_teacher", "kept": "bare", "res_student": "bare"}


class Sum(nn.Module):
    """Frozen members, as a cascade runs them when nothing is skipped."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([member(x) for member in self.members]).sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=["resnet56_cifar:resnet20_cifar"], help="TEACHER:STUDENT")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--side", type=int, default=32, help="of the images")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    asked = parser.parse_args()
    Process.is_ours = True
    # lower precisions first: what oneDNN may use for them is settled with the first network that runs
    places = [start("auto", precision) for precision in sorted(asked.precision)]
    head = ["teacher, student", "arithmetic", "bare", "bare + teacher", "plain loop", "live", "kept", "res-student"]
    lines = [f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * 6]
    for pair, place in itertools.product(asked.pairs, places):
        teacher, _, student = pair.partition(":")
        result = _measured(teacher, student, place, asked)
        print(json.dumps(result), flush=True)
        speeds, ratios, ends = result["images_per_second"], result["ratios"], result["quartiles"]
        cells = [f"`{teacher}`, `{student}`", place.precision, speeds["bare"], speeds["bare_with_teacher"]]
        cells += [f"{ratios[name]:.2f} ({' to '.join(f'{end:.2f}' for end in ends[name])})" for name in AGAINST]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"Images per second of the bare steps, then the ratios; {asked.batch_size} images of {asked.side}² a step, "
        f"{asked.members} frozen members, median and quartiles of {asked.rounds} rounds; {places[0].describe()}.",
    ]
    if asked.table:
        write_between(asked.table, "bench-training", lines)


def _measured(teacher_spec: str, student_spec: str, place: Place, asked: argparse.Namespace) -> dict[str, Any]:
    def network(spec: str, seed: int = 0) -> nn.Module:
        size = (asked.side, asked.side)
        return new_network(ModelSpec.parse(spec), num_classes=10, channels=3, size=size, seed=seed).model

    options = TrainingOptions(epochs=10_000, batch_size=asked.batch_size, loading="memory")
    batches = _batches(asked, place, network(student_spec))
    teacher = Frozen(network(teacher_spec)).to(place.device)
    members = Frozen(Sum([network(student_spec, seed).eval() for seed in range(asked.members)])).to(place.device)
    tasks = {
        "plain_loop": SupervisedTask(network(student_spec)),
        "live": KdTask(network(student_spec), teacher),
        "kept": KdTask(network(student_spec), teacher),
        "res_student": ResKdTask(network(student_spec), members, teacher),
    }
    with tempfile.TemporaryDirectory() as folder:
        store = ArrayStore(Path(folder) / "targets", 1e12)
        turns: dict[str, Turn] = {
            "bare": _bare(network(student_spec), None, batches, place),
            "bare_with_teacher": _bare(network(student_spec), teacher, batches, place),
            "data": lambda: _timed(lambda: [None for _ in batches.epoch(0)], batches, place),
        }
        for name, task in tasks.items():
            source: Any = batches
            if name in ("kept", "res_student"):
                widths = dict.fromkeys(task.frozen(), 10)
                targets = Targets(task.frozen(), widths, batches, "random", store, place, print)
                source = CachedBatches(batches, targets, VIEWS)
                for view in range(VIEWS):
                    source.prepare(view, lambda: False)
            turns[name] = _ours(task, source, batches, options, place, RunFolder(Path(folder)))
        for turn in turns.values():
            turn()  # warm-up
        order, chance, rounds = list(turns), random.Random(0), []
        for _ in range(asked.rounds):
            chance.shuffle(order)  # else each would always be disturbed by the same neighbour
            rounds.append({name: turns[name]() for name in order})
    return {
        "teacher": teacher_spec,
        "student": student_spec,
        **{key: getattr(asked, key) for key in ("members", "batch_size", "side")},
        "precision": place.precision,
        "hardware": place.describe(),
        "images_per_second": {name: round(1 / statistics.median(row[name] for row in rounds)) for name in turns},
        "ratios": {name: round(statistics.median(_ratios(rounds, name)), 4) for name in AGAINST},
        "quartiles": {
            name: [round(value, 4) for value in statistics.quantiles(_ratios(rounds, name), n=4)[::2]]
            for name in AGAINST
        },
    }


def _ratios(rounds: list[dict[str, float]], name: str) -> list[float]:
    return [row[AGAINST[name]] / row[name] for row in rounds]


def _batches(asked: argparse.Namespace, place: Place, student: nn.Module) -> TrainBatches:
    """Images of noise, in memory, for as many whole batches as there are steps."""
    ids = np.arange(asked.batch_size * asked.steps)
    pixels = torch.randint(0, 256, (len(ids) * asked.side**2, 3), dtype=torch.uint8, device=place.device)
    labels = torch.from_numpy(ids % 10).to(place.device)
    images = MemoryImages(pixels, labels, ids, Preprocess.of(student))
    return TrainBatches(images, asked.batch_size, 0, "crop-flip")


def _bare(student: nn.Module, teacher: nn.Module | None, batches: TrainBatches, place: Place) -> Turn:
    """Nothing but forward, backward and update, on one batch again and again; in the layout that our loop has too."""
    layout = memory_format_of(student, place.device)
    student.train().to(place.device, memory_format=layout)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    x, y = next(iter(batches.epoch(0)))
    x = x.contiguous(memory_format=layout)

    def run() -> None:
        for _ in range(len(batches)):
            with place.autocast():
                wanted = None if teacher is None else teacher(x)
                logits = student(x).float()
                loss = nn.functional.cross_entropy(logits, y)
                if wanted is not None:
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
