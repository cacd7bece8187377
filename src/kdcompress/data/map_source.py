"""Map-style data sets of others: what their items, labels and floats mean."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdcompress.data.images import UNREADABLE, ArrayImages, MapImages, TensorItems, item_of
from kdcompress.data.labels import Labels, check_inputs, decode, without_images
from kdcompress.data.seeded import seeded
from kdcompress.data.source import DataSource
from kdcompress.errors import UserError, first_line, usage_error

LEAST_SIDE = 2  # pixels of what can be an image
Items = MapImages | ArrayImages | TensorItems


def map_source(spec: str, train: Any, test: Any, flip: bool) -> DataSource:
    """Two data sets with an index as a data source.

    Floats in [0, 1] of the shape of an image are pixels, as torchvision's ``ToTensor`` makes them, and so are whole
    numbers in [0, 255]; an attribute
    ``pixels = False`` of the training set keeps them as they are (our choice).

    Args:
        test: None where there is no test split.

    Raises:
        UserError: A stream, items or labels that cannot be read, or splits of different kinds.
    """
    if isinstance(train, torch.utils.data.IterableDataset) or not hasattr(train, "__getitem__"):
        remedy = "Give data with an index: a folder, torch/NAME, hfds/NAME, wds/NAME or py:module:function."
        raise usage_error(f"{spec} is a stream, which cannot be split into fit and calibration.", remedy)
    classes = _names(train)
    if not len(train) or (classes is not None and not len(classes)):
        raise UserError(f"The data {spec} have no images.", "A classifier needs two classes or more.")
    labels = decode(_labels_of(train), None if test is None else _labels_of(test), classes)
    pixels = getattr(train, "pixels", None) is not False
    train_items, digest = _items(train, labels.train, pixels)
    test_items = None
    if labels.test is not None:
        test_items = _items(test, labels.test, pixels)[0]
        if len(labels.test) and isinstance(train_items, TensorItems) != isinstance(test_items, TensorItems):
            if not (_is_float(train) and _is_float(test)):
                kind, other = ("numbers", "images") if isinstance(train_items, TensorItems) else ("images", "numbers")
                problem = f"The training split of {spec} gives {kind}, the test split {other}."
                raise UserError(problem, "Give both the same transforms.")
            train_items, digest = _items(train, labels.train, pixels=False)  # one of them is normalised already
            test_items = _items(test, labels.test, pixels=False)[0]
    return DataSource(
        spec,
        train_items,
        test_items,
        labels.count,
        labels.names,
        digest,
        flip,
        first_notes=_class_notes(spec, labels) + _notes(spec, train, train_items, pixels),
    )


def _items(dataset: Any, labels: np.ndarray, pixels: bool) -> tuple[Items, str]:
    """Images, or inputs that are not (tensors and arrays other than ``uint8``); and a digest of labels and content.

    Args:
        pixels: Whether numbers may be pixels.
    """
    digest = hashlib.sha256(labels.tobytes())
    first = _item(dataset, 0) if len(labels) else None
    if not isinstance(first, (torch.Tensor, np.ndarray)) or torch.as_tensor(first).dtype == torch.uint8:
        images = MapImages(dataset, labels)
        for index in np.linspace(0, len(labels) - 1, 32 if len(labels) else 0).astype(int):
            with contextlib.suppress(*UNREADABLE):  # reading the split names it
                digest.update(np.asarray(images.image(int(index))).tobytes())
        return images, digest.hexdigest()[:16]
    if pixels and (array := _pixels(dataset, first, digest.copy())) is not None:
        return ArrayImages(array[0], labels), array[1]
    try:
        inputs = torch.stack([torch.as_tensor(_item(dataset, index)).float() for index in range(len(labels))])
    except RuntimeError as error:
        remedy = "Give all of them one shape, e.g. pad the texts."
        raise UserError(f"The inputs of the data differ in shape: {first_line(error)}", remedy) from error
    check_inputs(inputs)
    if inputs.ndim > 4:
        raise UserError(f"An input has the shape {tuple(inputs.shape[1:])}.", "Give at most three dimensions.")
    items = TensorItems(inputs.reshape(len(labels), *[1] * (4 - inputs.ndim), *inputs.shape[1:]), labels)
    digest.update(items.inputs.numpy().tobytes())
    return items, digest.hexdigest()[:16]


def _pixels(dataset: Any, first: Any, digest: Any) -> tuple[np.ndarray, str] | None:
    """Floats in [0, 1] or whole numbers in [0, 255] as ``uint8`` [N, H, W] or [N, H, W, 3], and the digest of the
    numbers; None for anything else.
    """
    axis = _channel_axis(first)
    if axis is None:
        return None
    most = 1 if torch.as_tensor(first).is_floating_point() else 255
    height, width = (side for number, side in enumerate(first.shape) if number != axis)
    array = np.empty((len(dataset), height, width, first.shape[axis]), dtype=np.uint8)
    for index in range(len(dataset)):
        values = torch.as_tensor(_item(dataset, index)).float().numpy()
        if values.shape != first.shape or not (values.min() >= 0 and values.max() <= most):  # NaN is neither
            return None
        digest.update(np.ascontiguousarray(values).tobytes())
        array[index] = (np.moveaxis(values, axis, -1) * (255 / most)).round()
    if array.max() <= 1:  # 0 and 1 are black and white
        array *= 255
    return (array[..., 0] if array.shape[-1] == 1 else array), digest.hexdigest()[:16]


def _channel_axis(item: Any) -> int | None:
    """Where the 1 or 3 channels of an item of numbers are: first, or last in an array; None if it can be no image."""
    if torch.as_tensor(item).dtype == torch.bool or item.ndim != 3:
        return None
    if item.shape[0] in (1, 3) and min(item.shape[1:]) >= LEAST_SIDE:
        return 0
    if isinstance(item, np.ndarray) and item.shape[2] in (1, 3) and min(item.shape[:2]) >= LEAST_SIDE:
        return 2
    return None


def _class_notes(spec: str, labels: Labels) -> list[str]:
    """Classes without training images, such as 2 to 4 where the labels are 0, 1 and 5."""
    gone = without_images(labels.train, labels.names or [str(label) for label in range(labels.count)])
    return [f"Notice: {spec} has {labels.count} classes, but no training images of {gone}."] if gone else []


def _notes(spec: str, dataset: Any, items: Items, pixels: bool) -> list[str]:
    """What is assumed about the items of a training split."""
    notes = []
    if isinstance(items, ArrayImages):
        kind, bounds = ("floats", "[0, 1]") if _is_float(dataset) else ("whole numbers", "[0, 255]")
        notes.append(
            f"Notice: the {kind} of {spec} are all in {bounds}, so they are read as pixels and normalised for each "
            "network. Set pixels = False on the data set to pass them on as they are."
        )
    elif isinstance(items, TensorItems) and pixels:
        low, high = float(items.inputs.min()), float(items.inputs.max())
        grey = _item(dataset, 0).ndim == 2 and low >= 0 and high <= 1
        if grey or _channel_axis(_item(dataset, 0)) is not None:
            way = "return [1, H, W]" if grey else "return PIL images, uint8 or floats in [0, 1]"
            notes.append(
                f"Notice: the inputs of {spec} are numbers from {low:.4g} to {high:.4g}; networks get them as they "
                f"are, not normalised, resized or augmented. For images {way}; pixels = False on the data set hides "
                "this."
            )
    if _is_random(dataset):
        notes.append(
            f"Notice: {spec} applies random transforms of its own, also to calibration images; an image in memory is "
            "drawn once and stays so. Leave them out: --augment draws every epoch anew."
        )
    return notes


def _is_random(dataset: Any) -> bool:
    """Whether items change with the state of the random generators."""
    for index in {0, len(dataset) // 2}:
        drawn = set()
        for number in range(8):
            with contextlib.suppress(*UNREADABLE), seeded(number):
                drawn.add(np.asarray(item_of(dataset, index)[0]).tobytes())
        if len(drawn) > 1:
            return True
    return False


def _is_float(dataset: Any) -> bool:
    item = _item(dataset, 0)
    return isinstance(item, (torch.Tensor, np.ndarray)) and torch.as_tensor(item).is_floating_point()


def _item(dataset: Any, index: int) -> Any:
    """The input of an item, the same whenever it is read."""
    with seeded(index):
        return item_of(dataset, index)[0]


def _names(dataset: Any) -> Sequence[Any] | None:
    """Class names: the data set's ``classes``, or those of a Hugging Face data set, also inside timm's."""
    if (classes := getattr(dataset, "classes", None)) is not None:
        return classes
    for table in _tables(dataset):
        features = getattr(table, "features", None)
        if isinstance(features, dict) and "label" in features:
            return getattr(features["label"], "names", None)
    return None


def has_labels(dataset: Any) -> bool:
    """False where a Hugging Face data set lists -1 as every label, as of the test split of a contest."""
    labels = _column(dataset)
    return not labels or any(label != -1 for label in labels)


def _labels_of(dataset: Any) -> Any:
    """Labels as the data set has them, without reading its images where it lists them."""
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(dataset, name, None)) is not None and np.shape(labels) == (len(dataset),):
            return labels
    return _column(dataset) or [item_of(dataset, index)[1] for index in range(len(dataset))]


def _column(dataset: Any) -> list[Any]:
    """The labels that a Hugging Face data set lists, also inside timm's; empty where it does not."""
    for table in _tables(dataset):
        if "label" in (getattr(table, "column_names", None) or ()):
            return list(table["label"])
    return []


def _tables(dataset: Any) -> tuple[Any, Any]:
    return dataset, getattr(getattr(dataset, "reader", None), "dataset", None)
