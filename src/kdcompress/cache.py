"""Where things that can be made anew are kept: lightweight teachers, and what frozen networks say about images.

Arrays are whole or not there, whatever is killed when, and their digests are in their names; a folder that cannot be
used, or a file in it that was altered, costs time, never a result.
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

from kdcompress.digests import check_plain, digest_of
from kdcompress.locks import Lock

TARGETS, TEACHERS = "targets", "teachers"
FORMAT, KEY = "format.json", "key.json"
VERSION = 1
GIB = 2**30
OURS = re.compile(r"[0-9a-f]{20}")  # folders of entries
HEADER = 128  # bytes before an array in its file
MOST_TEXT = 2**20  # bytes of a file that says what an entry is


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
        kind: ``targets`` or ``teacher``.
        key: Empty where it cannot be read any more.
        arrays, bytes: How many, and their size.
        used: When one of them was last read or written, seconds since the epoch.
    """

    kind: str
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
        note: Told of arrays that were altered.
    """

    folder: Path
    limit: float
    note: Callable[[str], None] = lambda _: None
    known: dict[Path, tuple[tuple[int, ...], bool]] = field(default_factory=dict, compare=False)

    def open(self, key: Mapping[str, Any], number: int, shape: tuple[int, int]) -> np.ndarray | None:
        """An array, mapped into memory read-only, or None where there is none that is whole and of this key."""
        place = self.place(key)
        try:
            if not self._is_ours() or not _says(place / KEY, key):
                return None
            whole = next((path for path in _arrays(place, number) if self._is_whole(path)), None)
            if whole is None:
                return None
            found = np.load(whole, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if found.shape != shape or found.dtype != np.float16:
            return None
        with contextlib.suppress(OSError):  # it may be read-only
            os.utime(place / KEY)
        return found

    @contextlib.contextmanager
    def lock(self, key: Mapping[str, Any], number: int, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Of several processes that want to write one array let one do it, and the others wait.

        Whoever wants several locks takes them in the order of :meth:`place`, lest two wait for each other.

        Args:
            waiting: Called every now and then while another one holds it; what it raises ends the waiting.

        Raises:
            OSError: The folder cannot be written, or whoever holds the lock has stopped.
        """
        with Lock(self._made(key) / f".{_name(number)}.npy.lock").awaited(waiting):
            yield

    @contextlib.contextmanager
    def create(
        self, key: Mapping[str, Any], number: int, shape: tuple[int, int], beside: Collection[Mapping[str, Any]] = ()
    ) -> Iterator[np.ndarray]:
        """An array to fill; kept if nothing is raised meanwhile.

        Args:
            beside: Other keys that are needed along with this one: no room is made at their cost.

        Raises:
            OSError: The folder cannot be written, is full, was made by another version, or the limit is too low. Never
                while the array is filled: its room is taken first.
        """
        place = self._made(key)
        self._make_room(2 * shape[0] * shape[1] + HEADER, {place, *map(self.place, beside)})
        for left in place.glob(f".{_name(number)}.npy.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
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
            for other in place.glob(f"{_name(number)}*.npy"):  # altered ones, or of a version without digests
                if other != made:
                    other.unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """What is kept, what was used last first."""
        found = []
        for place in self._places():
            with contextlib.suppress(OSError):  # another process may be clearing it away
                arrays = len(list(place.glob("view-*.npy")))
                used = (place / KEY if (place / KEY).exists() else place).stat().st_mtime
                found.append(Entry("targets", place, _key_in(place), arrays, _size(place), used))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> None:
        """Remove all that is kept, whatever state it is in, and whatever version made it.

        Raises:
            OSError: Something cannot be removed.
        """
        for place in self._places():
            _remove(place)
        (self.folder / FORMAT).unlink(missing_ok=True)

    def _places(self) -> list[Path]:
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return [place for place in there if OURS.fullmatch(place.name) and place.is_dir()]

    def place(self, key: Mapping[str, Any]) -> Path:
        return self.folder / hashlib.sha256(_text(key).encode()).hexdigest()[:20]

    def _is_whole(self, path: Path) -> bool:
        """Whether an array is what was written; found out once, and told once where it is not."""
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return False
        now = (state.st_mtime_ns, state.st_size, state.st_ino)
        if self.known.get(path, ((), False))[0] != now:
            whole = path.stem.endswith(f"-{digest_of(path)}")
            self.known[path] = now, whole
            if not whole:
                self.note(f"Warning: {path} was altered since it was written; it is made anew.")
        return self.known[path][1]

    def _is_ours(self) -> bool:
        return bool(json.loads(_read(self.folder / FORMAT)) == {"version": VERSION})

    def _is_foreign(self) -> bool:
        try:
            return not self._is_ours()
        except ValueError:
            return True
        except OSError as error:  # another process may be making it at this moment
            there = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
            if (self.folder / FORMAT).exists() and isinstance(error, FileNotFoundError):
                return self._is_foreign()
            return not all(OURS.fullmatch(name) or name.startswith(f".{FORMAT}.") for name in there)

    def _made(self, key: Mapping[str, Any]) -> Path:
        place = self.place(key)
        if self._is_foreign():
            raise OSError(errno.EPERM, "made by another version, or not a cache of ours")
        place.mkdir(parents=True, exist_ok=True)
        for file, content in ((self.folder / FORMAT, {"version": VERSION}), (place / KEY, key)):
            if not _says(file, content):
                temporary = file.with_name(f".{file.name}.{threading.get_native_id()}.tmp")
                temporary.write_text(_text(content))
                temporary.replace(file)
        return place

    def _make_room(self, size: int, spared: set[Path]) -> None:
        can_go = {place for place in self._places() if place not in spared and not _in_work(place)}
        entries = self.entries()
        total = size + sum(entry.bytes for entry in entries)
        if total - sum(entry.bytes for entry in entries if entry.folder in can_go) > self.limit:
            raise OSError(errno.ENOSPC, f"more than --cache-size {self.limit / GIB:g} GiB would be needed")
        for entry in reversed(entries):
            if total > self.limit and entry.folder in can_go:
                shutil.rmtree(entry.folder, ignore_errors=True)
                total -= entry.bytes


def kept(cache: Path) -> list[Entry]:
    """All that a cache holds: targets of frozen networks, and lightweight teachers."""
    found = ArrayStore(cache / TARGETS, math.inf).entries()
    for record in (cache / TEACHERS).glob("*/run.json"):
        with contextlib.suppress(OSError):
            name, used = record.parent.name, record.stat().st_mtime
            found.append(Entry("teacher", record.parent, {"network": name}, 0, _size(record.parent), used))
    return found


def clear(cache: Path) -> None:
    """Remove all that a cache holds.

    Raises:
        OSError: Something cannot be removed.
    """
    ArrayStore(cache / TARGETS, math.inf).clear()
    for record in (cache / TEACHERS).glob("*/run.json"):
        _remove(record.parent)


def _remove(place: Path) -> None:
    if place.is_symlink():  # what it points to is not ours
        place.unlink()
    else:
        shutil.rmtree(place)


def _name(number: int) -> str:
    return f"view-{number:04d}"


def _arrays(place: Path, number: int) -> list[Path]:
    return sorted(place.glob(f"{_name(number)}-*.npy"))


def _read(file: Path) -> str:
    """A short text; never from what is no plain file, for a pipe would keep us waiting.

    Raises:
        OSError: It is none, or cannot be read.
        ValueError: It is too long, or no text.
    """
    check_plain(file)
    if file.stat().st_size > MOST_TEXT:
        raise ValueError(f"{file} is too long")
    return file.read_text(encoding="utf-8")


def _in_work(place: Path) -> bool:
    """Whether a process writes here, or is about to; what one that was killed has left is removed."""
    for held in place.glob(".view-*.lock"):
        lock = Lock(held)
        if not lock.taken():
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


def _says(file: Path, content: Mapping[str, Any]) -> bool:
    try:
        return _read(file) == _text(content)
    except (OSError, ValueError):
        return False


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.iterdir())


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
