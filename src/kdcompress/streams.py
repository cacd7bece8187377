"""Standard streams that cannot end a command: what goes to standard error may be lost, the work is not."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def secure() -> None:
    """Make the standard streams safe to write to; first of all, before anything is opened.

    A descriptor that is missing is opened on the null device, lest a file of ours gets its number and a library's
    warning lands in it. What was to be standard output then cannot be written, so that the result is not lost unsaid.
    Standard error takes anything from now on, also when it is full or its reader has left.
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
    """Standard output has failed: Python would complain once more when it flushes at its end."""
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
        return memoryview(content).nbytes if written is None else written  # None: nobody reads, and it does not wait
