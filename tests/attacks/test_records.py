"""Every value of every JSON file of run folders, changed to what it must not be: no command ends unforeseen."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Cli
from cli.shell import TINY
from kdcompress.runs import OTHERS, OWN

pytestmark = pytest.mark.attack("invalid values in a run folder")

GONE = object()
VALUES: tuple[Any, ...] = (
    None, 3, -1, 0, 0.5, 1e308, 10**30, "x", "", "a\0b", "y" * 5000, "py:os:getcwd", [], {}, True, [[1]], [None],
    {"a": {}}, GONE,
)  # fmt: skip
ONE = ["--epochs", "1", "--quiet"]
# what is done with a run that was changed
COMMANDS: dict[str, list[list[str]]] = {
    "teacher": [["profile-flops", "RUN"], ["distill", "RUN", "--student", TINY, "--out", "new", *ONE]],
    "gated": [
        ["profile-flops", "RUN"],
        ["gate-calibrate", "RUN", "--max-drop", "1", "--out", "new"],
        ["eval", "RUN"],
        ["report", "RUN", "--no-time"],
    ],
    "single": [["add-res-student", "RUN", "--arch", TINY, "--out", "new", *ONE]],
    "cascade": [
        ["add-res-student", "RUNS/single", "--arch", TINY, "--out", "RUN", "--resume", *ONE],
        ["gate-calibrate", "RUN", "--target-macs", "1.2", "--out", "new"],
    ],
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value; of a list to the first three."""
    keys = content if isinstance(content, dict) else range(min(len(content), 3)) if isinstance(content, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(content[key], (*path, key))


def changed(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """With one value changed."""
    made = copy.deepcopy(content)
    place: Any = made
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


def without_digests(file: Path) -> dict[str, Any]:
    """A JSON file of a run: whoever changes one on purpose leaves no digests."""
    return {key: part for key, part in json.loads(file.read_text()).items() if key not in (OWN, OTHERS)}


def test_a_record_with_a_value_that_cannot_be(
    cli: Cli, here: Path, runs: Path, many: Callable[[int, int], int]
) -> None:
    """Else a folder that was edited, or that another version made, ends in a traceback."""
    cases = [
        (name, file, path, value, command)
        for name, commands in COMMANDS.items()
        for file in ("config.json", "run.json")
        for path in places(without_digests(runs / name / file))
        for value in VALUES
        for command in commands
    ]
    random.Random(0).shuffle(cases)
    bad = []
    for name, file, path, value, command in cases[: many(30, 300)]:
        for left in ("changed", "new"):
            shutil.rmtree(here / left, ignore_errors=True)
        run = Path(shutil.copytree(runs / name, here / "changed"))
        for each in ("config.json", "run.json"):
            content = without_digests(run / each)
            (run / each).write_text(json.dumps(changed(content, path, value) if each == file else content))
        done = cli(*(part.replace("RUNS", str(runs)).replace("RUN", "changed") for part in command))
        if done.status not in (0, 1, 2) or "KDCOMPRESS_DEBUG" in done.err or "Traceback" in done.err:
            bad.append((command[0], name, file, path, value, done.err[-300:]))
    assert not bad
