"""Labels and inputs as they come from others' data sets, checked once: inside, a label is a class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.schema import MAX_CLASSES

UNNAMED = 25_000  # classes that a data set may have without naming them, whatever the number of its images
NAMED = 3  # classes in a notice
COUNT = "Labels are whole numbers that count from 0, class names, or one-hot vectors."
ONE_KIND = "Give numbers for all images of both splits, or class names for all."


@dataclass(frozen=True)
class Labels:
    """Labels of both splits.

    Attributes:
        train, test: [N] int64.
        count: Number of classes.
        names: Of the classes, in label order, where known.
    """

    train: np.ndarray
    test: np.ndarray | None
    count: int
    names: tuple[str, ...] | None


def decode(train: Any, test: Any, classes: Sequence[Any] | None) -> Labels:
    """Labels of any kind as classes: whole numbers (also as floats or in arrays of one element), text, or one-hot.

    Text stands for the class of that name. Without ``classes`` the names are those of the training split, sorted.

    Args:
        train, test: Labels of each split; ``test`` is None where there is none.
        classes: Names of the classes, if the data set has them.

    Raises:
        UserError: A label that names no class: a fraction, NaN, a vector that is not one-hot, a number or a name
            outside the classes. Its index is given.
    """
    names = None if classes is None else tuple(str(name) for name in classes)
    if _is_text(train):
        names = names or tuple(sorted({label for label in train if isinstance(label, str)}))
        numbers = _by_name(train, names, "train")
        held_out = None if test is None else _by_name(test, names, "test")
        return Labels(numbers, held_out, check_classes(numbers, held_out, names), names)
    numbers, width = _whole(train, "train")
    held_out, held_out_width = (None, 0) if test is None else _whole(test, "test")
    known = names if names is not None else range(width) if (width := max(width, held_out_width)) else None
    return Labels(numbers, held_out, check_classes(numbers, held_out, known), names)


def check_classes(train: np.ndarray, test: np.ndarray | None, classes: Sequence[Any] | None) -> int:
    """How many classes there are.

    Args:
        train, test: Labels [N].
        classes: Their names, or None where they are not known: then the highest label decides.

    Raises:
        UserError: A label outside them, or one so high that it can be no class.
    """
    highest = int(train.max(initial=-1))
    count = len(classes) if classes is not None else highest + 1
    if classes is None and count > max(len(train), UNNAMED):
        remedy = "Labels count from 0. If there are so many classes, give the data set a `classes` attribute."
        problem = f"The label of image {int(train.argmax())} is {highest}, but there are only {len(train)} images."
        raise UserError(problem, remedy)
    if count > MAX_CLASSES:
        raise UserError(f"The data have {count} classes; {MAX_CLASSES} are the most.", COUNT)
    for split, labels in (("training", train), ("test", test)):
        if labels is not None and len(odd := np.flatnonzero((labels < 0) | (labels >= count))):
            where = f"image {odd[0]} of the {split} split"
            problem = f"The label of {where} is {labels[odd[0]]}, but the data have {count} classes."
            if labels[odd[0]] < 0:
                problem = f"The label of {where} is {labels[odd[0]]}, and labels count from 0."
            more = f" ({len(odd)} labels are out of range)" if len(odd) > 1 else ""
            remedy = f"Labels count from 0 to {count - 1}, and both splits have the same classes{more}."
            if count < 2:
                remedy = f"Give whole numbers from 0, class names, or one-hot vectors{more}."
            raise UserError(problem, remedy)
    return count


def without_images(labels: np.ndarray, names: Sequence[str]) -> str:
    """The classes that no image of a split belongs to: three by name, then their number; empty if there are none.

    Args:
        labels: [N] of the split.
        names: Of the classes, in label order.
    """
    gone = [names[label] for label in np.setdiff1d(np.arange(len(names)), labels)]
    return ", ".join(gone[:NAMED]) + (f" and {len(gone) - NAMED} more" if len(gone) > NAMED else "")


def check_inputs(inputs: Tensor) -> None:
    """Inputs [N, …] that are not images must be finite numbers, or the first loss would not be.

    Raises:
        UserError: An item holds NaN or infinity.
    """
    bad = (~inputs.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        what = "NaN" if inputs[bad[0]].isnan().any() else "a number that is infinite, or too large for float32"
        remedy = "Mend these items, or leave them out."
        raise UserError(f"Item {bad[0]} of the data holds {what} ({len(bad)} of {len(inputs)} items do).", remedy)


def _is_text(labels: Iterable[Any]) -> bool:
    return isinstance(next(iter(labels), None), str)


def _by_name(labels: Iterable[Any], names: Sequence[str], split: str) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(names)}
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            value = repr(label.tolist() if hasattr(label, "tolist") else label)[:60]
            what = f"{value}, but the first training label is text."
            raise UserError(f"The label of {_where(index, split)} is {what}", ONE_KIND)
        if label not in numbers:
            known = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            what = f"{label[:60]!r}, which is not one of the classes {known}."
            raise UserError(f"The label of {_where(index, split)} is {what}", "Both splits have the same classes.")
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def _whole(labels: Any, split: str) -> tuple[np.ndarray, int]:
    """Labels [N] as int64, and the length of one-hot vectors (0 if they are none)."""
    # numbers all at once, anything else one by one
    array = labels if isinstance(labels, np.ndarray) else _plain(labels)
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        return _one_hot(array, split), array.shape[1]
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return np.array([_one(label, index, split) for index, label in enumerate(labels)], dtype=np.int64), 0
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64)
    odd = np.flatnonzero(whole != array)  # also what int64 does not hold
    if len(odd):
        raise _odd(int(odd[0]), split, repr(array[odd[0]].item()))
    return whole, 0


def _one_hot(vectors: np.ndarray, split: str) -> np.ndarray:
    wrong = np.flatnonzero(((vectors != 0) & (vectors != 1)).any(1) | ((vectors != 0).sum(1) != 1))
    if len(wrong):
        index = int(wrong[0])
        text = ", ".join(f"{value:g}" for value in vectors[index][:6].astype(float))
        text += ", …" if vectors.shape[1] > 6 else ""
        problem = f"The label of {_where(index, split)} is the vector ({text}), which is not one-hot."
        raise UserError(problem, "Give the number of the class; of probabilities that is label.argmax().")
    return vectors.argmax(1).astype(np.int64)


def _plain(labels: Iterable[Any]) -> np.ndarray:
    """As an array, if that is possible; tensors of any device and type come one by one."""
    try:
        return np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):  # of different shapes, on another device, or bfloat16
        pass
    try:
        return np.asarray([label.tolist() if hasattr(label, "tolist") else label for label in labels])
    except ValueError:
        return np.empty(0, dtype=object)


def _one(label: Any, index: int, split: str) -> int:
    value = label.tolist() if hasattr(label, "tolist") else label
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple)):
        remedy = "Give the number of the class, or one-hot vectors of one length for all images."
        raise UserError(f"The label of {_where(index, split)} is {len(value)} values, not one.", remedy)
    if isinstance(value, str):
        what = f"{value[:60]!r}, but the first training label is not text."
        raise UserError(f"The label of {_where(index, split)} is {what}", ONE_KIND)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise _odd(index, split, repr(value))
    return value


def _odd(index: int, split: str, label: str) -> UserError:
    return UserError(f"The label of {_where(index, split)} is {label[:60]}, which is no class.", COUNT)


def _where(index: int, split: str) -> str:
    return f"image {index}" + (" of the test split" if split == "test" else "")
