"""What LW-KD's step costs over a plain one of the same student, bank and discriminator included::

    python examples/benchmarks/bench_lwkd.py --student resnet8_cifar --batch-size 128

Both steps in one process, turn by turn; prints one line of JSON. ``ratio`` is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from kdcompress.engine.distributed import start
from kdcompress.methods.base import StudentTask
from kdcompress.methods.lwkd import LwKdTask, SoftTargetBank
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet8_cifar")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    asked = parser.parse_args()
    place = start("auto", asked.precision)
    x = torch.randn(asked.batch_size, 3, 32, 32, device=place.device).contiguous(memory_format=torch.channels_last)
    y = torch.arange(asked.batch_size, device=place.device) % asked.classes

    def network() -> torch.nn.Module:
        spec = ModelSpec.parse(asked.student)
        return new_network(spec, num_classes=asked.classes, channels=3, size=(32, 32), seed=0).model

    def turn(task: StudentTask) -> Callable[[], float]:
        module = task.train().to(place.device).trainable_module.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

        def run() -> float:
            begin = time.perf_counter()
            for _ in range(asked.steps):
                with place.autocast():
                    loss = task(x, y)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loss.item()
            return (time.perf_counter() - begin) / asked.steps

        return run

    bank = SoftTargetBank(torch.randn(asked.classes, 16, asked.classes))
    plain, light = turn(SupervisedTask(network())), turn(LwKdTask(network(), bank))
    plain(), light()
    rounds = [(plain(), light()) for _ in range(asked.rounds)]
    result = {
        "student": asked.student,
        "classes": asked.classes,
        "batch_size": asked.batch_size,
        "precision": place.precision,
        "hardware": place.describe(),
        "plain_ms": round(1e3 * statistics.median(one for one, _ in rounds), 3),
        "light_ms": round(1e3 * statistics.median(two for _, two in rounds), 3),
        "ratio": round(statistics.median(two / one for one, two in rounds), 3),
    }
    print(json.dumps(result))
    if asked.table:
        shown = [f"`{asked.student}`", asked.classes, result["plain_ms"], result["light_ms"], result["ratio"]]
        lines = ["| student | classes | plain step, ms | LW-KD's, ms | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
        told = f"medians of {asked.rounds} rounds: of each step, and of the ratio in a round"
        hardware = f"{result['precision']}, {result['hardware']}; {told}."
        write_between(asked.table, "bench-lwkd", [*lines, f"| {' | '.join(map(str, shown))} |", "", hardware])


if __name__ == "__main__":
    main()
