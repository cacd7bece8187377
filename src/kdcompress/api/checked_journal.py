"""Optuna's journal of a search, each line with a checksum: what has been altered is found, not believed.

Imported only where a search is: Optuna is an extra.
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
    """Lines as Optuna writes them, with one more entry, which Optuna itself takes no notice of.

    A journal of an earlier version begins with lines that have none; from the first one that has, all must.

    Args:
        path: On NFS, too: the lock is a symbolic link, which is made by one process only (Optuna's).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = [0]  # of each line that has been read, and of the next
        self._first: int | None = None  # line with a checksum
        # absolute: the lock looks at what its link leads to
        super().__init__(str(path), lock_obj=_WholeLines(str(path)))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines.

        Raises:
            UserError: The file cannot be written.
        """
        try:
            super().append_logs([{**log, SUM: _sum(log)} for log in logs])
        except OSError as error:
            remedy = "What was saved before is whole: mend that, and run the same command with --resume."
            raise UserError(f"{self.path} cannot be written: {error.strerror}.", remedy) from error

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Lines from that number on, up to one that is being written.

        Optuna's own reader passes over a last line that it cannot read.

        Raises:
            UserError: One is not what was written, or the file cannot be read.
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
            raise UserError(problem, "Restore it, or search anew in another place.") from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}.", "Is its disk still there?") from error

    def _checked(self, number: int, line: bytes) -> dict[str, Any]:
        log = json.loads(line)
        if not isinstance(log, dict):
            raise ValueError("it is no object")
        found = log.pop(SUM, None)
        if found is None:
            good = (self._first is None or number < self._first) and not _ends_with_sum(log)
        else:
            good = found == _sum(log)
        if not good:
            raise ValueError("it is not what was written")
        if found is not None and self._first is None:
            self._first = number
        return log


class _WholeLines(JournalFileSymlinkLock):
    """Whoever holds it finds no half line at the end: one that a kill cut off would spoil the next."""

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
    """Whether a line has a checksum whose name is no longer what it was."""
    last = list(log.values())[-1:]
    return bool(last) and isinstance(last[0], str) and len(last[0]) == 16
