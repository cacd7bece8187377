"""What the studies share: runs that are skipped where they are done, and tables made from their JSON alone."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdcompress
from kdcompress.runs import RunFolder

TRAININGS = ("train-teacher", "distill", "add-res-student", "polish")
PLACES = ("run", "data", "teacher", "reference")  # of one machine; what is kept is for all


@dataclass(frozen=True)
class Study:
    """Runs of the command line, and what is kept of them: all that a table needs, in a file that fits beside it.

    A run whose results are kept is not trained again, even where its folder is gone: a study may go on on another
    machine with nothing but the file. Where others stand on such a run, it is trained again for them.

    Args:
        out: Where the runs go.
        kept: The file of what they found, a run a line.
        common: Options of every training, unless it has its own.
        jobs: Trainings at a time. On a CPU they share its cores: two of one thread each are faster than one of two
            after the other, the more so the narrower the networks are.
        settings: What must be the same for all rows of a table.
        environment: Of the commands, besides that of the study.
    """

    out: Path
    kept: Path
    common: Sequence[str] = ()
    jobs: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _making: defaultdict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def __post_init__(self) -> None:
        for folder in (self.out, self.kept.parent):
            folder.mkdir(parents=True, exist_ok=True)
        before = json.loads(self.kept.read_text())["settings"] if self.kept.exists() else dict(self.settings)
        before.pop("precision", None)  # of an earlier version: each training has its own
        if before != dict(self.settings):
            sys.exit(
                f"{self.kept} is of {before}, not of {dict(self.settings)}. Give other --results, or those settings."
            )

    @classmethod
    def of(cls, given: argparse.Namespace) -> Study:
        """That of :func:`arguments`."""
        common = ["--data", given.data, "--epochs", str(given.epochs), "--precision", given.precision, "--quiet"]
        common += ["--compile"] if given.compile else []
        settings = {"epochs": given.epochs}
        return cls(given.out, given.results or given.out / "results.json", common, given.jobs, settings)

    def run(self, runs: Mapping[str, Sequence[str]], score: bool = True) -> None:
        """Do what is not done yet, by name and arguments and in this order, and evaluate it on the test split.

        A run may stand on others of the same mapping that come before it, by the paths that :meth:`path` gives.

        Args:
            score: False where something is to be chosen: the test split is no place for that.
        """
        stopped = threading.Event()

        def once(name: str) -> None:
            try:
                if stopped.is_set() or ("eval" if score else "training") in self._kept(name, runs[name]):
                    return
                self._ensure(name, runs, stopped)
                if not stopped.is_set():
                    found = self.call("eval", self.path(name)) if score else None
                    self.keep(name, found, runs[name])
            except BaseException:
                stopped.set()  # at once: another thread may be about to take the next one
                raise

        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(once, name) for name in runs]
            try:
                for future in futures:
                    future.result()
            finally:
                stopped.set()

    def measure(
        self, name: str, of: str, runs: Mapping[str, Sequence[str]], measured: Callable[[str], dict[str, Any]]
    ) -> None:
        """Keep under a name what a function finds out about one of the runs, given its path."""
        if name not in self.results():
            self._ensure(of, runs, threading.Event())
            self.keep(name, measured(self.path(of)))

    def path(self, name: str) -> str:
        """Of a run, as its own command and those after it are told."""
        return str(self.out / name)

    def folder(self, name: str) -> RunFolder:
        """That of a run."""
        return RunFolder(self.out / name)

    def results(self) -> dict[str, dict[str, Any]]:
        """By run: its ``arguments``, ``eval`` of the test split where it was asked for, and ``training``."""
        return json.loads(self.kept.read_text())["runs"] if self.kept.exists() else {}

    def result(self, name: str) -> dict[str, Any]:
        """What ``eval`` said of a run."""
        return self.results()[name]["eval"]

    def training(self, name: str) -> dict[str, Any]:
        """What the command said that made it; with ``hardware``, ``teacher``, and the seconds of each epoch."""
        return self.results()[name]["training"]

    def machines(self) -> str:
        """Precision and hardware of all trainings, for a caption: a study may go on on another machine."""
        trained = [each["training"] for each in self.results().values() if "training" in each]
        known = (f"{each['precision']}, on {each['hardware']}" for each in trained if each.get("precision"))
        return "; ".join(dict.fromkeys(known)) or "not trained yet"

    def keep(self, name: str, found: dict[str, Any] | None, arguments: Sequence[str] = ()) -> None:
        """Write down what a run is and what was found of it, whole or not at all."""
        entry: dict[str, Any] = {"arguments": self._portable(arguments)}
        if found is not None:
            entry["eval"] = _without_places(found)
        if self.folder(name).is_finished:
            entry["training"] = self._training(name)
        with self._lock:
            results = {**self.results(), name: entry}
            data = {found["training"]["data_fingerprint"] for found in results.values() if "training" in found}
            if len(data - {None}) > 1:
                sys.exit(f"{self.kept} has results of other data than {name}. Give other --results, or that data.")
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results))
            new = self.kept.with_suffix(".tmp")
            new.write_text(f'{{"settings": {json.dumps(dict(self.settings))}, "runs": {{\n{lines}\n}}}}\n')
            new.rename(self.kept)

    def call(self, *arguments: str) -> dict[str, Any]:
        """What a command prints; ends the study if it fails."""
        command = [sys.executable, "-m", "kdcompress", *arguments, "--json"]
        sys.stderr.write(f"+ kdcompress {shlex.join(arguments)}\n")  # one piece, for jobs write at the same time
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} if self.jobs > 1 else {}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads, **self.environment}
        )
        if done.returncode:
            sys.exit(done.returncode)
        return json.loads(done.stdout)

    def _kept(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """What is known of a run, and that it is the one that is asked for."""
        kept = self.results().get(name)
        if kept is not None and kept["arguments"] != self._portable(arguments):
            was = shlex.join(kept["arguments"])
            sys.exit(f"{self.kept} has {name} by other arguments: {was}. Give other --results, or those arguments.")
        return kept or {}

    def _portable(self, arguments: Sequence[str]) -> list[str]:
        """A command as it is on any machine: of paths the names alone."""
        own = f"{self.out}{os.sep}"
        places = [each.startswith(own) or Path(each).is_absolute() or Path(each).exists() for each in arguments]
        return [Path(each).name if place else each for each, place in zip(arguments, places, strict=True)]

    def _ensure(self, name: str, runs: Mapping[str, Sequence[str]], stopped: threading.Event) -> None:
        """That the folder of a run is there, and of those it stands on; whoever needs a run in hand waits for it."""
        with self._making[name]:
            if self.folder(name).is_finished:
                return
            bases = {self.path(each): each for each in runs}
            for argument in runs[name]:
                if argument in bases:
                    self._ensure(bases[argument], runs, stopped)
            if not stopped.is_set():
                self._make(name, runs[name])

    def _make(self, name: str, arguments: Sequence[str]) -> None:
        command, *own = arguments  # its own options last: of two that are the same, the later one counts
        common = self.common if command in TRAININGS else []
        self.call(command, *common, *own, "--out", self.path(name), "--resume")

    def _training(self, name: str) -> dict[str, Any]:
        run = self.folder(name)
        record = run.record()
        found = {
            **record["result"],
            "hardware": record.get("hardware"),
            "data_fingerprint": record.get("data_fingerprint"),
        }
        found.pop("curve", None)
        for row in found.get("contenders") or []:  # of a teacher that is a file, the name alone
            row["networks"] = Path(row["networks"]).name if Path(row["networks"]).is_absolute() else row["networks"]
        if record.get("teacher"):
            found["teacher"] = record["teacher"]
        metrics = run.path / "metrics.csv"
        if metrics.exists():
            with open(metrics) as file:
                found["epoch_seconds"] = [float(row["seconds"]) for row in csv.DictReader(file)]
        return _without_places(found)


def _without_places(found: dict[str, Any]) -> dict[str, Any]:
    """Results as they are wherever the runs lie."""
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in found.items()
        if key not in PLACES or isinstance(value, dict)
    }


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
    parser.add_argument("--precision", default="auto", help="of the trainings; the caption names those that were used")
    parser.add_argument("--compile", action="store_true", help="by torch.compile: worth it in long trainings")
    parser.add_argument("--results", type=Path, help="file that keeps what was found (default: OUT/results.json)")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    return parser


def data_name(given: argparse.Namespace) -> str:
    """Of the data, for a table: that of their folder."""
    name = Path(given.data).name
    return {"cifar10": "CIFAR-10", "tiny100": "tiny100 (100 classes)"}.get(name, name)


def mean_std(values: Iterable[float]) -> str:
    """``88.12 ± 0.20``; a single value has no deviation."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def count_of(seeds: int) -> str:
    """``3 seeds``, for a table."""
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def spread_over(given: argparse.Namespace) -> str:
    """What the values of a table are, for its caption."""
    return count_of(given.seeds) + (", mean ± standard deviation" if given.seeds > 1 else "")


def titled(name: str, found: Sized, given: argparse.Namespace) -> str:
    """The name of a row, and how many seeds it has where some are still to come."""
    return name if len(found) == given.seeds else f"{name} ({count_of(len(found))})"


def teacher_of(given: argparse.Namespace) -> list[str]:
    """The teacher that a study was given, as the commands take it."""
    return [given.teacher, *(["--teacher-arch", given.arch] if given.arch else [])]


def nearest(family: str, macs: float, size: str) -> str:
    """The spec of one of our CIFAR networks, of the width whose MACs come nearest.

    Args:
        size: Of the images, ``CxHxW``.
    """
    specs = [f"{family},width={channels / 16}" for channels in range(2, 33)]
    return min(specs, key=lambda spec: abs(kdcompress.profile_flops(model=spec, input_size=size).macs - macs))


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
