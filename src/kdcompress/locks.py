"""Locks on files, between processes and machines: held by the living, released by death.

They are the operating system's (``flock``), which file servers know, too. Beside the lock stands who holds it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

BEAT = 5.0  # seconds between the signs of life of who holds a lock that others wait for
PATIENCE = 60.0  # seconds without one, after which its holder is given up: it was stopped, or its machine is gone
ASK_AGAIN = 0.5  # seconds


class Stalled(OSError):
    """Whoever holds a lock has stopped."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"{holder} holds its lock, and shows no sign of life")
        self.strerror = str(self.args[0])


class Lock:
    """A lock on a file, which is made, and stays.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, FileLock(path)

    def taken(self, seconds: float = 0.0) -> bool:
        """Whether it could be had within some time."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        with contextlib.suppress(OSError):  # for people only
            self.path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        return True

    def release(self) -> None:
        self._lock.release(force=True)

    def holder(self) -> str:
        """Who holds it: ``process 123 on machine``."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self.path.read_text()[:200].strip() or "another process"
        return "another process"

    @contextlib.contextmanager
    def awaited(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold it, once nobody else does.

        Args:
            waiting: Called every now and then while another one holds it; what it raises ends the waiting.

        Raises:
            Stalled: Its holder shows no sign of life.
        """
        seen, since = 0, time.monotonic()
        while not self.taken(ASK_AGAIN):
            waiting()
            changed = self.path.stat().st_mtime_ns
            if changed != seen:
                seen, since = changed, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise Stalled(self.holder())
        done = threading.Event()
        beat = threading.Thread(target=self._beat, args=(done,), daemon=True)
        beat.start()
        try:
            yield
        finally:
            done.set()
            beat.join()
            self.release()

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)
