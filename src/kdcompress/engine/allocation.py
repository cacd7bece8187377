"""Memory of a CPU's tensors, kept from step to step."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB = -1, -3, -6
HUGE = 0x7F  # as every byte of a number: 3.4e38 in bf16 and in float32
KEPT, LARGEST = 2**30, 2**25  # bytes; the latter where glibc takes no larger threshold


@functools.cache
def keep_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed for the next step; without glibc, do nothing.

    By default it gives large blocks back to the system, which hands them out anew, page by page and emptied, at every
    step: a tenth of the time of a training step of a small network, and more where several train at once.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return
    _ = mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)


@contextlib.contextmanager
def unwritten_memory_shows() -> Iterator[None]:
    """Inside, new memory holds huge numbers: what reads it before it writes there is found out, not right by chance.

    Without glibc, nothing changes.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(M_PERTURB, HUGE ^ 0xFF)  # it takes the complement
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(M_PERTURB, 0)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's, if this is glibc."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return None
