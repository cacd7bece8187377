"""A manifest as a data set: its rows in the order of classes and paths, whatever that of its lines is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.data.labels import without_images
from kdcompress.data.listing import Listing
from kdcompress.data.manifest import VALIDATION, Manifest, Row, read_manifest
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import TEST, TRAIN, SplitFile
from kdcompress.data.undivided import Found, divided, some
from kdcompress.errors import UserError

State = tuple[int, int]
LABEL = "Give each a label, or remove these lines; images without labels go to --unlabelled."


@dataclass(frozen=True)
class _Part:
    """Rows of one split with the states of their files, sorted by label and path."""

    rows: list[Row]
    states: list[State]

    @property
    def labels(self) -> set[str]:
        return {row.label for row in self.rows}


def manifest_source(spec: str, split: SplitFile | None = None, known: Sequence[str] | None = None) -> DataSource:
    """The images that a manifest names.

    Args:
        split: The division that a run recorded, for a manifest that has none.
        known: Class names of the network that the images are for: its order is kept, and a manifest for evaluation need
            not have images of all of them.

    Raises:
        UserError: As :func:`read_manifest`; labels are missing, or there is only one class.
    """
    manifest = read_manifest(spec)
    if manifest.has_splits:
        source = _with_splits(manifest, known)
        if split is not None:
            source.notes.insert(0, f"Notice: {manifest.file} has a column split now, in place of {split.origin}'s.")
    else:
        source = _undivided(manifest, split, known)
    if manifest.unused:
        source.first_notes.append(f"Notice: columns of {manifest.file} that are not used: {some(manifest.unused)}.")
    if manifest.repeated:
        rows = "1 line repeats" if manifest.repeated == 1 else f"{manifest.repeated} lines repeat"
        source.first_notes.append(f"Notice: {rows} others of {manifest.file}; each image is used once.")
    return source


def _undivided(manifest: Manifest, split: SplitFile | None, known: Sequence[str] | None) -> DataSource:
    part, notes = _part(manifest, None), list[str]()
    manifest.refuse((row for row in part.rows if not row.label), "no label", LABEL)
    if split is None:
        classes = _classes(manifest, part.labels, known)
        counts = Counter(row.label for row in part.rows)
        remedy = "A class needs three or more: add images, remove it, or divide them by a column split (train, test)."
        manifest.refuse(
            (row for row in part.rows if counts[row.label] == 1), "classes of one image", remedy, labels=True
        )
    else:
        recorded = {label for _, label, _ in split.rows}
        classes = _ordered(recorded, known)
        if new := sorted(part.labels - recorded):
            notes.append(f"Notice: labels added to {manifest.file} since, and not used: {some(new)}.")
            kept = [index for index, row in enumerate(part.rows) if row.label in recorded]
            part = _Part([part.rows[index] for index in kept], [part.states[index] for index in kept])
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[row.label] for row in part.rows], dtype=np.int64)
    relative = [row.path for row in part.rows]
    found = Found(manifest.file, _paths(manifest, part), labels, relative, classes, [_mark(row) for row in part.rows])
    source = divided(found, Listing(), split, f"{manifest.file} has no column split")
    source.notes += notes
    return source


def _with_splits(manifest: Manifest, known: Sequence[str] | None) -> DataSource:
    parts = {name: _part(manifest, name) for name in (TRAIN, TEST, VALIDATION)}
    notes = list[str]()
    held_out = [name for name in (TEST, VALIDATION) if parts[name].rows]
    labelled = [name for name in held_out if parts[name].labels != {""}]
    for name in held_out:
        if name not in labelled:
            instead = f"{labelled[0]} is the test split" if labelled else "there is no test split"
            notes.append(f"Notice: the images of {name} in {manifest.file} have no labels, so {instead}.")
        elif name != labelled[0]:
            notes.append(f"Notice: {name} in {manifest.file} is not used: {labelled[0]} is the test split.")
    train = parts[TRAIN]
    if not train.rows and not labelled:
        raise UserError(f"The manifest {manifest.file} has no image with a label.", LABEL)
    test = parts[labelled[0]] if labelled else _Part([], [])
    manifest.refuse((row for row in [*train.rows, *test.rows] if not row.label), "no label", LABEL)
    if train.rows:
        classes = _classes(manifest, train.labels, known)
        odd = (row for row in test.rows if row.label not in classes)
        remedy = "Give images of them for training, or remove these lines."
        manifest.refuse(odd, "labels that no training image has", remedy, labels=True)
        gone = without_images(np.array([classes.index(label) for label in test.labels]), classes)
        if labelled and gone:
            notes.append(f"Notice: no test images of {gone}.")
    elif known is None:
        classes = _classes(manifest, test.labels, known)
    else:
        classes = tuple(known)
        remedy = f"Its classes are {some(classes)}: correct the labels, or remove these lines."
        odd = (row for row in test.rows if row.label not in classes)
        manifest.refuse(odd, "labels that the network does not know", remedy, labels=True)
        if gone := without_images(np.array([classes.index(label) for label in test.labels]), classes):
            notes.append(f"Notice: no images of {gone}.")
    listing = Listing()
    made = {name: _images(manifest, part, classes, listing, name) for name, part in ((TRAIN, train), (TEST, test))}
    return DataSource(
        spec=str(manifest.file),
        train=made[TRAIN],
        test=made[TEST] if labelled else None,
        num_classes=len(classes),
        class_names=classes,
        fingerprint=listing.fingerprint(),
        first_notes=notes,
    )


def _part(manifest: Manifest, split: str | None) -> _Part:
    paired = zip(manifest.rows, manifest.states, strict=True)
    chosen = sorted((pair for pair in paired if pair[0].split == split), key=lambda pair: (pair[0].label, pair[0].path))
    return _Part([row for row, _ in chosen], [state for _, state in chosen])


def _classes(manifest: Manifest, labels: set[str], known: Sequence[str] | None) -> tuple[str, ...]:
    """Class names of training images, in label order.

    Raises:
        UserError: There is only one.
    """
    if len(labels) == 1:
        remedy = "A classifier needs two classes or more."
        raise UserError(f"The manifest {manifest.file} has only one label, {next(iter(labels))!r}.", remedy)
    return _ordered(labels, known)


def _ordered(labels: set[str], known: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(known) if known is not None and set(known) == labels else tuple(sorted(labels))


def _paths(manifest: Manifest, part: _Part) -> Paths:
    return Paths(os.path.join(manifest.folder, row.path) for row in part.rows)


def _mark(row: Row) -> str:
    """What the digest takes of a row: another label is another data set."""
    return f"{row.path} {row.label}"


def _images(manifest: Manifest, part: _Part, classes: tuple[str, ...], listing: Listing, name: str) -> FileImages:
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[row.label] for row in part.rows], dtype=np.int64)
    marks, every = [_mark(row) for row in part.rows], np.arange(len(part.rows))
    return listing.part(name, _paths(manifest, part), labels, marks, part.states, every)
