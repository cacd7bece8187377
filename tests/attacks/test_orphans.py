"""Processes that read images die with the training that they read for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.shell import TINY, finished, photos, spawn, wait_for

pytestmark = pytest.mark.attack("kill -9 of a process with workers")
PROC = Path("/proc")


def children(pid: int) -> list[int]:
    found = []
    for process in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(process.name))
    return found


@pytest.mark.skipif(not PROC.is_dir(), reason="needs /proc")
def test_workers_die_with_their_parent(here: Path, many: Callable[[int, int], int]) -> None:
    """Half a gigabyte each stays in memory for a minute and more, and nobody knows whose they are."""
    data = photos(here / "photos", each=40)
    train = ["train-teacher", "--model", TINY, "--data", str(data), "--epochs", "1000", "--batch-size", "8"]
    for number in range(many(1, 5)):
        command = [*train, "--loading", "stream", "--workers", "2", "--out", str(here / f"run-{number}")]
        process = spawn(command, here)
        wait_for(process, "epoch 1/")
        workers: list[int] = []
        while len(workers) < 2:
            assert process.poll() is None
            workers = children(process.pid)
        process.kill()
        finished(process)
        end = time.monotonic() + 10
        while any((PROC / str(worker)).exists() for worker in workers):
            assert time.monotonic() < end, "workers outlive their parent"
            time.sleep(0.05)
