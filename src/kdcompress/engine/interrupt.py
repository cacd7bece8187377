"""Ctrl-C, SIGTERM and SIGHUP end a training after the current step, with its state saved."""

from __future__ import annotations

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Whether this process was asked to stop: some libraries swallow a KeyboardInterrupt during their import."""

    pending = False


def stop_signals() -> list[int]:
    """Signals that ask a process to end; without SIGHUP where it is ignored, as under ``nohup``."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler of the command line: stop now, or, if the exception is swallowed, when a training begins."""
    StopRequest.pending = True
    forget_workers()
    raise KeyboardInterrupt


def forget_workers() -> None:
    """Ignore the death of worker processes: ``timeout`` and batch systems signal the whole process group.

    PyTorch's handler would raise an error wherever the main process happens to be. It is replaced rather than removed,
    for Python complains on stderr about a pending signal without a handler.
    """
    while True:
        try:
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, lambda number, frame: None)
            return
        except RuntimeError:  # a worker has just died: Python calls the former handler before it replaces it
            continue


def is_lost_worker(error: BaseException) -> bool:
    """Whether an error may come from a data-loading worker that has ended."""
    return isinstance(error, (ConnectionError, FileNotFoundError, EOFError)) or "DataLoader worker" in str(error)


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop; exit status 130.

    Args:
        path: The run that can be resumed.
        remedy: How to continue, where it is not with ``--resume``.
    """

    def __init__(self, path: Path, remedy: str = "") -> None:
        super().__init__(path)
        self.path = path
        self.remedy = remedy or f"The state is saved: run the same command with --resume --out {shlex.quote(str(path))}"


class StopSignal:
    """While active, the first of :func:`stop_signals` sets ``requested``; a second one has its usual effect."""

    def __init__(self) -> None:
        self.requested = False
        self.former: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.requested = StopRequest.pending
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self.former[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def excuses(self, error: Exception) -> bool:
        """Whether an error only means that the signal has also ended the data-loading workers."""
        return self.requested and is_lost_worker(error)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        forget_workers()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}
