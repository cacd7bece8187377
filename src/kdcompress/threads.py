"""How many threads PyTorch gets, and how long they spin, on a machine with other load.

OpenMP threads wait for each other by spinning, 300 000 times by default: some 10 ms in which another process could
compute. Where several trainings have as many threads as there are cores, each waits for threads that are not scheduled,
and all of them together become slower than one alone. So a command uses the cores that are free when it starts, and its
threads go to sleep sooner. Measured by ``examples/benchmarks/bench_threads.py``.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path

COUNT, SPIN, POLICY = "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
SPINS = 20_000  # for GNU's OpenMP, which PyTorch's Linux packages contain; costs a few percent at most when idle
SAMPLES, PAUSE = 6, 0.01  # samples of the machine's load, and seconds between them
PROC, QUOTA = Path("/proc"), Path("/sys/fs/cgroup/cpu.max")

_sharing = 1


def spin_less(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads go to sleep sooner, unless the user has set how they wait.

    Args:
        environment: Of this process, before PyTorch is loaded.
    """
    if SPIN not in environment and POLICY not in environment:
        environment[SPIN] = str(SPINS)


def free_cores() -> tuple[int, int]:
    """Number of free cores, at least one, and of cores that this process may use."""
    cores = available()
    # on a large, mostly idle machine, other processes run on cores that we do not use anyway
    return max(1, min(cores, (os.cpu_count() or 1) - running())), cores


def usable() -> frozenset[int]:
    """The cores that this process may run on."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def share_cores(processes: int) -> None:
    """Say how many processes of this job, this one among them, run on the cores of this one."""
    global _sharing
    _sharing = processes


def share() -> int:
    """Number of cores for this process: of those that it may use, its share of what its job uses."""
    return max(1, available() // _sharing)


def available() -> int:
    """Number of cores that this process may use, by its affinity and its container's quota."""
    cores = len(usable())
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no quota ("max")
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def running() -> int:
    """Number of other processes' threads that run or wait for a core; 0 where the system does not report it.

    Commands of the same pipeline do not count: as soon as they have started, they wait for this one.
    """
    counts, own = [], list(_pipeline())
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(SAMPLES):
            of_all = int((PROC / "loadavg").read_text().split()[3].split("/")[0])
            counts.append(of_all - 1 - sum(map(_running_in, own)))
            time.sleep(PAUSE)
    return max(0, round(statistics.median(counts))) if counts else 0


def _pipeline() -> Iterator[str]:
    """Ids of the processes that are connected to this one by pipes, on standard output and on standard input."""
    ends = {}
    for process in PROC.glob("[0-9]*") if PROC.is_dir() else ():
        with contextlib.suppress(OSError):  # another user's, or gone
            ends[process.name] = tuple(os.readlink(process / "fd" / number) for number in "01")
    for near, far in ((0, 1), (1, 0)):
        at = str(os.getpid())
        for _ in ends:
            pipe = ends.get(at, ("", ""))[near]
            other = next((name for name, both in ends.items() if both[far] == pipe and name != at), None)
            if other is None or not pipe.startswith("pipe:"):
                break
            at = other
            yield at


def _running_in(process: str) -> int:
    states = []
    with contextlib.suppress(OSError):
        for thread in (PROC / process / "task").iterdir():
            states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
    return states.count("R")
