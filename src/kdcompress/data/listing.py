"""The images below class folders, and what else is there."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.errors import UserError

SYSTEM = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
UNREAD = re.compile(  # images and videos of types that are not read
    r"\.(gif|hei[cf]|avif|jfif|jp2|jxl|svg|ico|psd|raw|dng|cr[23]|nef|arw|orf|rw2|mp4|mov|avi)"
)


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
        return classes, self._images(files, labels, folder.parent, "")

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
            for inner, _, names in sorted(_walk(folder / name)):
                for file in sorted(names):
                    if file.lower().endswith(IMG_EXTENSIONS) and not is_ignored(file):
                        paths.add(os.path.join(inner, file))
                    elif UNREAD.fullmatch(kind := os.path.splitext(file)[1].lower()) and not is_ignored(file):
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

    def part(self, name: str, files: list[str], labels: np.ndarray, root: Path) -> FileImages:
        """Some of the files of an undivided folder as a split."""
        chosen = Paths()
        for file in files:
            chosen.add(file)
        return self._images(chosen, labels, root, f"{name}: ")

    def _images(self, files: Paths, labels: np.ndarray, root: Path, mark: str) -> FileImages:
        """Files as images; their names and sizes go to the digest."""
        written = hashlib.sha256()
        for path in files:
            size, changed = state_of(path)
            line = f"{self.between}{mark}{os.path.relpath(path, root)} {size}"
            self.hash.update(os.fsencode(line))  # names of files need not be UTF-8
            self.between = "\n"
            written.update(f"{changed} ".encode())
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

    return any(name.lower().endswith(IMG_EXTENSIONS) for _, _, names in _walk(folder) for name in names)


def state_of(path: str) -> tuple[int, int]:
    """Size in bytes and time of the last change; zeros for a link that leads nowhere, which reading the split names."""
    try:
        state = os.stat(path)
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def _walk(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """As :func:`os.walk`, through links, without hidden and system folders."""
    found = []
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_ignored(name)]
        found.append((inner, list(folders), names))
    return found


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
