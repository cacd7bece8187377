"""From ``--data SPEC`` to images and labels: one small function per kind of source.

A source is a list of images that are read on demand. What becomes of them (memory or stream, augmentation) is decided
in :mod:`kdcompress.data.batches`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image

from kdcompress.data import synth_digits
from kdcompress.data.labels import check_classes, check_inputs, whole_labels
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.trust import PREFIX, import_callable

IMAGE_MODES = {1: "L", 3: "RGB"}
MAX_MEMORY_BYTES = 512 * 2**20
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


class ImageList(Protocol):
    """Images of one split, read one at a time; must survive pickling to worker processes."""

    labels: np.ndarray  # [N] int64

    def image(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str: ...


@dataclass
class DataSource:
    """A data set as its source offers it.

    Attributes:
        train, test: The splits; ``test`` is None where the source has none.
        class_names: In label order, where known.
        channels: 1 for grey, 3 for colour.
        size: (H, W) of the images where a sample of them agrees, else None.
        flip: Whether a mirrored image keeps its class.
        fingerprint: Changes when the data do.
    """

    spec: str
    train: ImageList
    test: ImageList | None
    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    flip: bool = True
    channels: int = field(init=False)
    size: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.train, TensorItems):
            _, self.channels, height, width = self.train.inputs.shape
            self.size = (height, width)
        else:
            self.channels, self.size = _look_at(self.train)

    @property
    def is_raw(self) -> bool:
        """Whether the inputs are no images, and go to the network as they are."""
        return isinstance(self.train, TensorItems)


@dataclass
class ArrayImages:
    """Images that are an array already: [N, H, W] grey or [N, H, W, 3], uint8."""

    array: np.ndarray
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.array[index])

    def name(self, index: int) -> str:
        return f"image {index}"


class Paths(Sequence[str]):
    """Names of files in one piece of memory.

    A million strings would be a million objects, and a worker process copies the memory of each that it looks at.
    """

    def __init__(self) -> None:
        self.text, self.ends = bytearray(), array("Q", [0])

    def add(self, path: str) -> None:
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
    written: bytes = b""

    def image(self, index: int) -> Image.Image:
        # draft mode lets libjpeg skip work, at the cost of other pixels than timm's own reading gives: not used
        with Image.open(self.paths[index]) as image:
            image.load()
            return image

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass
class TensorItems:
    """Inputs that are no images: features, tokens. A network gets them as they are, never resized or normalised.

    Attributes:
        inputs: [N, C, H, W] float32; an item of fewer dimensions has got leading ones.
    """

    inputs: torch.Tensor
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        raise UserError("These data are no images.", "Only images can be shown.")

    def name(self, index: int) -> str:
        return f"item {index}"


@dataclass
class MapImages:
    """A map-style PyTorch data set of (image, label)."""

    dataset: Any
    labels: np.ndarray

    def image(self, index: int) -> Image.Image:
        image = self.dataset[index][0]
        if isinstance(image, Image.Image):
            return image
        array = np.asarray(image)
        if isinstance(image, torch.Tensor) and array.ndim == 3:
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
            raise UserError(
                f"The data set gives a {type(image).__name__} of type {array.dtype}, shape {tuple(np.shape(image))}.",
                "Return PIL images, uint8 tensors [C, H, W] or uint8 arrays [H, W, C].",
            )
        return Image.fromarray(array[:, :, 0] if array.shape[2:] == (1,) else np.ascontiguousarray(array))

    def name(self, index: int) -> str:
        return f"image {index}"


def load_source(spec: str, *, data_dir: str | None = None, download: bool = False) -> DataSource:
    """Open a data set.

    Args:
        spec: ``digits``, ``synth-digits:K``, a folder, a timm data-set name (``torch/cifar10``, ``hfds/…``) or
            ``py:module:function``.
        data_dir: Where timm's named data sets are stored.
        download: Fetch a ``torch/…`` data set that is not there.

    Raises:
        UserError: Nothing of that name, or a folder that is not laid out as a data set.
    """
    if spec == "digits":
        source = _digits()
    elif spec.split(":")[0] == synth_digits.NAME:
        source = _synth_digits(spec)
    elif spec.startswith(PREFIX):
        source = _from_callable(spec)
    elif spec.split("/")[0].lower() in ("torch", "hfds", "hfids", "wds", "tfds") and not os.path.exists(spec):
        source = _shards(spec, data_dir) if spec.lower().startswith("wds/") else _from_timm(spec, data_dir, download)
    elif os.path.isdir(spec):  # unlike that of Path, it takes any text
        source = _folder(spec)
    else:
        remedy = (
            "Give digits, synth-digits:K, a folder with train/CLASS/… and test/CLASS/…, torch/NAME, hfds/NAME, "
            "wds/NAME or py:module:function."
        )
        raise usage_error(f"There is no data {spec!r}.", remedy)
    if source.num_classes < 2:
        raise UserError(f"The data {spec} have only one class.", "A classifier needs two classes or more.")
    return source


def _digits() -> DataSource:
    """scikit-learn's 8 x 8 digits (1797 images), a fixed fifth of each class as the test split (our choice)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return DataSource(
        spec="digits",
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        num_classes=10,
        class_names=tuple(str(name) for name in digits.target_names),
        fingerprint=_hash(images.tobytes()),
        flip=False,
    )


