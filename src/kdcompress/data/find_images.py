"""From what a user names (files, folders, paths on standard input) to image files, one at a time."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from kdcompress.data.listing import UNREAD, walk
from kdcompress.errors import first_line, usage_error
from kdcompress.references import STDIN
from kdcompress.results import Unreadable

BLOCK, LONGEST = 2**16, 2**20  # bytes read at a time, and of one path


def find_images(names: Iterable[str], unread: Counter[str], nul: bool = False) -> Iterator[str | Unreadable]:
    """Files, in the order in which they are named; those of a folder sorted, before those of its subfolders.

    Args:
        names: Files, folders, and ``-`` for paths on standard input.
        unread: Counts, by suffix, files in folders that are images or videos of a type that is not read.
        nul: Paths on standard input end in NUL, not in a line break.
    """
    for name in names:
        for path in read_paths(nul) if name == STDIN else [name]:
            if os.path.isdir(path):
                found = 0
                for file in _below(path, unread):
                    found += 1
                    yield file
                if not found:
                    yield Unreadable(path, f"The folder {path} has no images.")
            elif os.path.exists(path):
                yield path
            else:
                yield Unreadable(path, f"There is no file or folder {path}.")


def images_below(folder: str) -> tuple[list[str], list[str], list[str]]:
    """All images of a folder, whatever its subfolders; what is wrong with it; notices of types that are not read."""
    unread, files, problems, notes = Counter[str](), list[str](), list[str](), list[str]()
    for found in find_images([folder], unread):
        if isinstance(found, str):
            files.append(found)
        else:
            problems.append(found.problem)
    if unread:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(unread.items()))
        notes.append(f"Notice: files of these types in {folder} are not read: {kinds}. Convert them to .jpg or .png.")
    return files, problems, notes


def _below(folder: str, unread: Counter[str]) -> Iterator[str | Unreadable]:
    """The images of a folder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for inner, names, error in walk(folder):
        if error is not None:
            yield Unreadable(inner, f"The folder {inner} cannot be read: {error.strerror}.")
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS):
                yield os.path.join(inner, name)
            elif UNREAD.fullmatch(kind := os.path.splitext(name)[1].lower()):
                unread[kind] += 1


def read_paths(nul: bool) -> Iterator[str]:
    """Paths on standard input, as they arrive; empty ones are left out.

    Raises:
        UserError: Nothing is piped in, or what comes is not a list of paths.
    """
    if sys.stdin is None or sys.stdin.isatty():
        problem = "'-' reads paths of images from standard input, but nothing is piped in."
        raise usage_error(problem, "Name files or folders instead.")
    end, left = b"\0" if nul else b"\n", b""
    for block in _blocks():
        *whole, left = (left + block).split(end)
        for name in whole:
            if name:
                yield _decoded(name)
        if len(left) > LONGEST:
            remedy = "Paths end in line breaks" + (", or with -0 in NUL." if not nul else "; with -0, in NUL.")
            raise usage_error(f"Standard input holds a path of more than {LONGEST / 2**20:g} MiB.", remedy)
    if left:
        yield _decoded(left)


def _blocks() -> Iterator[bytes]:
    # of the file below the buffer: a thread that waits in the buffer would hold its lock when Python ends
    buffer: Any = sys.stdin.buffer
    raw = getattr(buffer, "raw", buffer)
    while True:
        try:
            block = raw.read(BLOCK)
        except (OSError, ValueError) as error:  # a folder, or one that was closed
            remedy = "Pipe in paths of images."
            raise usage_error(f"Standard input cannot be read: {first_line(error)}", remedy) from error
        if block is None:  # it was made non-blocking by another program
            time.sleep(0.01)
        elif not block:
            return
        else:
            yield block


def _decoded(name: bytes) -> str:
    if b"\0" in name:
        raise usage_error("Standard input holds NUL characters.", "Paths that end in NUL are read with -0.")
    return os.fsdecode(name)
