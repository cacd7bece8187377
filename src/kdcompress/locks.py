"""File locks between processes and machines, released when the process that holds one dies.

They are the operating system's (``flock``), which network file systems support too. The lock file names its holder.
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

BEAT = 5.0  # seconds between heartbeats of the process that holds a lock
PATIENCE = 60.0  # seconds without a heartbeat after which the holder counts as stopped, or its machine as gone
RETRY = 0.5  # seconds


class Stalled(OSError):
    """The process that holds a lock has stopped."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"{holder} holds its lock, but gives no sign of life")
        self.strerror = str(self.args[0])


class Lock:
    """A lock on a file, which is created and never removed.

    Args:
        path: Of the lock file.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, FileLock(path)

    def acquire(self, seconds: float = 0.0) -> bool:
        """Try to take the lock for some seconds; whether that succeeded."""
        try:
            self._lock.acquire(timeout=seconds)
        except Timeout:
            return False
        with contextlib.suppress(OSError):  # informative only
            self.path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        return True

    def release(self) -> None:
        """Give up the lock."""
        self._lock.release(force=True)

    def holder(self) -> str:
        """The process that holds it: ``process 123 on machine``."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return self.path.read_text()[:200].strip() or "another process"
        return "another process"

    @contextlib.contextmanager
    def awaited(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Wait for the lock, then hold it.

        Args:
            waiting: Called repeatedly while another process holds it; raise in it to stop waiting.

        Raises:
            Stalled: Its holder gives no sign of life.
        """
        last_beat, since = 0, time.monotonic()
        while not self.acquire(RETRY):
            waiting()
            beat = self.path.stat().st_mtime_ns
            if beat != last_beat:
                last_beat, since = beat, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise Stalled(self.holder())
        done = threading.Event()
        heartbeat = threading.Thread(target=self._beat, args=(done,), daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            done.set()
            heartbeat.join()
            self.release()

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)