def _synth_digits(spec: str) -> DataSource:
    made = synth_digits.SynthDigits.parse(spec)
    train = made.train()
    sample = b"".join(train.image(index).tobytes() for index in range(min(8, made.n)))
    return DataSource(
        spec=str(made),
        train=train,
        test=made.test(),
        num_classes=made.classes,
        class_names=None,
        fingerprint=_hash(str(made).encode() + sample),
        flip=False,
    )


def _folder(spec: str) -> DataSource:
    root = Path(spec).absolute()
    if not (root / "train").is_dir():
        remedy = "Lay it out as train/CLASS/image.jpg and test/CLASS/image.jpg (val/ serves as test/ too)."
        raise UserError(f"The folder {spec} has no train/ in it.", remedy)
    digest = _Lines()
    classes, train = _list_images(root / "train", digest)
    held_out = next((root / name for name in ("test", "val", "validation") if (root / name).is_dir()), None)
    test = None
    if held_out is not None:
        test_classes, test = _list_images(held_out, digest)
        if test_classes != classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise UserError(
                f"The classes of {root / 'train'} and {held_out} differ: {', '.join(odd[:5])} only in one of them.",
                "Give both splits the same class folders.",
            )
    return DataSource(
        spec=str(root),
        train=train,
        test=test,
        num_classes=len(classes),
        class_names=tuple(classes),
        fingerprint=digest.hash.hexdigest()[:16],
    )


class _Lines:
    """The hash of lines of text, without keeping them."""

    def __init__(self) -> None:
        self.hash, self.between = hashlib.sha256(), ""

    def add(self, line: str) -> None:
        self.hash.update(os.fsencode(f"{self.between}{line}"))  # names of files need not be UTF-8
        self.between = "\n"


