"""Optuna's journal of a search, each line with a checksum, so that altered lines are refused.

Imported by searches alone: Optuna is an extra.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from kdcompress.errors import UserError, first_line

SUM = "xxh3"


class CheckedJournal(JournalFileBackend):
    """Lines as Optuna writes them, with the checksum as one more entry, which Optuna ignores.

    A journal of an earlier version begins with lines without a checksum; after the first with one, all must have it.

    Args:
        path: It may be on NFS: the lock is a symbolic link, which only one process can create (Optuna's).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = [0]  # of each line that has been read, and of the next
        self._first: int | None = None  # line with a checksum
        # an absolute path: the lock follows its link
        super().__init__(str(path), lock_obj=_WholeLines(str(path)))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines.

        Raises:
            UserError: The file cannot be written.
        """
        try:
            super().append_logs([{**log, SUM: _sum(log)} for log in logs])
        except OSError as error:
            remedy = "Earlier trials are saved: fix the cause, then run the same command with --resume."
            raise UserError(f"{self.path} cannot be written: {error.strerror}.", remedy) from error

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Lines from that number on, up to one that is still being written.

        Optuna's own reader would skip a last line that it cannot parse.

        Raises:
            UserError: A line was altered, or the file cannot be read.
        """
        number = log_number_from
        try:
            with open(self.path, "rb") as file:
                file.seek(self._starts[number])
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    log = self._checked(number, line)
                    number += 1
                    if number == len(self._starts):
                        self._starts.append(self._starts[-1] + len(line))
                    yield log
        except (ValueError, RecursionError) as error:
            problem = f"{self.path} cannot be read: line {number + 1} is damaged ({first_line(error)})."
            raise UserError(problem, "Restore it, or start a new search elsewhere.") from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.", "Is its disk still there?") from error

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        log = json.loads(line)
        if not isinstance(log, dict):
            raise ValueError("not a JSON object")
        checksum = log.pop(SUM, None)
        if checksum is None:
            good = (self._first is None or number < self._first) and not _ends_with_sum(log)
        else:
            good = checksum == _sum(log)
        if not good:
            raise ValueError("its checksum does not match")
        if checksum is not None and self._first is None:
            self._first = number
        return log


class _WholeLines(JournalFileSymlinkLock):
    """Removes a half-written last line, left by a killed process, which would corrupt the next one."""

    def acquire(self) -> bool:
        taken = super().acquire()
        with open(self._lock_target_file, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return taken


def _sum(log: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(log, separators=(",", ":")).encode())


def _ends_with_sum(log: dict[str, Any]) -> bool:
    """Whether a line has a checksum under an altered key."""
    last = list(log.values())[-1:]
    return bool(last) and isinstance(last[0], str) and len(last[0]) == 16
