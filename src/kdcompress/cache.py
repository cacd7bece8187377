"""The cache: targets (outputs of frozen networks) and lightweight teachers, all of which can be computed again.

An array is written completely or not at all, whenever a process is killed, and its digest is in its file name. A cache
folder that cannot be used, or an altered file in it, costs time but never changes a result.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdcompress import score_cache
from kdcompress.digests import check_plain, digest_of
from kdcompress.locks import Lock

TARGETS, TEACHERS = "targets", "teachers"
FORMAT, KEY = "format.json", "key.json"
VERSION = 1
GIB = 2**30
ENTRY_NAME = re.compile(r"[0-9a-f]{20}")  # of the folder of an entry
HEADER = 128  # bytes before an array in its file
MAX_TEXT = 2**20  # bytes of the file with the key of an entry


def cache_dir(chosen: str | None = None) -> Path:
    """The folder that the user chose, else ``$XDG_CACHE_HOME/kdcompress``, by default ``~/.cache/kdcompress``."""
    if chosen is not None:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kdcompress"


@dataclass(frozen=True)
class Entry:
    """What the cache holds under one key.

    Attributes:
        kind: ``targets``, ``teacher``, or ``scores`` for all accuracies together.
        key: Empty where it cannot be read.
        arrays, bytes: Number of arrays, and size of the entry.
        used: When one of them was last read or written, in seconds since the epoch.
    """

    kind: str
    folder: Path
    key: dict[str, Any]
    arrays: int
    bytes: int
    used: float


@dataclass(frozen=True)
class ArrayStore:
    """Two-dimensional float16 arrays on disk, by key and number.

    Args:
        folder: Created when something is written.
        limit: Bytes; the least recently used entries are removed first.
        note: Called with a warning about each altered array.
    """

    folder: Path
    limit: float
    note: Callable[[str], None] = lambda _: None
    known: dict[Path, tuple[tuple[int, ...], bool]] = field(default_factory=dict, compare=False)

    def open(self, key: Mapping[str, Any], number: int, shape: tuple[int, int]) -> np.ndarray | None:
        """An array, memory-mapped read-only; None where there is none of this key and shape that is intact."""
        place = self.place(key)
        try:
            if not self._is_ours() or not _holds(place / KEY, key):
                return None
            intact = next((path for path in _arrays(place, number) if self._is_intact(path)), None)
            if intact is None:
                return None
            array = np.load(intact, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != shape or array.dtype != np.float16:
            return None
        with contextlib.suppress(OSError):  # it may be read-only
            os.utime(place / KEY)
        return array

    @contextlib.contextmanager
    def lock(self, key: Mapping[str, Any], number: int, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of an array, so that only one of several processes writes it and the others wait.

        Several locks must be taken in the order of :meth:`place`, so that two processes cannot wait for each other.

        Args:
            waiting: Called repeatedly while another process holds the lock; raise in it to stop waiting.

        Raises:
            OSError: The folder cannot be written, or the process that holds the lock has stopped.
        """
        with Lock(self._made(key) / f".{_name(number)}.npy.lock").awaited(waiting):
            yield

    @contextlib.contextmanager
    def create(
        self, key: Mapping[str, Any], number: int, shape: tuple[int, int], spared: Collection[Mapping[str, Any]] = ()
    ) -> Iterator[np.ndarray]:
        """An array to fill; kept unless an exception leaves the context.

        Args:
            spared: Other keys that are needed along with this one: their entries are not removed to make room.

        Raises:
            OSError: The folder cannot be written, is full, was made by another version, or the limit is too low. Never
                while the array is filled: its disk space is allocated first.
        """
        place = self._made(key)
        self._make_room(2 * shape[0] * shape[1] + HEADER, {place, *map(self.place, spared)})
        for leftover in place.glob(f".{_name(number)}.npy.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        temporary = place / f".{_name(number)}.npy.{os.getpid()}.tmp"
        try:
            array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
            if hasattr(os, "posix_fallocate"):
                with open(temporary, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
            yield array
            array.flush()
            made = place / f"{_name(number)}-{digest_of(temporary)}.npy"
            temporary.replace(made)
            for other in place.glob(f"{_name(number)}*.npy"):  # altered, or written by a version without digests
                if other != made:
                    other.unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries, the most recently used first."""
        listed = []
        for place in self._places():
            with contextlib.suppress(OSError):  # another process may be removing it
                arrays = len(list(place.glob("view-*.npy")))
                used = (place / KEY if (place / KEY).exists() else place).stat().st_mtime
                listed.append(Entry("targets", place, _key_in(place), arrays, _size(place), used))
        return sorted(listed, key=lambda entry: -entry.used)

    def clear(self) -> None:
        """Remove all entries, whatever state they are in, and whatever version made them.

        Raises:
            OSError: Something cannot be removed.
        """
        for place in self._places():
            _remove(place)
        (self.folder / FORMAT).unlink(missing_ok=True)

    def _places(self) -> list[Path]:
        inside = self.folder.iterdir() if self.folder.is_dir() else ()
        return [place for place in inside if ENTRY_NAME.fullmatch(place.name) and place.is_dir()]

    def place(self, key: Mapping[str, Any]) -> Path:
        """The folder of an entry."""
        return self.folder / hashlib.sha256(_text(key).encode()).hexdigest()[:20]

    def _is_intact(self, path: Path) -> bool:
        """Whether an array is as it was written; checked once per state of the file, with a warning if it is not."""
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return False
        now = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self.known.get(path, ((), False))[0] != now:
            intact = path.stem.endswith(f"-{digest_of(path)}")
            self.known[path] = now, intact
            if not intact:
                self.note(f"Warning: {path} was altered since it was written; it is computed again.")
        return self.known[path][1]

    def _is_ours(self) -> bool:
        return bool(json.loads(_read(self.folder / FORMAT)) == {"version": VERSION})

    def _is_foreign(self) -> bool:
        try:
            return not self._is_ours()
        except ValueError:
            return True
        except OSError as error:  # another process may be creating it at this moment
            names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
            if (self.folder / FORMAT).exists() and isinstance(error, FileNotFoundError):
                return self._is_foreign()
            return not all(ENTRY_NAME.fullmatch(name) or name.startswith(f".{FORMAT}.") for name in names)

    def _made(self, key: Mapping[str, Any]) -> Path:
        place = self.place(key)
        if self._is_foreign():
            raise OSError(errno.EPERM, "made by another version, or not a cache of kdcompress")
        place.mkdir(parents=True, exist_ok=True)
        for file, content in ((self.folder / FORMAT, {"version": VERSION}), (place / KEY, key)):
            if not _holds(file, content):
                temporary = file.with_name(f".{file.name}.{threading.get_native_id()}.tmp")
                temporary.write_text(_text(content))
                temporary.replace(file)
        return place

    def _make_room(self, size: int, spared: set[Path]) -> None:
        removable = {place for place in self._places() if place not in spared and not _in_use(place)}
        entries = self.entries()
        total = size + sum(entry.bytes for entry in entries)
        if total - sum(entry.bytes for entry in entries if entry.folder in removable) > self.limit:
            raise OSError(errno.ENOSPC, f"more than --cache-size {self.limit / GIB:g} GiB would be needed")
        for entry in reversed(entries):
            if total > self.limit and entry.folder in removable:
                shutil.rmtree(entry.folder, ignore_errors=True)
                total -= entry.bytes


def cached_entries(cache: Path) -> list[Entry]:
    """All entries of a cache: targets, and lightweight teachers."""
    entries = ArrayStore(cache / TARGETS, math.inf).entries()
    for record in (cache / TEACHERS).glob("*/run.json"):
        with contextlib.suppress(OSError):
            name, used = record.parent.name, record.stat().st_mtime
            entries.append(Entry("teacher", record.parent, {"network": name}, 0, _size(record.parent), used))
    scores, size, used = score_cache.count(cache)
    if scores:
        key = {"network": f"accuracy of {scores} networks"}
        entries.append(Entry("scores", cache / score_cache.SCORES, key, 0, size, used))
    return entries


def clear(cache: Path) -> None:
    """Remove all entries of a cache.

    Raises:
        OSError: Something cannot be removed.
    """
    ArrayStore(cache / TARGETS, math.inf).clear()
    for record in (cache / TEACHERS).glob("*/run.json"):
        _remove(record.parent)
    scores = cache / score_cache.SCORES
    if scores.is_symlink() or scores.is_dir():
        _remove(scores)


def _remove(place: Path) -> None:
    if place.is_symlink():  # its target is not part of the cache
        place.unlink()
    else:
        shutil.rmtree(place)


def _name(number: int) -> str:
    return f"view-{number:04d}"


def _arrays(place: Path, number: int) -> list[Path]:
    return sorted(place.glob(f"{_name(number)}-*.npy"))


def _read(file: Path) -> str:
    """A short text; only from a regular file, for reading from a pipe could block.

    Raises:
        OSError: It is not a regular file, or cannot be read.
        ValueError: It is too long, or not UTF-8.
    """
    check_plain(file)
    if file.stat().st_size > MAX_TEXT:
        raise ValueError(f"{file} is too long")
    return file.read_text(encoding="utf-8")


def _in_use(place: Path) -> bool:
    """Whether a process writes here, or is about to; removes the temporary files of killed processes."""
    for held in place.glob(".view-*.lock"):
        lock = Lock(held)
        if not lock.acquire():
            return True
        for temporary in place.glob(f"{held.name.removesuffix('.lock')}.*.tmp"):
            temporary.unlink(missing_ok=True)
        lock.release()
    return False


def _key_in(place: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        key = json.loads(_read(place / KEY))
        return key if isinstance(key, dict) else {}
    return {}


def _holds(file: Path, content: Mapping[str, Any]) -> bool:
    try:
        return _read(file) == _text(content)
    except (OSError, ValueError):
        return False


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.iterdir())


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
