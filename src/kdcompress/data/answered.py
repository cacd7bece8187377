"""``unlabelled:DIR``: images that nobody has labelled. A teacher's answers stand in for labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kdcompress.data.find_images import images_below
from kdcompress.data.images import FileImages, Paths
from kdcompress.data.listing import Listing
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import SplitFile
from kdcompress.data.undivided import Found, divided
from kdcompress.errors import UserError, usage_error
from kdcompress.references import UNLABELLED


def unanswered(spec: str, num_classes: int) -> DataSource:
    """All images of the folder as a test split, with labels that mean nothing.

    Raises:
        UserError: There is no such folder, or it has no images.
    """
    _, paths, _, root = _files(spec)
    images = FileImages(paths, np.zeros(len(paths), dtype=np.int64), b"")
    nothing = FileImages(Paths(), np.empty(0, np.int64), b"")
    return DataSource(f"{UNLABELLED}{root}", nothing, images, num_classes, None, fingerprint="")


def answered_source(
    spec: str, classes: Sequence[str], answers: np.ndarray | None = None, split: SplitFile | None = None
) -> DataSource:
    """The images of the folder, divided as those of a folder without splits.

    Args:
        classes: Names or numbers of the teacher's classes, in label order.
        answers: [N] the class that the teacher gives each image of :func:`unanswered`.
        split: The division that a run recorded, and with it, unless they are given, the answers.
    """
    relative, paths, left_out, root = _files(spec)
    if answers is None:
        assert split is not None
        numbers = {name: number for number, name in enumerate(classes)}
        known = {path: numbers.get(label, 0) for path, label, _ in split.rows}
        answers = np.array([known.get(path.replace(os.sep, "/"), 0) for path in relative], dtype=np.int64)
    elif split is not None:  # of labelled images: their sides stay
        split = split.relabelled(relative, [classes[answer] for answer in answers], answered=True)
    marks = [f"{path} {classes[answer]}" for path, answer in zip(relative, answers.tolist(), strict=True)]
    found = Found(root, paths, answers, relative, tuple(classes), marks)
    source = divided(found, Listing(), split, f"{root} has no splits")
    source.spec, source.agreement = f"{UNLABELLED}{root}", True
    source.notes.append(f"Notice: {root} has no labels: accuracy is agreement with the teacher.")
    source.first_notes[:0] = left_out
    return source


def _files(spec: str) -> tuple[list[str], Paths, list[str], Path]:
    """Relative paths and paths of the images, notices, and the folder."""
    folder = spec.removeprefix(UNLABELLED)
    if not os.path.isdir(folder):
        raise usage_error(f"There is no folder {folder!r}.", f"Give a folder of images: {UNLABELLED}DIR")
    root = Path(os.path.abspath(folder))
    files, problems, notes = images_below(str(root))
    if problems:
        raise UserError(problems[0], "Give a folder that has images and can be read.")
    return [os.path.relpath(file, root) for file in files], Paths(files), notes, root
