"""The images below class folders, and what else is there."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.errors import UserError

SYSTEM = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
UNREAD = re.compile(  # images and videos of types that are not read
    r"\.(gif|hei[cf]|avif|jfif|jp2|jxl|svg|ico|psd|raw|dng|cr[23]|nef|arw|orf|rw2|mp4|mov|avi)"
)

State = tuple[int, int]  # of a file: size in bytes, time of the last change in ns


class Listing:
    """The images of all splits of a folder: their digest, and files that are not read."""

    def __init__(self) -> None:
        self.hash, self.between = hashlib.sha256(), ""
        self.unread, self.example = Counter[str](), ""

    def split(self, folder: Path) -> tuple[list[str], FileImages]:
        """Classes and images of the folder of a split."""
        classes = class_folders(folder)
        if not classes:
            remedy = "Put the images of each class into a folder of its own."
            raise UserError(f"The folder {folder} has no class folders.", remedy)
        files, labels = self.files(folder, classes)
        relative = (os.path.relpath(file, folder.parent) for file in files)
        return classes, self._images(files, labels, relative, map(state_of, files), "")

    def files(self, folder: Path, classes: list[str]) -> tuple[Paths, np.ndarray]:
        """Files and labels of class folders, in the order of torchvision's ``ImageFolder``."""
        from torchvision.datasets.folder import IMG_EXTENSIONS

        if len(classes) == 1:
            raise UserError(
                f"The folder {folder} has only one class, {classes[0]}.", "A classifier needs two classes or more."
            )
        paths, counts = Paths(), []
        for name in classes:
            before, unread = len(paths), sum(self.unread.values())
            for inner, names, error in sorted(walk(folder / name), key=itemgetter(0)):
                if error is not None:
                    problem = f"The folder {inner} cannot be read: {error.strerror or error}."
                    raise UserError(problem, "Change its permissions, or move it elsewhere.")
                for file in names:
                    if file.lower().endswith(IMG_EXTENSIONS):
                        paths.add(os.path.join(inner, file))
                    elif UNREAD.fullmatch(kind := os.path.splitext(file)[1].lower()):
                        self.unread[kind] += 1
                        self.example = self.example or os.path.join(inner, file)
            counts.append(len(paths) - before)
            if not counts[-1]:
                kinds = " ".join(IMG_EXTENSIONS)
                remedy = f"Add images ({kinds}) or remove the folder."
                if unread < sum(self.unread.values()):
                    remedy = f"Convert its files ({_counted(self.unread)}) to one of {kinds}, or remove the folder."
                raise UserError(f"The class folder {folder / name} has no images.", remedy)
        return paths, np.repeat(np.arange(len(classes)), counts)

    def part(
        self, name: str, files: Paths, labels: np.ndarray, relative: list[str], states: list[State], chosen: np.ndarray
    ) -> FileImages:
        """Some of the files of an undivided folder, or of a manifest, as a split.

        Args:
            name: Of the split.
            relative: Paths of all files, seen from the folder, or what else tells them apart.
            states: Of all files.
            chosen: Indices of those of the split.
        """
        indices, some = chosen.tolist(), Paths()
        for index in indices:
            some.add(files[index])
        paths, own = (relative[index] for index in indices), (states[index] for index in indices)
        return self._images(some, labels[chosen], paths, own, f"{name}: ")

    def _images(
        self, files: Paths, labels: np.ndarray, relative: Iterable[str], states: Iterable[State], mark: str
    ) -> FileImages:
        """Files as images; their names and sizes go to the digest."""
        written = hashlib.sha256()
        for path, (size, changed) in zip(relative, states, strict=True):
            self.hash.update(os.fsencode(f"{self.between}{mark}{path} {size}"))  # names of files need not be UTF-8
            self.between = "\n"
            written.update(os.fsencode(f"{path} {size} {changed}\n"))  # other images may have the same times
        return FileImages(files, labels, written.digest())

    def fingerprint(self) -> str:
        """16 hex digits of the paths, sizes and classes listed so far."""
        return self.hash.hexdigest()[:16]

    def notes(self) -> list[str]:
        """A notice of the files whose type is not read."""
        if not self.unread:
            return []
        remedy = "Convert them to .jpg or .png."
        return [f"Notice: files of these types are not read: {_counted(self.unread)} ({self.example}). {remedy}"]


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted as by torchvision's ``ImageFolder``; not hidden and system ones."""
    return sorted(entry.name for entry in folder.iterdir() if not is_ignored(entry.name) and entry.is_dir())


def is_ignored(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system or tool leaves behind."""
    return name.startswith(".") or name in SYSTEM


def has_images(folder: Path) -> bool:
    """Whether images lie anywhere below a folder."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return any(name.lower().endswith(IMG_EXTENSIONS) for _, names, _ in walk(folder) for name in names)


def state_of(path: str) -> State:
    """Size in bytes and time of the last change; zeros for a link that leads nowhere, which reading the split names."""
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def walk(folder: str | Path) -> Iterator[tuple[str, list[str], OSError | None]]:
    """A folder and those below it, each before its subfolders: its path, its files sorted, why it cannot be read.

    Links are followed, but not back into a folder above. Hidden files and folders, and those of systems, are left out.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(os.fspath(folder), ())]
    while waiting:
        inner, above = waiting.pop()
        try:
            state = os.stat(inner)
            if (here := (state.st_dev, state.st_ino)) in above:
                continue
            with os.scandir(inner) as found:
                entries = sorted((entry.name, _is_folder(entry)) for entry in found if not is_ignored(entry.name))
        except OSError as error:
            yield inner, [], error
            continue
        yield inner, [name for name, is_folder in entries if not is_folder], None
        folders = [os.path.join(inner, name) for name, is_folder in entries if is_folder]
        waiting += [(path, (*above, here)) for path in reversed(folders)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
