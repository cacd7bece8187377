"""Threads: as many as there are free cores, and the user's own choice above all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cli.shell import TINY
from engine.test_fit import CPU
from heard import Heard
from kdcompress import threads
from kdcompress.api.claimed import claimed
from kdcompress.cli import run as command_line
from kdcompress.engine.cores import take_as_before, take_free_cores
from kdcompress.engine.precision import Process
from kdcompress.options import TrainTeacherOptions
from kdcompress.runs import RunFolder


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a command's own, and nothing was chosen."""
    monkeypatch.setattr(Process, "is_ours", True)
    monkeypatch.setattr(Process, "has_chosen_threads", False)
    monkeypatch.delenv(threads.COUNT, raising=False)
    former = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    yield
    torch.set_num_threads(former)


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_how_long_threads_spin(given: dict[str, str]) -> None:
    """Several trainings at once are slower than one; and what the user has set must stay."""
    environment = dict(given)
    threads.spin_less(environment)
    assert environment == (given or {"GOMP_SPINCOUNT": str(threads.SPINS)})


@pytest.mark.parametrize(
    ("others", "machine", "own", "free"), [(0, 8, 8, 8), (3, 8, 8, 5), (9, 8, 8, 1), (30, 64, 4, 4)]
)
def test_free_cores(others: int, machine: int, own: int, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as cores on a busy machine wait for each other; one on an idle one wastes it."""
    monkeypatch.setattr(threads, "running", lambda: others)
    monkeypatch.setattr(threads, "available", lambda: own)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert threads.free_cores() == (free, own)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("", 4)])
def test_a_containers_quota(quota: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container of two cores on a machine of 64 would get 64 threads."""
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert threads.available() == cores


def test_commands_of_the_same_pipeline_do_not_count(tmp_path: Path) -> None:
    """The first command of a pipeline would leave a core to those that only wait for it."""
    if not threads.PROC.is_dir():
        pytest.skip("needs /proc")
    look = "import sys, time; time.sleep(0.3); from kdcompress.threads import _pipeline; "
    look += "print(*_pipeline(), file=sys.stderr)"
    script = f"{sys.executable} -c '{look}' | cat | cat"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert len(set(done.stderr.split())) == 2, done.stderr


def test_others_are_counted() -> None:
    """A machine on which another training runs would be taken for idle."""
    if not threads.PROC.is_dir():
        pytest.skip("needs /proc")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        until = time.monotonic() + 60
        while threads.running() < 2:
            assert time.monotonic() < until, "three that run are not seen"
            time.sleep(0.1)
        assert threads.free_cores()[0] < max(2, threads.available())
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_a_command_chooses_once_and_says_so(ours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each training of a growing cascade would choose again, and a resumed one differ in the last bits."""
    monkeypatch.setattr(threads, "free_cores", lambda: (2, 4))
    reporter = Heard()
    reporter.detail = reporter.note  # type: ignore[method-assign]
    take_free_cores(CPU, reporter)
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "free_cores", lambda: (1, 4))
    take_free_cores(CPU, reporter)
    assert torch.get_num_threads() == 2
    assert reporter.notes == ["Computing on 2 of 4 cores; OMP_NUM_THREADS sets another number."]


@pytest.mark.parametrize("whose", ["the user's", "another process's"])
def test_threads_of_libraries_and_users_are_left_alone(ours: None, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """A notebook's threads, or those that the user asked for, would be taken away."""
    if whose == "the user's":
        monkeypatch.setenv(threads.COUNT, "1")
    else:
        monkeypatch.setattr(Process, "is_ours", False)
    monkeypatch.setattr(threads, "free_cores", lambda: (2, 4))
    before, reporter = torch.get_num_threads(), Heard()
    take_free_cores(CPU, reporter)
    assert torch.get_num_threads() == before
    take_as_before(CPU, before + 1, reporter)
    assert torch.get_num_threads() == before
    assert [f"started with {before + 1} threads" in note for note in reporter.notes] == [True]


def test_a_resumed_run_has_the_threads_that_it_started_with(
    ours: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed on a busier machine, it would end with other weights than an unbroken one."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_record({"status": "unfinished", "threads": 2})
    monkeypatch.setattr(threads, "free_cores", lambda: (1, 2))
    take_free_cores(CPU, Heard())
    with claimed(TrainTeacherOptions(out=str(run.path), resume=True), "stem", CPU, Heard()):
        assert torch.get_num_threads() == 2


def test_a_run_records_its_threads(tmp_path: Path) -> None:
    """Nobody could resume it with the same number."""
    status = command_line(["train-teacher", "--model", TINY, "--epochs", "1", "--device", "cpu", "--precision", "fp32",
                           "--out", str(tmp_path / "run"), "--quiet"])  # fmt: skip
    assert status == 0
    assert RunFolder(tmp_path / "run").record()["threads"] == torch.get_num_threads()
