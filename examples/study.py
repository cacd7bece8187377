"""What the studies share: runs that are skipped where they are done, and tables made from their JSON alone."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Study:
    """Runs of the command line in one folder.

    Args:
        out: Where the runs and the JSON of their evaluations go.
        common: Options of every training.
    """

    out: Path
    common: Sequence[str]

    def score(self, name: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Train (or go on, or take what is there) and evaluate on the test split; the result of ``eval``."""
        file = self.out / f"{name}.json"
        if not file.exists():
            run = str(self.out / name)
            self.out.mkdir(parents=True, exist_ok=True)
            _kdcompress(*arguments, *self.common, "--out", run, "--resume")
            result = _kdcompress("eval", run)
            file.with_suffix(".tmp").write_text(result)
            file.with_suffix(".tmp").rename(file)
        return json.loads(file.read_text())

    def record(self, name: str) -> dict[str, Any]:
        """``run.json`` of a run."""
        return json.loads((self.out / name / "run.json").read_text())


def mean_std(values: Iterable[float]) -> str:
    """``88.12 ± 0.20``; a single value has no deviation."""
    found = list(values)
    spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.2f}{spread}"


def write_between(file: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace what stands between ``<!-- mark: begin -->`` and ``<!-- mark: end -->``."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, rest = file.read_text().split(begin)
    file.write_text("\n".join([before + begin, *lines, end]) + rest.split(end)[1])


def _kdcompress(*arguments: str) -> str:
    command = [sys.executable, "-m", "kdcompress", *arguments, "--json"]
    print("+ kdcompress", *arguments, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout
