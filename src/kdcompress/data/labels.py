"""Labels and inputs as they come from others' data sets, checked once: inside, a label is a class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.schema import MAX_CLASSES

UNNAMED = 25_000  # classes that a data set may have without naming them, whatever the number of its images
COUNT = "Labels are whole numbers that count from 0; names go to the data set's classes."


def whole_labels(labels: Any) -> np.ndarray:
    """Labels [N] of any kind as int64; whole numbers may be written as floats, and stand in arrays of one element.

    Raises:
        UserError: One is a fraction, NaN, text, missing, or a vector as of one-hot labels.
    """
    # of numbers all at once, of anything else one by one
    array = labels if isinstance(labels, np.ndarray) else _plain(labels)
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return np.array([_one(label, index) for index, label in enumerate(labels)], dtype=np.int64)
    with np.errstate(invalid="ignore"):
        whole = array.astype(np.int64)
    odd = np.flatnonzero(whole != array)  # what int64 does not hold, too
    if len(odd):
        raise _odd(int(odd[0]), repr(array[odd[0]].item()))
    return whole


def check_classes(train: np.ndarray, test: np.ndarray | None, classes: Any) -> int:
    """How many classes there are.

    Args:
        train, test: Labels [N].
        classes: Their names, or None where nobody says: then the highest label does.

    Raises:
        UserError: A label outside them, or so high that it can be no count.
    """
    highest = int(train.max(initial=-1))
    count = len(classes) if classes is not None else highest + 1
    if classes is None and count > max(len(train), UNNAMED):
        remedy = "Labels count from 0. If there are so many classes, give the data set a `classes` attribute."
        raise UserError(f"An image has the label {highest}, but there are only {len(train)} images.", remedy)
    if count > MAX_CLASSES:
        raise UserError(f"The data have {count} classes; {MAX_CLASSES} are the most.", COUNT)
    for labels in (train, test):
        if labels is not None and len(odd := labels[(labels < 0) | (labels >= count)]):
            remedy = "Labels count from 0, and both splits have the same classes."
            raise UserError(f"The data have {count} classes, but an image has the label {odd[0]}.", remedy)
    return count


def check_inputs(inputs: Tensor) -> None:
    """Inputs [N, …] that are no images must be numbers: what is none would make the first step's loss none.

    Raises:
        UserError: An item holds NaN or infinity.
    """
    bad = (~inputs.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        what = "NaN" if inputs[bad[0]].isnan().any() else "a number that is infinite, or too large for float32"
        remedy = "Mend these items, or leave them out."
        raise UserError(f"Item {bad[0]} of the data holds {what} ({len(bad)} of {len(inputs)} items do).", remedy)


def _plain(labels: Iterable[Any]) -> np.ndarray:
    try:
        return np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):  # of different shapes, or on another device
        return np.empty(0, dtype=object)


def _one(label: Any, index: int) -> int:
    value = label.tolist() if hasattr(label, "tolist") else label
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (list, tuple)):
        remedy = "Give the number of the class; of one-hot labels that is label.argmax()."
        raise UserError(f"The label of image {index} is {len(value)} values, not one.", remedy)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise _odd(index, repr(value))
    return value


def _odd(index: int, label: str) -> UserError:
    return UserError(f"The label of image {index} is {label[:60]}, which is no class.", COUNT)
