"""Images with labels, but without splits: a fifth of each class becomes the test split, or what a run recorded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcompress.data.images import Paths
from kdcompress.data.labels import without_images
from kdcompress.data.listing import Listing, state_of
from kdcompress.data.near_copies import MOST_FILES, implausible, near_copies
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import SEED, TEST, TRAIN, SplitFile, divide, same_bytes

SHOWN = 5  # names in a notice


@dataclass(frozen=True)
class Found:
    """Images with labels.

    Attributes:
        spec: The folder or manifest, an absolute path.
        files: Of the images.
        labels: [N] class of each.
        relative: Their paths as a run records them, with the system's separator.
        classes: Names, in label order.
        marks: What the digest of the data takes of each; None: the relative paths, which name the class folders.
    """

    spec: Path
    files: Paths
    labels: np.ndarray
    relative: list[str]
    classes: tuple[str, ...]
    marks: list[str] | None = None


def divided(found: Found, listing: Listing, split: SplitFile | None, why: str) -> DataSource:
    """A data set of images that nobody has divided.

    Args:
        listing: Takes the digest of the images.
        split: The division that a run recorded; None: it is made here, by their paths and a fixed seed.
        why: They have no splits, for the notice.
    """
    files, labels, classes = found.files, found.labels, found.classes
    states = [state_of(file) for file in files]
    paths = [path.replace(os.sep, "/") for path in found.relative]
    is_new, notes = split is None, list[str]()
    if split is None:
        groups, notes = _groups(files, [size for size, _ in states], labels, paths)
        sides = np.where(divide(paths, labels, groups), TEST, TRAIN)
        rows = zip(paths, (classes[label] for label in labels), (str(side) for side in sides), strict=True)
        counts = Counter(groups)
        copies = {path: group for path, group in zip(paths, groups, strict=True) if counts[group] > 1}
        split = SplitFile(tuple(rows), groups=copies)
        how = f"{why}, so a fifth of each class is the test split (seed {SEED})"
    else:
        known = split.sides()
        sides = np.array([known.get(path, "") for path in paths])
        how = f"{found.spec} is divided as recorded in {split.origin}"
        notes += _changes(found.spec, known, paths)
    parts = {}
    for name in (TRAIN, TEST):
        chosen = np.flatnonzero(sides == name)
        parts[name] = listing.part(name, files, labels, found.marks or found.relative, states, chosen)
    train, test = parts[TRAIN], parts[TEST]
    sizes = f"{len(train.labels)} images for training, {len(test.labels)} for testing"
    left_out = []
    if is_new and (gone := without_images(test.labels, classes)):
        left_out.append(f"Notice: no test images of {gone}: a class of one image, or copies of one, is not divided.")
    return DataSource(
        spec=str(found.spec),
        train=train,
        test=test if len(test.labels) else None,
        num_classes=len(classes),
        class_names=classes,
        fingerprint=listing.fingerprint(),
        notes=[f"Notice: {how}: {sizes}.", *notes],
        first_notes=left_out + listing.notes(),
        split=split,
        groups=_numbered([paths[index] for index in np.flatnonzero(sides == TRAIN)], split),
    )


def _groups(files: Paths, sizes: list[int], labels: np.ndarray, paths: list[str]) -> tuple[list[int], list[str]]:
    """A number for each image that it shares with its copies, exact and near ones; and what to say of them."""
    exact, notes = same_bytes(files, sizes), list[str]()
    if copies := len(exact) - len(set(exact)):
        words = "exact copy stays with its original" if copies == 1 else "exact copies stay with their originals"
        notes.append(f"Notice: {copies} {words} in one split.")
    groups = exact
    if len(files) > MOST_FILES:
        notes.append(f"Notice: of more than {MOST_FILES:,} images only exact copies are kept in one split.")
    else:
        groups = near_copies(files, exact)
    if alike := implausible(groups, labels):
        notes += look_alike([paths[group] for group in sorted(alike)])
        groups = [own if group in alike else group for group, own in zip(groups, exact, strict=True)]
    if near := _joined(groups, exact):
        which = "1 image has a near-duplicate" if len(near) == 1 else f"{len(near)} images have near-duplicates"
        notes.append(f"Notice: {which}; they stay in one split.")
    return groups, notes + _disputed(exact, groups, labels, paths)


def _joined(groups: Sequence[int], exact: Sequence[int]) -> list[int]:
    """Images whose group has others than their exact copies."""
    parts: dict[int, set[int]] = {}
    for group, own in zip(groups, exact, strict=True):
        parts.setdefault(group, set()).add(own)
    return [index for index, group in enumerate(groups) if len(parts[group]) > 1]


def _disputed(exact: Sequence[int], groups: Sequence[int], labels: np.ndarray, paths: list[str]) -> list[str]:
    """One image in folders of several classes has several labels, of which all but one are wrong."""
    copies = {index: first for index, first in enumerate(exact) if labels[index] != labels[first]}
    alike = {index: first for index, first in enumerate(groups) if labels[index] != labels[first]}
    near = {index: first for index, first in alike.items() if index not in copies}
    notes = []
    for found, one, several in ((copies, "a copy", "copies"), (near, "a near-duplicate", "near-duplicates")):
        if found:
            pairs = [f"{paths[first]} = {paths[index]}" for index, first in found.items()]
            which = f"1 image is {one} of one" if len(found) == 1 else f"{len(found)} images are {several} of some"
            notes.append(f"Notice: {which} in another class ({some(pairs)}); all labels are used as they are.")
    return notes


def _numbered(paths: list[str], split: SplitFile) -> np.ndarray | None:
    """A number for each training image that it shares with its copies; None if there are no copies."""
    if not split.groups:
        return None
    single = max(split.groups.values()) + 1
    return np.array([split.groups.get(path, single + index) for index, path in enumerate(paths)], dtype=np.int64)


def _changes(root: Path, known: dict[str, str], paths: list[str]) -> list[str]:
    """What has been added to a folder or manifest, or is gone, since its division was recorded."""
    there = set(paths)
    added = [path for path in paths if path not in known]
    gone = [path for path in known if path not in there]
    notes = []
    if added:
        notes.append(
            f"Notice: added to {root} since then, and not used: {_number(added)} ({some(added)}). A new chain, from "
            "train-teacher on, uses all images."
        )
    if gone:
        notes.append(f"Notice: no longer in {root}: {_number(gone)} ({some(gone)}).")
    return notes


def _number(images: list[str]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}"


def look_alike(images: Sequence[str]) -> list[str]:
    """The notice of images like which most of a class look, if there are any."""
    if not images:
        return []
    return [f"Notice: most images of a class look alike (as {some(images)}): they are not taken for near-duplicates."]


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
