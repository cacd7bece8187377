"""``kdcompress watch``: a training seen from another terminal."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

import kdcompress
from cli.conftest import Cli
from cli.forked import start

TINY = "lenet5,width=0.5"


def test_epochs_come_while_the_run_is_being_trained(here: Path) -> None:
    """A watcher that waits for the end is no watcher; one that stays after it blocks the script behind it."""
    nowhere, said, pipe = Path("/dev/null"), here / "said", here / "pipe"
    said.touch()
    os.mkfifo(pipe)
    command = ["train-teacher", "--model", TINY, "--epochs", "400", "--out", "run", "--quiet"]
    training = start(command, here, nowhere, nowhere)
    assert training.pid is not None
    while not (here / "run" / "metrics.csv").exists():
        assert training.is_alive()
        time.sleep(0.05)
    watching = start(["watch", "run"], here, pipe, said)
    with open(pipe) as lines:
        first = json.loads(lines.readline())
        assert training.is_alive()
        os.kill(training.pid, signal.SIGINT)
        rest = [json.loads(line) for line in lines]
    for process in (training, watching):
        process.join(120)
    rows = [first, *rest]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert (first["run"], first["epochs"]) == ("run", 400)
    with open(here / "run" / "metrics.csv") as file:
        assert [row["top1"] for row in rows] == [float(row["calibration_top1"]) for row in csv.DictReader(file)]
    assert watching.exitcode == 1
    assert "--resume" in said.read_text()


def test_a_finished_run_is_told_at_once(cli: Cli, here: Path) -> None:
    """In a table on a terminal, and with status 0."""
    kdcompress.train_teacher(model=TINY, data="digits", epochs=2, out="run")
    done = cli("watch", "run", "--no-json")
    assert done.status == 0
    assert done.out.splitlines()[0] == "run"
    assert done.out.splitlines()[2].split()[0] == "1/2"
    assert [row.epoch for row in kdcompress.watch(run="run")] == [1, 2]


def test_all_trainings_of_a_command_are_followed(cli: Cli, here: Path) -> None:
    """Of a cascade made in one command, the outer folder has rows at the very end only, and of one member."""
    kdcompress.train_teacher(model="lenet5", data="digits", epochs=1, out="teacher")
    kdcompress.distill(
        teacher="teacher", method="reskd", student=TINY, res_students=1, arch=(TINY,), epochs=1, out="grown"
    )
    rows = [json.loads(line) for line in cli("watch", "grown").out.splitlines()]
    assert [(row["run"], row["epoch"]) for row in rows] == [("member-0", 1), ("member-1", 1)]


@pytest.mark.parametrize("what", ["nowhere", "."])
def test_no_such_run(cli: Cli, here: Path, what: str) -> None:
    cli("watch", what).error("There is no run", "--out", status=1)
