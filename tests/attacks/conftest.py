"""What the attacks share: how many are tried, and runs to attack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import cli, here, runs  # noqa: F401  (fixtures)
from kdcompress.runs import CHECKPOINT, CONFIG, METRICS, OTHERS, OWN, RECORD, WEIGHTS, RunFolder


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``many(few, all)``: how many attacks a test tries, in the suite and for the table (``--many``)."""

    def count(few: int, every: int) -> int:
        number = every if request.config.getoption("--many") else few
        request.node.user_properties.append(("attacks", number))
        return number

    return count


@pytest.fixture
def copied(here: Path, runs: Path) -> Callable[[str], Path]:  # noqa: F811
    """A copy of a run, of which the runs beside it know nothing."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs / name, here / name))

    return copy


def rewrite(path: Path, content: object) -> None:
    """Write a JSON file of a run, and let the run take it for its own: who can write it can write its digests, too."""
    path.write_text(json.dumps(content))
    run = RunFolder(path.parent)
    if (run.path / RECORD).is_file():
        record = json.loads((run.path / RECORD).read_text())
        rest = {key: value for key, value in record.items() if key not in (OWN, OTHERS)}
        run.write_record(rest, run._present(CONFIG, WEIGHTS, METRICS, CHECKPOINT))
