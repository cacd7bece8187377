"""Trainings on an idle machine and several at once: how many threads, and how long they spin.

python examples/benchmarks/bench_threads.py [--at-once 4] [--rounds 3] [--out examples/results/threads.json]

Each training is a command of its own. Settings take turns, so that a slow minute slows them all. Figures are images per
second of one training, the median over its epochs (all but the first), and over rounds. The table goes to standard
output.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS: dict[str, dict[str, str] | None] = {
    "kdcompress": {},
    "PyTorch's own": None,
    "`OMP_WAIT_POLICY=PASSIVE`": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(os.cpu_count())},
    "one thread": {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "300000"},
}
WORK = {"8 x 8": ["--epochs", "4"], "16 x 16": ["--input-size", "16", "--epochs", "2"]}


def train(folder: str, work: list[str], setting: dict[str, str] | None, count: int) -> list[float]:
    """Images per second of each of so many trainings that run at once."""
    own = {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "300000"} if setting is None else setting
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-m", "kdcompress", "train-teacher", "--model", "resnet20_cifar", "--precision", "fp32"]
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        outs = [Path(runs) / str(number) for number in range(count)]
        processes = [
            subprocess.Popen([*command, *work, "--quiet", "--out", str(out)], env={**kept, **own}, stdout=-3)
            for out in outs
        ]
        assert not any(process.wait() for process in processes)
        return [speed(out) for out in outs]


def speed(run: Path) -> float:
    with open(run / "metrics.csv") as file:
        rows = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    return statistics.median(rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for size, work in WORK.items():
                for count in (1, options.at_once):
                    for name, setting in SETTINGS.items():
                        column = f"{size}, {'alone' if count == 1 else f'{count} at once'}"
                        found.setdefault(name, {}).setdefault(column, []).extend(train(folder, work, setting, count))
    table = {name: {key: round(statistics.median(each)) for key, each in row.items()} for name, row in found.items()}
    columns = list(next(iter(table.values())))
    print(f"| threads | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}", sep="\n")
    for name, row in table.items():
        print(f"| {name} | {' | '.join(f'{row[column]:,}' for column in columns)} |")
    if options.out is not None:
        facts = {"cores": os.cpu_count(), "rounds": options.rounds, "machine": platform.machine(), "table": table}
        options.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
