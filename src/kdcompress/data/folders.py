"""A folder with a folder for each class, in the order of torchvision's ``ImageFolder``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.data.source import DataSource
from kdcompress.errors import UserError


def folder_source(spec: str) -> DataSource:
    root = Path(spec).absolute()
    if not (root / "train").is_dir():
        remedy = "Lay it out as train/CLASS/image.jpg and test/CLASS/image.jpg (val/ serves as test/ too)."
        raise UserError(f"The folder {spec} has no train/ in it.", remedy)
    digest = _Lines()
    classes, train = _list_images(root / "train", digest)
    held_out = next((root / name for name in ("test", "val", "validation") if (root / name).is_dir()), None)
    test = None
    if held_out is not None:
        test_classes, test = _list_images(held_out, digest)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise UserError(
                f"The classes of {root / 'train'} and {held_out} differ: {', '.join(odd[:5])} only in one of them.",
                "Give both splits the same class folders.",
            )
    return DataSource(
        spec=str(root),
        train=train,
        test=test,
        num_classes=len(classes),
        class_names=tuple(classes),
        fingerprint=digest.hash.hexdigest()[:16],
    )


class _Lines:
    """The hash of lines of text, without keeping them."""

    def __init__(self) -> None:
        self.hash, self.between = hashlib.sha256(), ""

    def add(self, line: str) -> None:
        self.hash.update(os.fsencode(f"{self.between}{line}"))  # names of files need not be UTF-8
        self.between = "\n"


def _list_images(split: Path, digest: _Lines) -> tuple[list[str], FileImages]:
    """Class names and images, in the order of torchvision's ``ImageFolder``; names and sizes go to the digest."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(
            f"The folder {split} has no class folders.", "Put the images of each class into a folder of its own."
        )
    if len(classes) == 1:
        raise UserError(
            f"The folder {split} has only one class, {classes[0]}.", "A classifier needs two classes or more."
        )
    paths, counts, written = Paths(), [], hashlib.sha256()
    for name in classes:
        before = len(paths)
        for folder, _, files in sorted(os.walk(split / name, followlinks=True)):
            for file in sorted(files):
                if file.lower().endswith(IMG_EXTENSIONS):
                    path = os.path.join(folder, file)
                    paths.add(path)
                    state = os.stat(path)
                    digest.add(f"{os.path.relpath(path, split.parent)} {state.st_size}")
                    written.update(f"{state.st_mtime_ns} ".encode())
        counts.append(len(paths) - before)
        if not counts[-1]:
            remedy = f"Add images ({' '.join(IMG_EXTENSIONS)}) or remove the folder."
            raise UserError(f"The class folder {split / name} has no images.", remedy)
    return classes, FileImages(paths, np.repeat(np.arange(len(classes)), counts), written.digest())
