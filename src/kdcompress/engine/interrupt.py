"""Ctrl-C, SIGTERM and SIGHUP end a training at the next step's end, with its state saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Asked:
    """Whether this process was asked to stop; a library swallows a KeyboardInterrupt that meets it on import."""

    once = False


def stop_signals() -> list[int]:
    """Those that ask a process to end; SIGHUP is none where it is ignored, as under ``nohup``."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler of the command line: leave now, or, if that is swallowed, at the first chance."""
    Asked.once = True
    forget_workers()
    raise KeyboardInterrupt


def forget_workers() -> None:
    """Let no loss of a worker process be an error: a signal to the whole process group reaches them, too.

    So ``timeout`` and batch systems send it. PyTorch would raise wherever the main process happens to be. In place of
    its handler there must be another: Python complains on stderr of a signal that has come and has none any more.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda number, frame: None)


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop; exit status 130.

    Args:
        path: The run that can be resumed.
        remedy: How to go on, where it is not ``--resume``.
    """

    def __init__(self, path: Path, remedy: str = "") -> None:
        super().__init__(path)
        self.path = path
        self.remedy = remedy or f"The state is saved: run the same command with --resume --out {path}"


class StopSignal:
    """While active, the first of :func:`stop_signals` sets ``requested``; a second one takes its usual course."""

    def __init__(self) -> None:
        self.requested = False
        self.former: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self.requested = Asked.once
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self.former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def excuses(self, error: Exception) -> bool:
        """Whether an error says no more than that the signal has ended the workers that read images, too."""
        lost = isinstance(error, (ConnectionError, FileNotFoundError, EOFError)) or "DataLoader worker" in str(error)
        return self.requested and lost

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        forget_workers()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}
