"""Worker processes that read images end with the process that they read for, however that ends."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
SHARED_MEMORY = Path("/dev/shm")
PRELOADED = ["torch", "timm.data", "kdcompress.data.batches"]  # what a worker unpickles needs them


def shared_memory_holds(size: int) -> bool:
    """Whether so many bytes of each process of this host fit into the memory that processes share.

    Containers often have 64 MiB of it. Where a worker's tensor does not fit, PyTorch drops it and waits for it forever.
    """
    with contextlib.suppress(OSError, AttributeError):  # other systems have no such file system
        free = os.statvfs(SHARED_MEMORY)
        return free.f_bavail * free.f_frsize >= size * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return True


def with_parent(workers: int) -> Callable[[int], None]:
    """``worker_init_fn`` of a DataLoader of so many workers.

    Linux kills the worker as soon as its parent is gone, however that was killed. Elsewhere it ends when it next looks
    for its parent, as PyTorch's workers do: every five seconds, but never while an image is being read.
    """
    started_by = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if started_by == "forkserver" and workers:
        _let_server_import()
    # one that is forked by a server has that as its parent, which ends with ours
    return functools.partial(_die_with, None if started_by == "forkserver" else os.getpid())


def _let_server_import() -> None:
    """Let the server that forks workers, as from Python 3.14 on, import what they need, besides what the caller chose.

    Each epoch has new workers, and each of them would take seconds for its imports.
    """
    from multiprocessing import forkserver  # not on Windows

    chosen = list(getattr(forkserver._forkserver, "_preload_modules", [])) or ["__main__"]
    wanted = [*PRELOADED, *(name for name in ("datasets",) if name in sys.modules)]  # of hfds/ data
    multiprocessing.set_forkserver_preload(chosen + [name for name in wanted if name not in chosen])


def _die_with(parent: int | None, number: int) -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # a libc without it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:  # it was gone before that
        os._exit(1)
