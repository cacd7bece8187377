"""Data sets of others: floats that are pixels, random transforms, items that are dicts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import Data, DataSource, Preprocess
from kdcompress.data.images import ArrayImages, TensorItems
from kdcompress.data.map_source import map_source
from kdcompress.errors import UserError
from kdcompress.options import DataOptions

CPU = torch.device("cpu")
Item = Callable[[int], Any]


class Made:
    """Items made by a function of their index; labels 0, 1, 2 in turn."""

    def __init__(self, item: Item, count: int = 12, **more: Any) -> None:
        self.item, self.count = item, count
        self.targets = [index % 3 for index in range(count)]
        vars(self).update(more)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= self.count:
            raise IndexError(index)
        return self.item(index), self.targets[index]


def opened(item: Item, test: Item | None = None, **more: Any) -> DataSource:
    return map_source("py:mine:data", Made(item, **more), None if test is None else Made(test), flip=True)


def said(source: DataSource) -> str:
    return " ".join(source.first_notes)


def pixels(index: int, shape: tuple[int, ...] = (3, 6, 5)) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


def to_tensor(index: int) -> torch.Tensor:
    return torch.from_numpy(pixels(index)).float() / 255


def shown(source: DataSource, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """The first images of the test or fit split, as a network sees them."""
    prep = Preprocess((6, 5), source.channels, (mean,) * source.channels, (std,) * source.channels)
    batches = Data(source, prep, DataOptions(workers=0), CPU).evaluation("test" if source.test else "fit", 4)
    return next(iter(batches))[0].numpy()


def test_floats_of_to_tensor_are_pixels_and_normalised() -> None:
    """The same images as uint8 and as floats would give a teacher of 70 % or one of 10 %."""
    floats, bytes_ = opened(to_tensor, to_tensor), opened(lambda i: torch.from_numpy(pixels(i)), None)
    assert isinstance(floats.train, ArrayImages)
    assert (floats.channels, floats.size, floats.is_raw) == (3, (6, 5), False)
    assert np.allclose(shown(floats, 0.4, 0.2), (np.stack([pixels(i) for i in range(4)]) / 255 - 0.4) / 0.2, atol=1e-5)
    assert np.array_equal(np.asarray(floats.train.image(3)), np.asarray(bytes_.train.image(3)))
    assert "pixels = False" in said(floats)
    assert not said(bytes_)


@pytest.mark.parametrize("kind", [torch.int64, torch.int16])
def test_whole_numbers_of_images_are_pixels(kind: torch.dtype) -> None:
    """0 to 255 as int64 would reach the network unnormalised, and nobody would know why it learns nothing."""
    numbers = opened(lambda i: torch.from_numpy(pixels(i)).to(kind))
    bytes_ = opened(lambda i: torch.from_numpy(pixels(i)))
    assert isinstance(numbers.train, ArrayImages)
    assert np.array_equal(np.asarray(numbers.train.image(3)), np.asarray(bytes_.train.image(3)))
    assert "whole numbers" in said(numbers)


def test_black_and_white_is_not_nearly_black() -> None:
    source = opened(lambda i: (torch.from_numpy(pixels(i)) > 127).long())
    assert set(np.unique(np.asarray(source.train.image(0)))) == {0, 255}


def test_whole_numbers_that_are_no_pixels_are_passed_on() -> None:
    source = opened(lambda i: torch.from_numpy(pixels(i)).long() * 3)
    assert source.is_raw
    assert "numbers from 0 to" in said(source)
    assert opened(lambda i: torch.full((4,), i)).is_raw


def test_a_network_that_was_trained_on_the_floats_themselves_still_gets_them() -> None:
    """Runs made before floats were pixels would lose their accuracy, and their data be taken for others."""
    source = opened(to_tensor, to_tensor)
    assert np.array_equal(shown(source), np.stack([to_tensor(i).numpy() for i in range(4)]))
    digest = hashlib.sha256(np.array(Made(to_tensor).targets, dtype=np.int64).tobytes())
    digest.update(torch.stack([to_tensor(i) for i in range(12)]).numpy().tobytes())
    assert source.fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize(("shape", "channels"), [((1, 6, 5), 1), ((6, 5, 3), 3), ((6, 5, 1), 1)])
def test_shapes_of_images(shape: tuple[int, ...], channels: int) -> None:
    """Grey tensors and arrays with their channels last would stay raw, or be mixed up."""
    source = opened(lambda i: pixels(i, shape) / 255)
    assert source.channels == channels
    found = np.asarray(source.train.image(2))
    assert np.array_equal(found, pixels(2, shape).squeeze() if channels == 1 else pixels(2, shape))


def test_normalised_images_stay_as_they_are() -> None:
    """They would be normalised twice."""
    source = opened(lambda i: to_tensor(i) * 4 - 2)
    assert source.is_raw
    assert "numbers from -2 to 2" in said(source)
    assert isinstance(source.train, TensorItems)
    assert torch.equal(source.train.inputs[1], to_tensor(1) * 4 - 2)


def test_pixels_false_keeps_floats_as_they_are() -> None:
    """Measurements between 0 and 1 could not be used any more."""
    source = opened(to_tensor, pixels=False)
    assert source.is_raw
    assert not said(source)


@pytest.mark.parametrize(
    "item",
    [
        lambda i: torch.rand(7, generator=torch.Generator().manual_seed(i)),
        lambda i: torch.full((4,), i),
        lambda i: np.random.default_rng(i).normal(size=(9, 4)),
        lambda i: torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(i)),
        lambda i: torch.rand(1, 1, 7, generator=torch.Generator().manual_seed(i)),
    ],
)
def test_what_can_be_no_image_is_left_alone(item: Item) -> None:
    """Tables, tokens and feature maps would be cropped, flipped and normalised."""
    source = opened(item)
    assert source.is_raw
    assert not said(source)


def test_grey_floats_without_a_channel_are_said() -> None:
    """Whether [H, W] in [0, 1] is an image or a text is not to be seen; silence would hide the first case."""
    assert "return [1, H, W]" in said(opened(lambda i: pixels(i, (6, 5)) / 255))


def test_splits_of_different_kinds() -> None:
    """The network would be tested on inputs that it never saw in training."""
    both = opened(to_tensor, lambda i: to_tensor(i) - 0.5)
    assert both.is_raw
    assert isinstance(both.test, TensorItems)
    other = opened(lambda i: to_tensor(i) - 0.5, to_tensor)
    assert isinstance(other.test, TensorItems)
    mixed = opened(lambda i: Image.new("RGB", (5, 6)), to_tensor)
    assert isinstance(mixed.test, ArrayImages)
    with pytest.raises(UserError, match="gives images, the test split numbers"):
        opened(lambda i: Image.new("RGB", (5, 6)), lambda i: to_tensor(i) - 0.5)


def test_one_item_outside_decides_for_all() -> None:
    """A few images would be clipped in silence."""
    assert opened(lambda i: to_tensor(i) * (2 if i == 11 else 1)).is_raw


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1).item(), lambda: np.random.random(), lambda: __import__("random").random()]
)
@pytest.mark.parametrize("floats", [True, False])
def test_random_transforms_are_said_and_repeatable(draw: Callable[[], float], floats: bool) -> None:
    """Each command would see other images, and refuse the next one because the data have changed."""

    def item(index: int) -> Any:
        image = pixels(index)[:, :, ::-1] if draw() < 0.5 else pixels(index)
        return torch.from_numpy(image / 255).float() if floats else Image.fromarray(image.transpose(1, 2, 0).copy())

    state = torch.get_rng_state()
    first, again = opened(item), opened(item)
    assert torch.equal(torch.get_rng_state(), state), "networks that are built later depend on it"
    assert "random transforms" in said(first)
    assert first.fingerprint == again.fingerprint
    for index in range(12):
        assert np.array_equal(np.asarray(first.train.image(index)), np.asarray(again.train.image(index)))


def test_random_transforms_vary_by_view_where_images_are_streamed() -> None:
    """They would be drawn once for all epochs, or each time anew, so that no killed run could go on as it was."""
    source = opened(lambda i: Image.fromarray(pixels(i).transpose(1, 2, 0) // 2 + int(torch.randint(99, (1,)))))
    data = Data(source, Preprocess((6, 5), 3, (0.0,) * 3, (1.0,) * 3), DataOptions(loading="stream", workers=0), CPU)
    batches = data.training(12, 0, "none")
    views = [next(iter(batches.load([np.arange(8)], 0, view)))[0] for view in (0, 0, 1)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("img", "label"), ("pixel_values", "labels"), ("image", "target")]
)
def test_items_that_are_dicts(image: str, label: str) -> None:
    """Data sets of the Hugging Face kind would end in a KeyError."""
    train = [{image: Image.new("RGB", (4, 4), (i, 0, 0)), label: i % 2, "id": "x"} for i in range(6)]
    source = map_source("py:mine:data", train, train, flip=True)
    assert source.train.labels.tolist() == [0, 1] * 3
    assert np.asarray(source.train.image(4))[0, 0, 0] == 4


@pytest.mark.parametrize(
    ("item", "words"),
    [({"picture": 1, "label": 0}, "a dict with the keys picture, label"), ((1,), "of type tuple"), (3, "of type int")],
)
def test_items_that_are_nothing_known(item: Any, words: str) -> None:
    """A KeyError or TypeError without the item."""
    with pytest.raises(UserError, match=f"Item 0 of the data set is {words}") as caught:
        map_source("py:mine:data", [item] * 4, None, flip=True)
    assert caught.value.remedy


def test_a_hugging_face_data_set_gives_its_labels_and_names() -> None:
    """All images would be decoded to read the labels, and classes have no names."""

    class Feature:
        names = ("x", "y")

    class Table:
        column_names, features = ("image", "label"), {"label": Feature()}
        read = 0

        def __len__(self) -> int:
            return 1000

        def __getitem__(self, key: Any) -> Any:
            if key == "label":
                return [i % 2 for i in range(1000)]
            self.read += 1
            return {"image": Image.new("L", (4, 4), key % 256), "label": key % 2}

    table = Table()
    source = map_source("py:mine:data", table, None, flip=True)
    assert source.class_names == ("x", "y")
    assert source.train.labels.tolist() == [0, 1] * 500
    assert table.read < 150, "for a digest some are read"


def test_classes_without_training_images_are_named() -> None:
    """Labels 0, 1 and 5 are more often a mistake than six classes, three of which are never learned."""

    def notes(*targets: int, **more: Any) -> list[str]:
        data = Made(lambda index: pixels(index, (6, 5)), count=len(targets), **more)
        data.targets = list(targets)
        return map_source("py:mine:data", data, None, flip=True).first_notes

    assert notes(0, 1, 5, 0, 1, 5) == ["Notice: py:mine:data has 6 classes, but no training images of 2, 3, 4."]
    assert notes(0, 5, 0, 5)[0].endswith("no training images of 1, 2, 3 and 1 more.")
    assert notes(0, 1, 0, 1, classes=["ant", "bee", "cat"])[0].endswith("no training images of cat.")
    assert notes(0, 1, 0, 1) == []
