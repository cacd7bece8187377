"""What the studies share: runs that are skipped where they are done, and tables made from their JSON alone."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Study:
    """Runs of the command line in one folder.

    Args:
        out: Where the runs and the JSON of their evaluations go.
        common: Options of every training, unless it has its own.
        jobs: Trainings at a time. On a CPU they share its cores: two of one thread each are faster than one of two
            after the other, the more so the narrower the networks are.
    """

    out: Path
    common: Sequence[str]
    jobs: int = 1

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, given: argparse.Namespace) -> Study:
        """That of :func:`arguments`."""
        common = ["--data", given.data, "--epochs", str(given.epochs), "--precision", given.precision, "--quiet"]
        common += ["--compile"] if given.compile else []
        return cls(given.out, common, given.jobs)

    def run(self, runs: Mapping[str, Sequence[str]], score: bool = True) -> None:
        """Train what is not done yet, by name and arguments and in this order, and evaluate it on the test split.

        Args:
            score: False where something is to be chosen: the test split is no place for that.
        """
        stopped = threading.Event()

        def run(name: str, arguments: Sequence[str]) -> None:
            if stopped.is_set():
                return
            try:
                self._run(name, arguments, score)
            except BaseException:
                stopped.set()  # at once: another thread may be about to take the next one
                raise

        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(run, *each) for each in runs.items()]
            try:
                for future in futures:
                    future.result()
            finally:
                stopped.set()

    def keep(self, name: str, result: str) -> None:
        """Write a result down, whole or not at all."""
        file = self.out / f"{name}.json"
        file.with_suffix(".tmp").write_text(result)
        file.with_suffix(".tmp").rename(file)

    def done(self, names: Iterable[str]) -> list[str]:
        """Those of them that are scored."""
        return [name for name in names if (self.out / f"{name}.json").exists()]

    def result(self, name: str) -> dict[str, Any]:
        """What ``eval`` said of a run."""
        return json.loads((self.out / f"{name}.json").read_text())

    def record(self, name: str) -> dict[str, Any]:
        """``run.json`` of a run."""
        return json.loads((self.out / name / "run.json").read_text())

    def _run(self, name: str, arguments: Sequence[str], score: bool) -> None:
        file = self.out / f"{name}.json"
        if file.exists():
            return
        run = str(self.out / name)
        command, *own = arguments  # its own options last: of two that are the same, the later one counts
        self.call(command, *self.common, *own, "--out", run, "--resume")
        if score:
            self.keep(name, self.call("eval", run))

    def call(self, *arguments: str) -> str:
        """What a command prints; ends the study if it fails."""
        command = [sys.executable, "-m", "kdcompress", *arguments, "--json"]
        sys.stderr.write(f"+ kdcompress {shlex.join(arguments)}\n")  # one piece, for jobs write at the same time
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} if self.jobs > 1 else {}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
        if done.returncode:
            sys.exit(done.returncode)
        return done.stdout


def arguments(doc: str | None, epochs: int) -> argparse.ArgumentParser:
    """The arguments that all studies have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", help="model spec of a teacher that is a checkpoint")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time; their seconds are then those of a part"
    )
    parser.add_argument("--precision", default="auto", help="give one, where the machine may change on the way")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: worth it in long trainings")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    return parser


def mean_std(values: Iterable[float]) -> str:
    """``88.12 ± 0.20``; a single value has no deviation."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def teacher_of(given: argparse.Namespace) -> list[str]:
    """The teacher that a study was given, as the commands take it."""
    return [given.teacher, *(["--teacher-arch", given.arch] if given.arch else [])]


def show(lines: Sequence[str], given: argparse.Namespace, mark: str) -> None:
    """Print a table, and write it where a study was told to."""
    print("\n".join(lines))
    if given.table:
        write_between(given.table, mark, lines)


def write_between(file: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- mark: begin -->`` and ``<!-- mark: end -->``."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, rest = file.read_text().split(begin)
    file.write_text("\n".join([before + begin, *lines, end]) + rest.split(end)[1])
