"""Every value of every JSON file of run folders, changed to what it must not be: no command may end unforeseen.

``python tests/fuzz_records.py SEED SECONDS`` (PYTHONPATH=tests:src) tries as many of some 20,000 cases as there is time
for, and exits with 1 if one of them was answered by anything but a result or two lines of a user error.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cli.shell import SETTINGS, TINY
from kdcompress.cli import run

GONE = object()
VALUES: tuple[Any, ...] = (
    None, 3, -1, 0, 0.5, 1e308, 10**30, "x", "", "a\0b", "y" * 5000, "py:os:getcwd", [], {}, True, [[1]], [None],
    {"a": {}}, GONE,
)  # fmt: skip
ONE = ["--epochs", "1", "--quiet"]
# what is done with a run that was changed
COMMANDS: dict[str, list[list[str]]] = {
    "teacher": [["profile-flops", "RUN"], ["distill", "RUN", "--student", TINY, "--out", "new", *ONE]],
    "gated": [["profile-flops", "RUN"], ["gate-calibrate", "RUN", "--max-drop", "1", "--out", "new"], ["eval", "RUN"]],
    "single": [["add-res-student", "RUN", "--arch", TINY, "--out", "new", *ONE]],
    "cascade": [
        ["add-res-student", "single", "--arch", TINY, "--out", "RUN", "--resume", *ONE],
        ["gate-calibrate", "RUN", "--target-macs", "1.2", "--out", "new"],
    ],
    "pair": [["eval", "RUN"]],
}
MAKE = {
    "teacher": ["train-teacher", "--model", TINY],
    "single": ["distill", "teacher", "--method", "reskd", "--student", TINY],
    "cascade": ["add-res-student", "single", "--arch", TINY],
    "pair": ["distill", "teacher", "--method", "rkd-assistant", "--student", "resnet8_cifar"],
}


def cli(*arguments: str) -> tuple[int, str]:
    """Exit status and standard error."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        try:
            status = run(list(arguments))
        except Exception as escaped:
            return -1, f"escaped: {type(escaped).__name__}: {escaped}"
    return status, error.getvalue()


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value."""
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


def main(seed: int, seconds: float) -> int:
    os.environ.update(SETTINGS)
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    for name, command in MAKE.items():
        assert cli(*command, "--out", name, *ONE)[0] == 0
    assert cli("gate-calibrate", "cascade", "--threshold", "0.3", "--out", "gated")[0] == 0
    cases = [
        (name, file, path, value, command)
        for name, commands in COMMANDS.items()
        for file in ("config.json", "run.json")
        for path in places(json.loads(Path(name, file).read_text()))
        if path[0] not in ("digest", "digests")
        for value in VALUES
        for command in commands
    ]
    random.Random(seed).shuffle(cases)
    statuses: Counter[int] = Counter()
    bad, end = 0, time.monotonic() + seconds
    for name, file, path, value, command in cases:
        if time.monotonic() > end:
            break
        for left in ("changed", "new"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(name, "changed")
        record = json.loads(Path(name, "run.json").read_text())
        # no digests: as whoever does it on purpose would leave it
        rest = {key: part for key, part in record.items() if key not in ("digest", "digests")}
        Path("changed", "run.json").write_text(json.dumps(rest))
        content = rest if file == "run.json" else json.loads(Path(name, file).read_text())
        Path("changed", file).write_text(json.dumps(changed(content, path, value)))
        status, error = cli(*("changed" if part == "RUN" else part for part in command))
        statuses[status] += 1
        if status not in (0, 1, 2) or "KDCOMPRESS_DEBUG" in error:
            bad += 1
            print(command[0], name, file, *path, "deleted" if value is GONE else repr(value)[:40], "->", error[-300:])
    print(f"{sum(statuses.values())} of {len(cases)} cases, exit statuses {dict(statuses)}, {bad} unforeseen")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
