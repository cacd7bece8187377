"""Allocator settings for CPU tensors: freed memory is reused from step to step."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB = -1, -3, -6
HUGE = 0x7F  # a float whose bytes are all 0x7F is about 3.4e38, in bf16 and in float32
KEPT, LARGEST = 2**30, 2**25  # bytes; the latter is the largest threshold that some versions of glibc accept


@functools.cache
def keep_memory() -> None:
    """Let glibc hold up to 1 GiB of freed memory for the next step; without glibc, do nothing.

    By default glibc returns large blocks to the system, which zeroes their pages and hands them out again at every
    step: a tenth of the training step of a small network, and more where several trainings run at once.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return
    _ = mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, new memory is filled with huge numbers, so that a kernel that reads uninitialized memory is noticed.

    Without glibc, nothing changes.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(M_PERTURB, HUGE ^ 0xFF)  # glibc fills with the complement of this byte
    try:
        yield
    finally:
        if mallopt is not None:
            mallopt(M_PERTURB, 0)


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's ``mallopt``; None with another C library."""
    try:
        return ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return None
