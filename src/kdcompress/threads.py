"""How many threads PyTorch gets, and how long they spin, on a machine that others use, too.

Threads of OpenMP wait for each other by spinning, 300 000 times by default: some 10 ms in which another process could
work. Where several trainings have as many threads as there are cores, each waits for threads that do not run at all,
and all of them together become slower than one. So a command takes the cores that are free when it begins, and its
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
SPINS = 20_000  # of GNU's OpenMP, which PyTorch's Linux packages bring; an idle machine loses a few percent at most
SAMPLES, PAUSE = 6, 0.01  # looks at the machine, and seconds between them
PROC, QUOTA = Path("/proc"), Path("/sys/fs/cgroup/cpu.max")


def spin_less(environment: MutableMapping[str, str]) -> None:
    """Let waiting threads go to sleep sooner, unless the user has said how they wait.

    Args:
        environment: Of this process, in which PyTorch is not loaded yet.
    """
    if SPIN not in environment and POLICY not in environment:
        environment[SPIN] = str(SPINS)


def free_cores() -> tuple[int, int]:
    """Cores that nobody else uses, at least one, of those that this process may use."""
    cores = available()
    # where most of a large machine is idle, it is not our cores that the others use
    return max(1, min(cores, (os.cpu_count() or 1) - running())), cores


def available() -> int:
    """Cores that this process may use: its affinity, and what a container's quota leaves of it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max"
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


def running() -> int:
    """Threads of others that run, or wait for a core; 0 where the system does not tell.

    Commands of the same pipeline are not others: they wait for this one as soon as they have started.
    """
    counts, own = [], list(_pipeline())
    with contextlib.suppress(OSError, ValueError, IndexError):
        for _ in range(SAMPLES):
            everybody = int((PROC / "loadavg").read_text().split()[3].split("/")[0])
            counts.append(everybody - 1 - sum(map(_running_in, own)))
            time.sleep(PAUSE)
    return max(0, round(statistics.median(counts))) if counts else 0


def _pipeline() -> Iterator[str]:
    """Numbers of the processes that pipes lead to from standard output, and come from to standard input."""
    ends = {}
    for process in PROC.glob("[0-9]*") if PROC.is_dir() else ():
        with contextlib.suppress(OSError):  # somebody else's, or gone
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