def _list_images(split: Path, digest: _Lines) -> tuple[list[str], FileImages]:
    """Class names and images, in the order of torchvision's ``ImageFolder``; names and sizes go to the digest."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    classes = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UserError(
            f"The folder {split} has no class folders.", "Put the images of each class into a folder of its own."
        )
    if len(classes) == 1:
        raise UserError(
            f"The folder {split} has only one class, {classes[0]}.", "A classifier needs two classes or more."
        )
    paths, counts, written = Paths(), [], hashlib.sha256()
    for name in classes:
        before = len(paths)
        for folder, _, files in sorted(os.walk(split / name, followlinks=True)):
            for file in sorted(files):
                if file.lower().endswith(IMG_EXTENSIONS):
                    path = os.path.join(folder, file)
                    paths.add(path)
                    state = os.stat(path)
                    digest.add(f"{os.path.relpath(path, split.parent)} {state.st_size}")
                    written.update(f"{state.st_mtime_ns} ".encode())
        counts.append(len(paths) - before)
        if not counts[-1]:
            remedy = f"Add images ({' '.join(IMG_EXTENSIONS)}) or remove the folder."
            raise UserError(f"The class folder {split / name} has no images.", remedy)
    return classes, FileImages(paths, np.repeat(np.arange(len(classes)), counts), written.digest())


def _shards(spec: str, data_dir: str | None) -> DataSource:
    from kdcompress.data.tar_images import load_shards

    return load_shards(spec, data_dir)


def _from_timm(spec: str, data_dir: str | None, download: bool) -> DataSource:
    from timm.data import ImageDataset, create_dataset

    from kdcompress.data.timm_images import EachItsOwn

    if spec.lower().startswith("hfids/"):
        remedy = f"Give hfds/{spec[len('hfids/') :]}, the same data with an index."
        raise usage_error(f"{spec} is a stream, which cannot be split into fit and calibration.", remedy)

    def split(name: str, fetch: bool) -> Any:
        made = create_dataset(spec, root=data_dir or "data", split=name, is_training=False, download=fetch)
        return EachItsOwn(made.reader) if isinstance(made, ImageDataset) else made

    try:
        train, test = split("train", download), split("validation" if spec.startswith("torch/") else "test", download)
    except (Exception, AssertionError) as error:
        if isinstance(error, ImportError):
            remedy = "hfds/ needs pip install 'kdcompress[hf]'; other families need the package of their name."
            raise UserError(f"The data set {spec} needs a package that is not there: {error}", remedy) from error
        first = first_line(error)
        remedy = "Check the name and --data-dir, or fetch it with --download."
        raise UserError(f"The data set {spec} cannot be opened: {first}", remedy) from error
    return _from_map(spec, train, test, flip="mnist" not in spec.lower())


def _from_callable(spec: str) -> DataSource:
    function = import_callable(spec)
    try:
        return _called(spec, function())
    except UserError:
        raise
    except Exception as error:  # code of the user's own may fail in any way
        problem = f"{spec} gives no data: {type(error).__name__}: {first_line(error)}"
        remedy = "It returns (train, test), data sets of (image, label). KDCOMPRESS_DEBUG=1 shows where it failed."
        raise UserError(problem, remedy) from error


def _called(spec: str, made: Any) -> DataSource:
    if isinstance(made, dict) and "train" in made:
        train, test = made["train"], made.get("test")
    elif isinstance(made, tuple) and len(made) == 2:
        train, test = made
    else:
        remedy = "Return (train, test) or {'train': …, 'test': …}, data sets of (image, label)."
        raise UserError(f"{spec} returned {type(made).__name__}.", remedy)
    return _from_map(spec, train, test, flip=getattr(train, "flip", True))


def _from_map(spec: str, train: Any, test: Any, flip: bool) -> DataSource:
    if isinstance(train, torch.utils.data.IterableDataset) or not hasattr(train, "__getitem__"):
        remedy = "Give data with an index: a folder, torch/NAME, hfds/NAME, wds/NAME or py:module:function."
        raise usage_error(f"{spec} is a stream, which cannot be split into fit and calibration.", remedy)
    train_list = _items(train)
    test_list = _items(test) if test is not None else None
    classes = getattr(train, "classes", None)
    if not len(train_list.labels) or (classes is not None and not len(classes)):
        raise UserError(f"The data {spec} have no images.", "A classifier needs two classes or more.")
    count = check_classes(train_list.labels, None if test_list is None else test_list.labels, classes)
    print_of = hashlib.sha256(train_list.labels.tobytes())
    if isinstance(train_list, TensorItems):
        print_of.update(train_list.inputs.numpy().tobytes())
    for index in np.linspace(0, len(train_list.labels) - 1, 0 if isinstance(train_list, TensorItems) else 32).astype(
        int
    ):
        with contextlib.suppress(*UNREADABLE):  # met, and named, later
            print_of.update(np.asarray(train_list.image(int(index))).tobytes())
    names = tuple(str(name) for name in classes) if classes is not None else None
    return DataSource(spec, train_list, test_list, count, names, print_of.hexdigest()[:16], flip)


def _items(dataset: Any) -> MapImages | TensorItems:
    """Images, or what is none: floating-point or integer tensors and arrays other than uint8."""
    labels = _labels_of(dataset)
    first = dataset[0][0] if len(labels) else None
    if not isinstance(first, (torch.Tensor, np.ndarray)) or torch.as_tensor(first).dtype == torch.uint8:
        return MapImages(dataset, labels)
    try:
        inputs = torch.stack([torch.as_tensor(dataset[index][0]).float() for index in range(len(labels))])
    except RuntimeError as error:
        remedy = "Give all of them one shape, e.g. pad the texts."
        raise UserError(f"The inputs of the data differ in shape: {first_line(error)}", remedy) from error
    check_inputs(inputs)
    if inputs.ndim > 4:
        raise UserError(f"An input has the shape {tuple(inputs.shape[1:])}.", "Give at most three dimensions.")
    return TensorItems(inputs.reshape(len(labels), *[1] * (4 - inputs.ndim), *inputs.shape[1:]), labels)


def _labels_of(dataset: Any) -> np.ndarray:
    for name in ("targets", "labels", "_labels"):
        if (labels := getattr(dataset, name, None)) is not None and np.shape(labels) == (len(dataset),):
            return whole_labels(labels)
    reader = getattr(getattr(dataset, "reader", None), "dataset", None)
    if reader is not None and "label" in getattr(reader, "column_names", ()):
        return whole_labels(list(reader["label"]))
    return whole_labels([dataset[index][1] for index in range(len(dataset))])


def _look_at(images: ImageList, sample: int = 64) -> tuple[int, tuple[int, int] | None]:
    """Channels and common (H, W) of a sample of the images; unreadable ones are met, and named, later."""
    modes, sizes = set(), set()
    for index in np.unique(np.linspace(0, len(images.labels) - 1, sample).astype(int)):
        try:
            image = images.image(int(index))
        except UNREADABLE:
            continue
        modes.add(image.mode)
        sizes.add((image.height, image.width))
    grey = all(mode in ("1", "L", "F") or mode.startswith("I") for mode in modes)
    return (1 if modes and grey else 3), (sizes.pop() if len(sizes) == 1 else None)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
