"""Test images that training has, too: exact and near copies, in splits that somebody else has made."""

from __future__ import annotations

import itertools

import numpy as np

from kdcompress.data.images import FileImages
from kdcompress.data.listing import state_of
from kdcompress.data.near_copies import MOST_FILES, implausible, near_copies
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import same_bytes

SHOWN = 3  # pairs in a notice


def copies_in_test(source: DataSource) -> tuple[int, list[str]] | None:
    """How many test images show what a training image shows, and what to say of them.

    Accuracy on them is too good. Of more than :data:`~kdcompress.data.near_copies.MOST_FILES` images only exact copies
    are looked for. None where the images are no files, or one split is not there.
    """
    train, test = source.train, source.test
    if not (isinstance(train, FileImages) and isinstance(test, FileImages) and len(train.labels)):
        return None
    of_test = [state_of(path)[0] for path in test.paths]
    wanted = set(of_test)
    of_train = [(path, size) for path in train.paths if (size := state_of(path)[0]) in wanted]
    known = [path for path, _ in of_train]
    first = same_bytes([*known, *test.paths], [*(size for _, size in of_train), *of_test])[len(known) :]
    copies = {path: known[index] for path, index in zip(test.paths, first, strict=True) if index < len(known)}
    notes = _notice(copies, "a copy", "copies")
    count = len(train.labels) + len(test.labels)
    if count > MOST_FILES:
        return len(copies), [*notes, f"Notice: of {count:,} images only exact copies are looked for."]
    near = _near(train, test, set(copies))
    return len(copies) + len(near), [*notes, *_notice(near, "a near-duplicate", "near-duplicates")]


def _near(train: FileImages, test: FileImages, known: set[str]) -> dict[str, str]:
    """Test images, by path, with a training image that each is a near copy of."""
    rest = [index for index, path in enumerate(test.paths) if path not in known]
    paths = [*train.paths, *(test.paths[index] for index in rest)]
    labels = np.concatenate([train.labels, test.labels[rest]])
    groups, count = near_copies(paths, range(len(paths))), len(train.labels)
    alike = implausible(groups, labels)
    first = zip(paths[count:], groups[count:], strict=True)  # a group has the number of its first image
    return {path: paths[group] for path, group in first if group < count and group not in alike}


def _notice(found: dict[str, str], one: str, several: str) -> list[str]:
    if not found:
        return []
    pairs = ", ".join(f"{path} = {other}" for path, other in itertools.islice(found.items(), SHOWN))
    which = f"1 test image is {one} of a training image" if len(found) == 1 else ""
    which = which or f"{len(found)} test images are {several} of training images"
    return [f"Notice: {which} ({pairs}{' …' if len(found) > SHOWN else ''}): accuracy on them is too good."]
