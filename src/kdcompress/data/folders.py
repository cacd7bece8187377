"""A folder with a folder for each class, in ``train/`` and ``test/`` or without them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kdcompress.data.images import FileImages, Paths
from kdcompress.data.labels import without_images
from kdcompress.data.listing import Listing, class_folders, has_images
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import SplitFile
from kdcompress.data.undivided import Found, divided, some
from kdcompress.errors import UserError, usage_error

HELD_OUT = ("test", "val", "validation", "valid")  # the first one with class folders is the test split
FORMERLY_FOUND = ("test", "val", "validation")


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
    if train is not None and not held_out and _is_class(train):
        train = None
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
        elif set(test_classes) < set(classes):
            test.labels = np.array([classes.index(name) for name in test_classes])[test.labels]
            notes.append(f"Notice: {labelled[0]} has no images of {without_images(test.labels, classes)}.")
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
    if split is not None and not split.answered:  # answers name no folders
        recorded = sorted({label for _, label, _ in split.rows})
        if new := sorted(set(classes) - set(recorded)):
            notes.append(f"Notice: class folders added to {root} since, and not used: {some(new)}.")
        classes = recorded
    listing = Listing()
    files, labels = listing.files(root, classes)
    relative = [os.path.relpath(file, root) for file in files]
    found = Found(root, files, labels, relative, tuple(classes))
    if split is not None and split.answered:
        split = split.relabelled(relative, [classes[label] for label in labels], answered=False)
    source = divided(found, listing, split, f"{root} has no train/ and test/")
    source.notes += notes
    source.first_notes[:0] = left_out
    return source


def _split_folder(root: Path, name: str) -> Path | None:
    """The folder of a split, whatever its capitals (``Train``)."""
    if (root / name).is_dir():
        return root / name
    return next((root / other for other in class_folders(root) if other.lower() == name), None)


def _is_class(folder: Path) -> bool:
    """Whether a folder called ``train`` has the images of a class: those of trains, say, beside those of buses."""
    others = (folder.parent / name for name in class_folders(folder.parent) if name != folder.name)
    return not class_folders(folder) and has_images(folder) and any(map(has_images, others))


def _is_unlabelled(folder: Path, classes: list[str] | None) -> bool:
    """Whether a folder has no class folders: images alone, or all of them in one folder that is no class."""
    names = class_folders(folder)
    return not names or (len(names) == 1 and classes is not None and names[0] not in classes)


def _check_alone(root: Path, held_out: list[Path]) -> None:
    """Refuse folders of images beside ``test/``: whether they are for training is not known."""
    others = [name for name in class_folders(root) if root / name not in held_out]
    if with_images := [name for name in others if has_images(root / name)]:
        problem = f"The folder {root} has {held_out[0].name}/ in it, but no train/ beside it: {some(with_images)}."
        raise UserError(problem, f"Move the class folders for training into {root / 'train'}.")
