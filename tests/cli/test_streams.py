"""Streams that are closed, full or without a reader, and terminals that hang up: the work goes on, or is saved."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from cli.conftest import Cli
from cli.forked import Forked, start
from cli.shell import TINY, finished, shell, wait_for
from kdcompress import streams
from kdcompress.engine.interrupt import StopSignal

pytestmark = pytest.mark.attack("streams that are closed or full, terminals that hang up")

TRAIN = f"kdcompress train-teacher --model {TINY}"


def test_a_training_outlives_its_streams(here: Path) -> None:
    """Else ``2>&1 | head -1``, a full log or a closed terminal ends a night's training half-way, without a word."""
    (here / "full.json").touch()
    os.mkfifo(here / "pipe")
    train = TRAIN.split()[1:]
    full = start([*train, "--epochs", "1", "--out", "full"], here, here / "full.json", Path("/dev/full"))
    head = start([*train, "--epochs", "2", "--out", "head"], here, here / "pipe", here / "pipe")
    with open(here / "pipe") as reader:
        assert reader.readline().startswith("Training with")
    done = shell(f'{TRAIN} --epochs 1 --out none <&- >&- 2>&-; echo "none $?"', here)
    for process in (full, head):
        process.join(120)
    assert (full.exitcode, head.exitcode, done.out) == (0, 1, "none 1\n")
    assert done.err == "", "what was to be lost came elsewhere"
    assert json.loads((here / "full.json").read_text())["run"] == str(here / "full")
    for name, epochs in (("full", 1), ("head", 2), ("none", 1)):
        assert json.loads((here / name / "run.json").read_text())["status"] == "finished"
        assert len((here / name / "metrics.csv").read_text().splitlines()) == 1 + epochs
        left = {path.name for path in (here / name).iterdir()}
        assert left == {"config.json", "metrics.csv", "model.safetensors", "run.json"}, "a stream went into a file"


def test_a_terminal_that_hangs_up(here: Path) -> None:
    """Else closing a laptop costs the epoch in hand, and a broken connection looks like a crash."""
    run = here / "run"
    process = Forked([*TRAIN.split()[1:], "--epochs", "500", "--out", str(run)], here)
    wait_for(process, "epoch 1/")
    process.send_signal(signal.SIGHUP)
    done = finished(process)
    assert done.status == 130
    assert f"--resume --out {run}" in done.err
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > 0


def test_nohup_stays_what_it_is(cli: Cli) -> None:
    """Else ``nohup`` protects a training from nothing."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert cli("data", "digits").status == 0
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert cli("data", "digits").status == 0
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested


def test_what_cannot_be_written_is_lost(tmp_path: Path) -> None:
    """Else a progress bar ends what it shows."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(io.BufferedWriter(streams._Lossy(writer, "w"))) as lossy:
        print("progress", file=lossy, flush=True)
    with streams._Lossy(str(tmp_path / "log"), "w") as whole:
        assert whole.write(b"all of it") == 9
    assert (tmp_path / "log").read_bytes() == b"all of it"


def test_a_pipe_that_is_full_and_does_not_wait() -> None:
    """Else a terminal that was made non-blocking by another program ends the training."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with streams._Lossy(writer, "w") as full:
        for _ in range(40):
            assert full.write(b"x" * 4096) == 4096
    os.close(reader)


def test_undecodable_names_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else names that are no text of the terminal's encoding end in an error of encoding."""
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    streams.secure()
    print("caf\udce9", file=sys.stderr, flush=True)
    assert sys.stderr.fileno() == 2
