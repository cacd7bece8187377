"""Standard streams that cannot end a command: if standard error fails, its text is lost, but not the work."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def secure() -> None:
    """Make the standard streams safe to write to; call it before any file is opened.

    A closed descriptor is opened on the null device, so that no file of ours gets its number and a library's warnings.
    Standard output is then opened read-only, so that a lost result is an error. Writing to standard error never fails,
    even if its disk is full or its reader has exited.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest number that is free: this one
            os.set_inheritable(number, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, encoding, errors="backslashreplace", line_buffering=True)


def forget_output() -> None:
    """After standard output has failed, redirect it to the null device: Python would fail again when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


class _Lossy(io.FileIO):
    """A file that is never full: what cannot be written is lost."""

    def write(self, content: Any) -> int:
        try:
            written = super().write(content)
        except OSError:
            written = None
        # None: a non-blocking stream that is full
        return memoryview(content).nbytes if written is None else written
