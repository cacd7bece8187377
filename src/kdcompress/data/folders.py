"""A folder with a folder for each class, in ``train/`` and ``test/`` or without them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.data.labels import without_images
from kdcompress.data.listing import Listing, class_folders, has_images, state_of
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import SEED, TEST, TRAIN, SplitFile, divide, same_bytes
from kdcompress.errors import UserError, usage_error

HELD_OUT = ("test", "val", "validation", "valid")  # the first one with class folders is the test split
FORMERLY_FOUND = ("test", "val", "validation")
SHOWN = 5  # names in a notice


def folder_source(spec: str, split: SplitFile | None = None) -> DataSource:
    """A folder of images.

    Args:
        split: The division that a run recorded, for a folder that has none.

    Raises:
        UserError: It is not laid out as a data set, or its splits have other classes.
    """
    root = Path(os.path.abspath(spec))  # without "..", as a run records it
    train = _split_folder(root, "train")
    held_out = [folder for name in HELD_OUT if (folder := _split_folder(root, name)) is not None]
    if train is None and not any(class_folders(folder) for folder in held_out):
        return _undivided(root, held_out, split)
    if train is None:
        _check_alone(root, held_out)
    listing, notes = Listing(), list[str]()
    if train is not None:
        classes, images = listing.split(train)
    labelled = [folder for folder in held_out if not _is_unlabelled(folder, None if train is None else classes)]
    for folder in held_out:
        if folder not in labelled:
            instead = f"{labelled[0].name}/ is the test split" if labelled else "there is no test split"
            notes.append(f"Notice: {folder} has no folders of the classes, so {instead}.")
        elif folder != labelled[0]:
            notes.append(f"Notice: {folder} is not used: {labelled[0].name}/ is the test split.")
    if train is None and labelled and labelled[0].name.lower() != "test":
        notes.append(f"Notice: {root} has no train/; {labelled[0].name}/ is the test split.")
    test, former = None, None
    if labelled:
        if labelled[0].name not in FORMERLY_FOUND and train is not None:
            former = listing.fingerprint()
        test_classes, test = listing.split(labelled[0])
        if train is None:
            classes, images = test_classes, FileImages(Paths(), np.empty(0, np.int64), b"")
        elif test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise UserError(
                f"The classes of {train} and {labelled[0]} differ: {', '.join(odd[:5])} only in one of them.",
                "Give both splits the same class folders.",
            )
    return DataSource(
        spec=str(root),
        train=images,
        test=test,
        num_classes=len(classes),
        class_names=tuple(classes),
        fingerprint=listing.fingerprint(),
        former=former,
        first_notes=notes + listing.notes(),
    )


def _undivided(root: Path, held_out: list[Path], split: SplitFile | None) -> DataSource:
    """A folder of class folders, without ``train/`` and ``test/``.

    Args:
        held_out: Folders with the name of a split, but without class folders.
    """
    notes, left_out, classes = list[str](), list[str](), class_folders(root)
    if not classes:
        remedy = "Lay it out as CLASS/image.jpg, or as train/CLASS/image.jpg and test/CLASS/image.jpg."
        raise UserError(f"The folder {root} has no class folders in it.", remedy)
    if len(classes) == 1 and len(class_folders(root / classes[0])) > 1:
        raise usage_error(f"The folder {root} has only one folder in it.", f"Give that: {root / classes[0]}.")
    names = [name for name in classes if root / name not in held_out]
    if len(names) > 1:  # else they are classes: valid/ and invalid/
        left_out += [f"Notice: {folder} has no class folders, and is not used." for folder in held_out]
        classes = names
    if split is not None:
        recorded = sorted({label for _, label, _ in split.rows})
        if new := sorted(set(classes) - set(recorded)):
            notes.append(f"Notice: class folders added to {root} since, and not used: {_some(new)}.")
        classes = recorded
    listing = Listing()
    files, labels = listing.files(root, classes)
    relative, states = [os.path.relpath(file, root) for file in files], [state_of(file) for file in files]
    paths = [path.replace(os.sep, "/") for path in relative]
    is_new = split is None
    if split is None:
        groups = same_bytes(files, [size for size, _ in states])
        is_test = divide(paths, labels, groups)
        sides = np.where(is_test, TEST, TRAIN)
        rows = zip(paths, (classes[label] for label in labels), (str(side) for side in sides), strict=True)
        split = SplitFile(tuple(rows))
        how = f"has no train/ and test/, so a fifth of each class is the test split (seed {SEED})"
        more = _copies(groups)
        notes += _disputed(groups, labels, paths)
    else:
        known = split.sides()
        sides = np.array([known.get(path, "") for path in paths])
        how, more = f"is divided as recorded in {split.origin}", ""
        notes += _changes(root, known, paths)
    parts = {}
    for name in (TRAIN, TEST):
        chosen = np.flatnonzero(sides == name)
        parts[name] = listing.part(name, files, labels, relative, states, chosen)
    if is_new and (gone := without_images(parts[TEST].labels, classes)):
        left_out.append(f"Notice: no test images of {gone}: a class of one image, or copies of one, is not divided.")
    notes.insert(
        0,
        f"Notice: {root} {how}: {len(parts[TRAIN].labels)} images for training, {len(parts[TEST].labels)} for "
        f"testing{more}.",
    )
    return DataSource(
        spec=str(root),
        train=parts[TRAIN],
        test=parts[TEST] if len(parts[TEST].labels) else None,
        num_classes=len(classes),
        class_names=tuple(classes),
        fingerprint=listing.fingerprint(),
        notes=notes,
        first_notes=left_out + listing.notes(),
        split=split,
    )


def _copies(groups: list[int]) -> str:
    copies = len(groups) - len(set(groups))
    words = "exact copy stays with its original" if copies == 1 else "exact copies stay with their originals"
    return f"; {copies} {words}" if copies else ""


def _disputed(groups: list[int], labels: np.ndarray, paths: list[str]) -> list[str]:
    """One image in folders of several classes has several labels, of which all but one are wrong."""
    found = {index: path for index, path in enumerate(paths) if labels[index] != labels[groups[index]]}
    if not found:
        return []
    pairs = [f"{paths[groups[index]]} = {path}" for index, path in found.items()]
    which = "1 image is a copy of one" if len(found) == 1 else f"{len(found)} images are copies of some"
    return [f"Notice: {which} in another class ({_some(pairs)}); all labels are used as they are."]


def _changes(root: Path, known: dict[str, str], paths: list[str]) -> list[str]:
    """What has been added to a folder, or is gone, since its division was recorded."""
    there = set(paths)
    added = [path for path in paths if path not in known]
    gone = [path for path in known if path not in there]
    notes = []
    if added:
        notes.append(
            f"Notice: added to {root} since then, and not used: {_number(added)} ({_some(added)}). A new chain, from "
            "train-teacher on, uses all images."
        )
    if gone:
        notes.append(f"Notice: no longer in {root}: {_number(gone)} ({_some(gone)}).")
    return notes


def _split_folder(root: Path, name: str) -> Path | None:
    """The folder of a split, whatever its capitals (``Train``)."""
    if (root / name).is_dir():
        return root / name
    return next((root / other for other in class_folders(root) if other.lower() == name), None)


def _is_unlabelled(folder: Path, classes: list[str] | None) -> bool:
    """Whether a folder has no class folders: images alone, or all of them in one folder that is no class."""
    names = class_folders(folder)
    return not names or (len(names) == 1 and classes is not None and names[0] not in classes)


def _check_alone(root: Path, held_out: list[Path]) -> None:
    """Refuse folders of images beside ``test/``: whether they are for training is not known."""
    others = [name for name in class_folders(root) if root / name not in held_out]
    if with_images := [name for name in others if has_images(root / name)]:
        problem = f"The folder {root} has {held_out[0].name}/ in it, but no train/ beside it: {_some(with_images)}."
        raise UserError(problem, f"Move the class folders for training into {root / 'train'}.")


def _number(images: list[str]) -> str:
    return f"{len(images)} image{'s' * (len(images) != 1)}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")
