"""Run folders that many tests need, made once; and the command line called in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdcompress
from cli.shell import FOREIGN, SETTINGS, TINY, Done, Stdin
from kdcompress import trust
from kdcompress.cli import run

Cli = Callable[..., Done]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and a user's plain environment."""
    for key in list(os.environ):
        if FOREIGN.match(key) and not key.startswith("PYTEST_"):
            monkeypatch.delenv(key)
    for key, value in {**SETTINGS, trust.VARIABLE: ""}.items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """``cli("eval", run, stdin=…)`` runs the command line in this process, in the folder ``here``."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def call(*arguments: object, stdin: str | bytes = "") -> Done:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin))
        capfd.readouterr()
        status = run([str(argument) for argument in arguments])
        return Done(status, *capfd.readouterr())

    yield call
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of a small pipeline on digits: teacher, single, cascade, gated. Never written to."""
    root = tmp_path_factory.mktemp("made")
    common = {"epochs": 1, "device": "cpu", "precision": "fp32"}
    kdcompress.train_teacher(model=TINY, out=root / "teacher", **common)
    kdcompress.distill(teacher=root / "teacher", method="reskd", student=TINY, out=root / "single", **common)
    kdcompress.add_res_student(run=root / "single", arch=TINY, out=root / "cascade", **common)
    kdcompress.gate_calibrate(run=root / "cascade", threshold=0.3, out=root / "gated", device="cpu", precision="fp32")
    return root
