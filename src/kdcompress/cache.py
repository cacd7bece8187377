"""Where things that can be made anew are kept: lightweight teachers, and what frozen networks say about images.

Arrays are whole or not there, whatever is killed when; a folder that cannot be used costs time, never a result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

TARGETS, TEACHERS = "targets", "teachers"
FORMAT, KEY = "format.json", "key.json"
VERSION = 1
GIB = 2**30


def cache_dir(chosen: str | None = None) -> Path:
    """The folder that the user chose, else ``$XDG_CACHE_HOME/kdcompress``, by default ``~/.cache/kdcompress``."""
    if chosen is not None:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kdcompress"


@dataclass(frozen=True)
class Entry:
    """What is kept under one key.

    Attributes:
        arrays, bytes: How many, and their size.
        used: When one of them was last read or written, seconds since the epoch.
    """

    folder: Path
    key: dict[str, Any]
    arrays: int
    bytes: int
    used: float


@dataclass(frozen=True)
class ArrayStore:
    """Two-dimensional float16 arrays on the disk, by key and number.

    Args:
        folder: Made when something is written.
        limit: Bytes; what was not used for longest goes first.
    """

    folder: Path
    limit: float

    def open(self, key: Mapping[str, Any], number: int, shape: tuple[int, int]) -> np.ndarray | None:
        """An array, mapped into memory read-only, or None where there is none that is whole and of this key."""
        place = self._place(key)
        try:
            if not self._is_ours() or (place / KEY).read_text() != _text(key):
                return None
            found = np.load(place / _name(number), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if found.shape != shape or found.dtype != np.float16:
            return None
        with contextlib.suppress(OSError):  # it may be read-only
            os.utime(place / KEY)
        return found

    @contextlib.contextmanager
    def lock(self, key: Mapping[str, Any], number: int) -> Iterator[None]:
        """Of several processes that want to write one array let one do it, and the others wait.

        Raises:
            OSError: The folder cannot be written.
        """
        place = self._made(key)
        with FileLock(place / f".{_name(number)}.lock"):
            yield

    @contextlib.contextmanager
    def create(self, key: Mapping[str, Any], number: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
        """An array to fill; kept if nothing is raised meanwhile.

        Raises:
            OSError: The folder cannot be written, is full, was made by another version, or the limit is too low. Never
                while the array is filled: its room is taken first.
        """
        place = self._made(key)
        self._make_room(2 * shape[0] * shape[1], place)
        for left in place.glob(f".{_name(number)}.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        temporary = place / f".{_name(number)}.{os.getpid()}.tmp"
        try:
            array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            if hasattr(os, "posix_fallocate"):
                with open(temporary, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
            yield array
            array.flush()
            temporary.replace(place / _name(number))
        finally:
            temporary.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """What is kept, what was used last first."""
        found = []
        for place in self.folder.iterdir() if self.folder.is_dir() else ():
            with contextlib.suppress(OSError, ValueError):  # another process may be clearing it away
                key = json.loads((place / KEY).read_text())
                arrays = len(list(place.glob("view-*.npy")))
                found.append(Entry(place, key, arrays, _size(place), (place / KEY).stat().st_mtime))
        return sorted(found, key=lambda entry: -entry.used)

    def _place(self, key: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(_text(key).encode()).hexdigest()[:20]

    def _is_ours(self) -> bool:
        return bool(json.loads((self.folder / FORMAT).read_text()) == {"version": VERSION})

    def _made(self, key: Mapping[str, Any]) -> Path:
        place = self._place(key)
        if self.folder.is_dir() and any(self.folder.iterdir()):
            try:
                ours = self._is_ours()
            except (OSError, ValueError):
                ours = False
            if not ours:
                raise OSError(errno.EPERM, "made by another version, or not a cache of ours")
        place.mkdir(parents=True, exist_ok=True)
        for file, content in ((self.folder / FORMAT, {"version": VERSION}), (place / KEY, key)):
            if not file.exists():
                temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
                temporary.write_text(_text(content))
                temporary.replace(file)
        return place

    def _make_room(self, size: int, own: Path) -> None:
        entries = self.entries()
        total = size + sum(entry.bytes for entry in entries)
        for entry in reversed(entries):
            if total <= self.limit:
                return
            if entry.folder != own and not any(entry.folder.glob(".*.tmp")):  # nor one that is in work
                shutil.rmtree(entry.folder, ignore_errors=True)
                total -= entry.bytes
        if total > self.limit:
            raise OSError(errno.ENOSPC, f"more than --cache-size {self.limit / GIB:g} GiB would be needed")


def kept(cache: Path) -> list[Entry]:
    """All that a cache holds: targets of frozen networks, and lightweight teachers."""
    found = ArrayStore(cache / TARGETS, math.inf).entries()
    for record in (cache / TEACHERS).glob("*/run.json"):
        with contextlib.suppress(OSError):
            name, used = record.parent.name, record.stat().st_mtime
            found.append(Entry(record.parent, {"network": name}, 0, _size(record.parent), used))
    return found


def _name(number: int) -> str:
    return f"view-{number:04d}.npy"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
