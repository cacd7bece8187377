"""Images of a split, read one at a time from an array, files or a PyTorch data set; and inputs that are not images."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, overload

import numpy as np
import torch
from PIL import Image

from kdcompress.data.exif import upright
from kdcompress.data.seeded import seeded
from kdcompress.digests import check_plain
from kdcompress.errors import UserError, kind_of

IMAGE_MODES = {1: "L", 3: "RGB"}
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "target")  # of items that are dicts


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Make one error of what decoders raise for damaged files, which is open-ended.

    Raises:
        OSError: In place of an error that is none of :data:`UNREADABLE`.
    """
    try:
        yield
    except (*UNREADABLE, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class ImageList(Protocol):
    """Images of one split, read one at a time; must survive pickling to worker processes."""

    labels: np.ndarray  # [N] int64

    def image(self, index: int) -> Image.Image:
        """The image at an index of the split."""

    def name(self, index: int) -> str:
        """What an error message calls it."""

    @property
    def written(self) -> bytes:
        """Changes when one of their files is written to; empty where there are no files.

        Part of the key of cached targets: a source of files without it would serve stale ones.
        """


@dataclass
class ArrayImages:
    """Images in an array: [N, H, W] grey or [N, H, W, 3], uint8."""

    array: np.ndarray
    labels: np.ndarray
    written: ClassVar[bytes] = b""

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def name(self, index: int) -> str:
        return f"image {index}"


class Paths(Sequence[str]):
    """Names of files in one block of memory.

    A million strings would be a million objects, and a worker process would copy the memory of each that it touches.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.text, self.ends = bytearray(), array("Q", [0])
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Append one."""
        self.text += os.fsencode(path)
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        return os.fsdecode(bytes(self.text[self.ends[number] : self.ends[number + 1]]))


@dataclass
class FileImages:
    """Images on the disk.

    Attributes:
        written: Changes when one of the files is written to.
    """

    paths: Sequence[str]
    labels: np.ndarray
    written: bytes

    def image(self, index: int) -> Image.Image:
        # draft mode lets libjpeg skip work, at the cost of other pixels than timm's own reading gives: not used
        check_plain(self.paths[index])
        with decoding(), Image.open(self.paths[index]) as image:
            image.load()
            return upright(image)

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass
class TensorItems:
    """Inputs that are not images, such as features or tokens: never resized or normalised.

    Attributes:
        inputs: [N, C, H, W] float32; an item of fewer dimensions has got leading ones.
    """

    inputs: torch.Tensor
    labels: np.ndarray
    written: ClassVar[bytes] = b""

    def image(self, index: int) -> Image.Image:
        raise UserError("These data are not images.", "Only images can be shown.")

    def name(self, index: int) -> str:
        return f"item {index}"


@dataclass
class MapImages:
    """A map-style PyTorch data set of (image, label), or of dicts with these.

    Random transforms of its own draw the same numbers whenever an image is read, so that every command sees the same
    images, unless the caller has seeded the generators for a view.

    Attributes:
        fixed: Seed the generators for each image; off while a view of it is being made.
    """

    dataset: Any
    labels: np.ndarray
    fixed: bool = True
    written: ClassVar[bytes] = b""

    def image(self, index: int) -> Image.Image:
        with seeded(index) if self.fixed else contextlib.nullcontext():
            image = item_of(self.dataset, index)[0]
        if isinstance(image, Image.Image):
            return upright(image)
        array = np.asarray(image)
        if isinstance(image, torch.Tensor) and array.ndim == 3:
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
            raise UserError(
                f"The data set gives {kind_of(image)} of type {array.dtype}, shape {tuple(np.shape(image))}.",
                "Return PIL images, uint8 tensors [C, H, W] or uint8 arrays [H, W, C].",
            )
        return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else np.ascontiguousarray(array))

    def name(self, index: int) -> str:
        return f"image {index}"

    def anew(self) -> MapImages:
        """The same, whose random transforms draw what the caller has seeded."""
        return dataclasses.replace(self, fixed=False)


def each_anew(images: ImageList) -> ImageList:
    """The same images, whose random transforms draw what the caller has seeded, not the same numbers each time."""
    anew: Callable[[], ImageList] | None = getattr(images, "anew", None)
    return images if anew is None else anew()


def item_of(dataset: Any, index: int) -> tuple[Any, Any]:
    """Image and label of an item: a tuple whose first two they are, or a dict with keys of the usual names.

    Raises:
        UserError: A dict without them, or something else.
    """
    item = dataset[index]
    if isinstance(item, Mapping):
        image = next((key for key in IMAGE_KEYS if key in item), None)
        label = next((key for key in LABEL_KEYS if key in item), None)
        if image is None or label is None:
            keys = ", ".join(str(key) for key in list(item)[:8])
            remedy = f"Name the image {' or '.join(IMAGE_KEYS)}, and the label {' or '.join(LABEL_KEYS)}."
            raise UserError(f"Item {index} of the data set is a dict with the keys {keys}.", remedy)
        return item[image], item[label]
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        remedy = f"Return (image, label), or a dict with the keys {IMAGE_KEYS[0]} and {LABEL_KEYS[0]}."
        raise UserError(f"Item {index} of the data set is of type {type(item).__name__}, not (image, label).", remedy)
    return item[0], item[1]
