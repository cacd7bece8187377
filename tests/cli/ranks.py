"""Processes of one job, started as ``torchrun`` starts them, but forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from cli.shell import Done, environment

RANKS = 2
PRELOADED = ["torch._dynamo", "timm", "kdcompress.cli", "kdcompress.api"]


class Job:
    """``RANKS`` processes of ``python -m kdcompress ARGUMENTS`` in ``cwd``, or of a script of that name in it.

    What they write lies in ``job-NUMBER.out`` and ``.err`` beside ``cwd``; standard output is that of all of them.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, program: str = "kdcompress") -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        number = len(list(cwd.parent.glob("job-*.out")))
        self.out, self.err = (cwd.parent / f"job-{number}.{stream}" for stream in ("out", "err"))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS)}
        self.processes: list[BaseProcess] = []
        for path in (self.out, self.err):
            path.touch()
        for rank in map(str, range(RANKS)):
            own = environment(**shared, RANK=rank, LOCAL_RANK=rank)
            told = (program, list(arguments), cwd, own, self.out, self.err)
            self.processes.append(context.Process(target=_rank, args=told))
            self.processes[-1].start()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Return when a line of standard error begins with ``text``."""
        end = time.monotonic() + seconds
        while not any(line.startswith(text) for line in self.err.read_text().splitlines()):
            assert time.monotonic() < end, f"{text!r} never came: {self.err.read_text()}"
            assert all(process.is_alive() for process in self.processes), self.err.read_text()
            time.sleep(0.1)

    def terminate(self) -> None:
        """Send SIGTERM to all of them, as a cluster does that wants its machine back."""
        for process in self.processes:
            process.terminate()

    def finished(self, seconds: float = 120) -> Done:
        """What they left; ``status`` is the first that is not 0."""
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()  # only then it has an exit code: one that hung must not look like one that ended well
        status = next((code for process in self.processes if (code := process.exitcode)), 0)
        return Done(status, self.out.read_text(), self.err.read_text())


def job(command: str, cwd: Path, program: str = "kdcompress") -> Done:
    """Run a :class:`Job` to its end."""
    return Job(command.split(), cwd, program).finished()


def _rank(program: str, arguments: list[str], cwd: Path, own: dict[str, str], out: Path, err: Path) -> None:
    for number, path in ((0, Path(os.devnull)), (1, out), (2, err)):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(own)
    os.chdir(cwd)
    sys.argv = [program, *arguments]
    torch.set_num_threads(1)  # for OMP_NUM_THREADS it is too late
    if program == "kdcompress":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")
