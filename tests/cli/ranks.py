"""Processes of one job, started as ``torchrun`` starts them, but forked from one that has imported torch already.

On Linux, as root, they can be on two hosts: each with a network, a name and a private folder of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from cli.shell import Done, environment

RANKS = 2
PRELOADED = ["torch._dynamo", "timm", "kdcompress.cli", "kdcompress.api"]
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET = 0x00020000, 0x04000000, 0x40000000
MS_REC_PRIVATE = 0x4000 | 0x40000


@dataclass(frozen=True)
class Host:
    """A network namespace with one end of a cable.

    Attributes:
        private: A folder that only this host sees the content of.
    """

    name: str
    address: str
    cable: str
    private: Path

    def enter(self) -> None:
        """Let this process, which has one thread, be on the host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self.name}") as network:
            done = [libc.setns(network.fileno(), CLONE_NEWNET), libc.unshare(CLONE_NEWUTS | CLONE_NEWNS)]
        socket.sethostname(self.name)
        done.append(libc.mount(None, b"/", None, MS_REC_PRIVATE, None))
        done.append(libc.mount(b"tmpfs", bytes(self.private), b"tmpfs", 0, None))
        assert not any(done), os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def two_hosts(private: Path) -> Iterator[list[Host]]:
    """Two hosts with a cable between them.

    Raises:
        OSError, CalledProcessError: Not on this machine.
    """
    if sys.platform != "linux" or os.geteuid() or shutil.which("ip") is None:
        raise OSError("no network namespaces")
    private.mkdir()
    number = secrets.token_hex(3)
    hosts = [Host(f"kd-{end}-{number}", f"10.99.7.{end}", f"kd{end}{number}", private) for end in (1, 2)]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        one, other = hosts
        _ip("link", "add", one.cable, "netns", one.name, "type", "veth", "peer", other.cable, "netns", other.name)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
            for device in ("lo", host.cable):
                _ip("-n", host.name, "link", "set", device, "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


def cut(host: Host) -> None:
    """Pull the cable."""
    _ip("-n", host.name, "link", "set", host.cable, "down")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Job:
    """``RANKS`` processes of ``python -m kdcompress ARGUMENTS`` in ``cwd``, or of a script of that name in it.

    What they write lies in ``job-NUMBER.out`` and ``.err`` beside ``cwd``; standard output is that of all of them.

    Args:
        hosts: Where they run; none: all on this machine.
        more: Further environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        program: str = "kdcompress",
        hosts: Sequence[Host] = (),
        **more: str,
    ) -> None:
        context = forkserver()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        number = len(list(cwd.parent.glob("job-*.out")))
        self.out, self.err = (cwd.parent / f"job-{number}.{stream}" for stream in ("out", "err"))
        address = hosts[0].address if hosts else "localhost"
        shared = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(RANKS), **more}
        self.processes: list[BaseProcess] = []
        for path in (self.out, self.err):
            path.touch()
        for rank in map(str, range(RANKS)):
            host = hosts[int(rank)] if hosts else None
            own = environment(**shared, RANK=rank, LOCAL_RANK="0" if hosts else rank)
            if host is not None:
                own["GLOO_SOCKET_IFNAME"] = host.cable
            told = (program, list(arguments), cwd, own, Path(os.devnull), self.out, self.err, host)
            self.processes.append(context.Process(target=become, args=told))
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
        self.statuses = [process.exitcode for process in self.processes]
        status = next((code for code in self.statuses if code), 0)
        return Done(status, self.out.read_text(), self.err.read_text())


def job(command: str, cwd: Path, program: str = "kdcompress") -> Done:
    """Run a :class:`Job` to its end."""
    return Job(command.split(), cwd, program).finished()


def forkserver() -> ForkServerContext:
    """Makes processes that have imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def become(
    program: str,
    arguments: list[str],
    cwd: Path,
    own: dict[str, str],
    given: Path,
    out: Path,
    err: Path,
    host: Host | None,
) -> None:
    """Be a process of ``python -m kdcompress ARGUMENTS``, or of a script, with an environment of its ``own``.

    Args:
        given: Standard input.
    """
    if host is not None:
        host.enter()
    for number, path in ((2, err), (1, out), (0, given)):  # pipes in the order in which the tests open their ends
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        if file != number:
            os.dup2(file, number)
            os.close(file)  # else a reader waits for what nobody writes
    for signals in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the tests may run under nohup
        signal.signal(signals, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(own)
    os.chdir(cwd)
    # those that were inherited take a pipe or a terminal for the file that they were opened on
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [program, *arguments]
    torch.set_num_threads(1)  # for OMP_NUM_THREADS it is too late
    # a process of a fork server would start its own processes by another one, where a user's forks them
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if program == "kdcompress":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
