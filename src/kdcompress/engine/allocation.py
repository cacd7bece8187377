"""Memory of a CPU's tensors, kept from step to step."""

from __future__ import annotations

import ctypes
import functools

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT, LARGEST = 2**30, 2**25  # bytes; the latter where glibc takes no larger threshold


@functools.cache
def keep_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed for the next step; without glibc, do nothing.

    By default it gives large blocks back to the system, which hands them out anew, page by page and emptied, at every
    step: a tenth of the time of a training step of a small network, and more where several train at once.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    _ = mallopt(M_MMAP_THRESHOLD, KEPT) or mallopt(M_MMAP_THRESHOLD, LARGEST)
    mallopt(M_TRIM_THRESHOLD, KEPT)
