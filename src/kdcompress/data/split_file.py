"""The division of a folder without splits into training and test images, and the file in a run that records it.

The file is a CSV table ``path,label,split``: paths relative to the folder, with ``/``. It names every image that was
there, so that a later command reads the same ones, whatever has been added since. Where images are copies of others, a
fourth column ``group`` holds a number that they share, so that fit and calibration are divided the same way again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kdcompress.data.listing import state_of
from kdcompress.data.splits import take
from kdcompress.digests import digest_of
from kdcompress.errors import UserError, first_line

COLUMNS, GROUP = ["path", "label", "split"], "group"
TRAIN, TEST = "train", "test"
SEED, TEST_SHARE = 0, 0.2
HEAD = 4096  # bytes that are compared before whole files are
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files need not be UTF-8


@dataclass(frozen=True)
class SplitFile:
    """Which images are for training and which for testing.

    Attributes:
        rows: (path, label, split) of each image.
        origin: The run that recorded it; None if it was made just now.
        groups: Number of the group, by path, of images that are copies of others.
        answered: Whether the labels are a teacher's answers.
    """

    rows: tuple[tuple[str, str, str], ...]
    origin: Path | None = None
    groups: Mapping[str, int] = field(default_factory=dict)
    answered: bool = False

    @classmethod
    def read(cls, path: Path) -> SplitFile:
        """The file of a run.

        Raises:
            UserError: It cannot be read, or holds something else.
        """
        try:
            with open(path, newline="", **TEXT) as file:  # type: ignore[call-overload]
                header, *rows = csv.reader(file)
            known = header in (COLUMNS, [*COLUMNS, GROUP])
            if not known or any(len(row) != len(header) or row[2] not in (TRAIN, TEST) for row in rows):
                raise ValueError(f"its rows are not {','.join(COLUMNS)}")
            groups = {row[0]: int(row[3]) for row in rows if row[3:] and row[3]}
        except (OSError, ValueError, csv.Error) as error:
            remedy = "Take the run from a copy, or train anew."
            raise UserError(f"{path} cannot be read: {first_line(error)}", remedy) from error
        return cls(tuple((row[0], row[1], row[2]) for row in rows), path.parent, groups)

    def is_of(self, folder: Path) -> bool:
        """Whether most of the images are in a folder: the one that was divided may have been moved."""
        return sum((folder / path).is_file() for path, _, _ in self.rows) > len(self.rows) / 2

    def relabelled(self, paths: Sequence[str], labels: Sequence[str], *, answered: bool) -> SplitFile:
        """The same sides of those images that are there, with other labels.

        Args:
            paths: As the system writes them.
            answered: Whether the labels are a teacher's answers.
        """
        own = {path.replace(os.sep, "/"): label for path, label in zip(paths, labels, strict=True)}
        rows = tuple((path, own[path], side) for path, _, side in self.rows if path in own)
        return replace(self, rows=rows, answered=answered)

    def content(self) -> bytes:
        """As it is written to a run folder."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, GROUP] if self.groups else COLUMNS)
        writer.writerows((*row, self.groups.get(row[0], "")) if self.groups else row for row in self.rows)
        return text.getvalue().encode(**TEXT)

    def sides(self) -> dict[str, str]:
        """Path -> split."""
        return {path: split for path, _, split in self.rows}


def divide(paths: Sequence[str], labels: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """Choose the test images of a folder: a fifth of each class, by a hash of seed and path (our choice).

    No generator is drawn from, and adding an image moves few others. Images of one group stay together. Of two images
    of a class or more at least one goes each way, unless they are of one group.

    Args:
        paths: [N] relative to the folder.
        labels: [N] class of each image.
        groups: [N] a number that images which belong together share.

    Returns:
        Whether each image is for testing, bool [N].
    """
    counts = np.bincount(labels)
    wanted = np.minimum(np.maximum(np.round(TEST_SHARE * counts), 1), np.maximum(counts - 1, 0))
    return take(labels, groups, [_draw(path) for path in paths], wanted)


def same_bytes(files: Sequence[str], sizes: Sequence[int]) -> list[int]:
    """For each file the index of the first one with the same content; few files have to be read for it.

    Args:
        sizes: In bytes, of each file.
    """
    alike = _refined([[index for index, size in enumerate(sizes) if size]], lambda index: sizes[index])
    alike = _refined(alike, lambda index: _head(files[index]))
    alike = _refined(alike, lambda index: _whole(files[index]))
    first = list(range(len(files)))
    for group in alike:
        for index in group:
            first[index] = group[0]
    return first


def copies_of(known: Iterable[str], files: Sequence[str]) -> dict[str, str]:
    """Files with the content of a known one, and that one, by path; of the known ones few have to be read."""
    sizes = [state_of(path)[0] for path in files]
    wanted = set(sizes)
    near = [(path, size) for path in known if (size := state_of(path)[0]) in wanted]
    paths = [path for path, _ in near]
    first = same_bytes([*paths, *files], [*(size for _, size in near), *sizes])[len(paths) :]
    return {path: paths[index] for path, index in zip(files, first, strict=True) if index < len(paths)}


def _refined(groups: list[list[int]], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Groups of those that also have the same key; a group of one is none."""
    found: dict[tuple[int, Hashable], list[int]] = {}
    for number, group in enumerate(groups):
        for index in group:
            found.setdefault((number, key(index)), []).append(index)
    return [group for group in found.values() if len(group) > 1]


def _head(file: str) -> Hashable:
    try:
        with open(file, "rb", buffering=0) as opened:
            return hashlib.blake2b(opened.read(HEAD), digest_size=16).digest()
    except OSError:  # reading the split names it
        return file


def _whole(file: str) -> Hashable:
    try:
        return digest_of(Path(file))
    except OSError:
        return file


def _draw(path: str) -> bytes:
    return hashlib.blake2b(f"{SEED} {path}".encode(**TEXT), digest_size=16).digest()
