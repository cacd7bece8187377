"""Test images that training has, too: exact and near copies, in splits that somebody else has made."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from kdcompress.data.images import FileImages
from kdcompress.data.near_copies import MOST_FILES, implausible, near_copies
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import copies_of
from kdcompress.data.undivided import look_alike, some
from kdcompress.errors import usage_error

QUICK = 5_000  # images that are compared unasked: of 500 x 375 pixels a core reads 800 a second, of 12 megapixels 20


def copies_in_test(
    source: DataSource, unreadable: Collection[str] = (), *, thorough: bool = False
) -> tuple[int | None, list[str]]:
    """How many test images show what a training image shows, and what to say of them.

    Args:
        unreadable: Test images that are not used.
        thorough: Whether to look among more than :data:`QUICK` images, too; of more than
            :data:`~kdcompress.data.near_copies.MOST_FILES` only for exact copies.

    Returns:
        None where nobody has looked: the images are no files, a split is not there, or there are too many of them.

    Raises:
        UserError: ``thorough``, and there are no files of both splits.
    """
    train, test = source.train, source.test
    if not (isinstance(train, FileImages) and isinstance(test, FileImages) and len(train.labels)):
        if thorough:
            problem = f"--find-copies needs image files in a training and a test split, unlike {source.spec}."
            raise usage_error(problem, "Leave it out.")
        return None, []
    if source.split is not None:
        return 0, []  # copies are kept on one side
    count = len(train.labels) + len(test.labels)
    if count > QUICK and not thorough:
        return None, [f"Notice: among {count:,} images no copies are looked for without --find-copies."]
    missing = set(unreadable)
    used = [index for index, path in enumerate(test.paths) if path not in missing]
    copies = copies_of(train.paths, [test.paths[index] for index in used])
    notes = _notice(copies, "a copy", "copies")
    if count > MOST_FILES:
        return len(copies), [*notes, f"Notice: among {count:,} images only exact copies are looked for."]
    rest = [index for index in used if test.paths[index] not in copies]
    near, kept = _near(train, [test.paths[index] for index in rest], test.labels[rest])
    return len(copies) + len(near), [*notes, *_notice(near, "a near-duplicate", "near-duplicates"), *kept]


def _near(train: FileImages, files: list[str], labels: np.ndarray) -> tuple[dict[str, str], list[str]]:
    """Files, by path, with a training image that each is a near copy of; and a notice of those that prove nothing."""
    paths, count = [*train.paths, *files], len(train.labels)
    groups = near_copies(paths, range(len(paths)))
    alike = implausible(groups, np.concatenate([train.labels, labels]))
    first = zip(files, groups[count:], strict=True)  # a group has the number of its first image
    found = {path: paths[group] for path, group in first if group < count and group not in alike}
    return found, look_alike([paths[group] for group in sorted(alike)])


def _notice(found: Mapping[str, str], one: str, several: str) -> list[str]:
    if not found:
        return []
    pairs = some([f"{path} = {other}" for path, other in found.items()])
    which = f"1 test image is {one} of a training image" if len(found) == 1 else ""
    which = which or f"{len(found)} test images are {several} of training images"
    return [f"Notice: {which} ({pairs}): accuracy on them is too good."]
