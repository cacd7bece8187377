"""Data sources: every kind opens, and every mistake in one is named."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from cli.shell import photos
from kdcompress import locks, trust
from kdcompress.data import sources
from kdcompress.data.images import FileImages
from kdcompress.data.preprocess import read_image
from kdcompress.data.source import DataSource
from kdcompress.data.sources import load_source
from kdcompress.errors import UserError

from .images import MakeFolder, random_image

Module = Callable[[str], str]


def refused(spec: Path | str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_source(str(spec), **options)
    assert caught.value.remedy
    assert "\n" not in caught.value.problem
    return caught.value


# --- digits ---


def test_digits_work_offline_and_are_the_same_everywhere() -> None:
    """Numbers in the README could not be repeated, or the first command a newcomer types would fail."""
    source, again = load_source("digits"), load_source("digits")
    assert source.test is not None
    assert (len(source.train.labels), len(source.test.labels)) == (1437, 360)
    assert (source.num_classes, source.channels, source.size, source.flip) == (10, 1, (8, 8), False)
    assert source.class_names == tuple("0123456789")
    assert np.array_equal(source.train.labels, again.train.labels)
    assert source.fingerprint == again.fingerprint
    counts = np.bincount(source.test.labels)
    assert counts.max() - counts.min() <= 2, "stratified"
    assert np.asarray(source.train.image(0)).max() == 255, "the whole range of grey is used"
    train = {np.asarray(source.train.image(i)).tobytes() for i in range(1437)}
    shared = sum(np.asarray(source.test.image(i)).tobytes() in train for i in range(360))
    assert shared == 0


# --- folders ---


def test_a_folder_gives_classes_in_order_of_their_names(make_folder: MakeFolder) -> None:
    """Label 1 would be another class than in the list of names, or than torchvision's ImageFolder says."""
    root = make_folder(("zebra", "Ant", "bee"), train=3, test=2)
    (root / "train" / ".cache").mkdir()
    (root / "train" / "notes.txt").write_text("not an image")
    (root / "train" / "bee" / "notes.txt").write_text("not an image")
    source = load_source(str(root))
    reference = torchvision.datasets.ImageFolder(str(root / "test"))
    assert source.test is not None
    assert source.class_names == ("Ant", "bee", "zebra") == tuple(reference.classes)
    assert source.num_classes == 3
    assert source.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert source.test.labels.tolist() == reference.targets
    assert [source.test.name(i) for i in range(6)] == [path for path, _ in reference.samples]
    for i, (image, _) in enumerate(reference):
        assert np.array_equal(np.asarray(source.test.image(i)), np.asarray(image))


@pytest.mark.parametrize("held_out", ["test", "val", "validation", "valid", "Test", "VAL"])
def test_the_held_out_split_may_be_called_val(make_folder: MakeFolder, held_out: str) -> None:
    """Data laid out as timm likes it would have no test split."""
    source = load_source(str(make_folder(held_out=held_out)))
    assert source.test is not None
    assert len(source.test.labels) == 4


def test_a_folder_without_a_test_split_opens(make_folder: MakeFolder) -> None:
    """Training would ask for images that it does not need."""
    assert load_source(str(make_folder(test=0))).test is None


def test_a_relative_folder_is_remembered_as_absolute(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command, run from elsewhere, would not find the run's data."""
    root = make_folder()
    monkeypatch.chdir(root.parent)
    assert load_source("photos").spec == str(root)


def test_nested_folders_and_upper_case_suffixes_count(make_folder: MakeFolder) -> None:
    """Images would silently be left out."""
    root = make_folder()
    (root / "train" / "ant" / "more").mkdir()
    random_image(99).save(root / "train" / "ant" / "more" / "X.PNG")
    assert np.bincount(load_source(str(root)).train.labels).tolist() == [5, 4]


def test_the_fingerprint_follows_the_data(make_folder: MakeFolder, tmp_path: Path) -> None:
    """A chain whose data were changed under it would go unnoticed, or one that was only moved be refused."""
    root = make_folder()
    first = load_source(str(root)).fingerprint
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(root, moved)
    assert load_source(str(moved)).fingerprint == first
    random_image(1, (30, 30)).save(moved / "test" / "bee" / "1.png")
    assert load_source(str(moved)).fingerprint != first
    shutil.rmtree(moved / "test")
    assert load_source(str(moved)).fingerprint != first


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "train").rename(root / "more"), "photos has test/ in it, but no train/ beside it: more"),
        (lambda root: [shutil.rmtree(root / name) for name in ("train", "test")], "photos has no class folders in it"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("ant", "bee")], "train has no class folders"),
        (lambda root: shutil.rmtree(root / "train" / "bee"), "train has only one class, ant"),
        (lambda root: [f.unlink() for f in (root / "train/bee").iterdir()], "train/bee has no images"),
        (lambda root: [f.unlink() for f in (root / "test/ant").iterdir()], "test/ant has no images"),
        (lambda root: (root / "test/bee").rename(root / "test/wasp"), "differ: bee, wasp only in one of them"),
        (lambda root: shutil.copytree(root / "test/bee", root / "test/wasp"), "differ: wasp only in one of them"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(
    make_folder: MakeFolder, damage: Callable[[Path], Any], words: str
) -> None:
    """The user would hunt for the class that is empty, missing or misspelt, or train on a shifted label list."""
    root = make_folder()
    damage(root)
    assert words in refused(root).problem


def test_a_test_split_may_lack_a_class(make_folder: MakeFolder) -> None:
    """To remove its empty folder was the advice, and then the classes of the splits differed."""
    root = make_folder(classes=("ant", "bee", "cow"))
    whole = load_source(str(root)).test
    shutil.rmtree(root / "test" / "ant")
    found, notes = load_source(str(root)), list[str]()
    found.tell(notes.append)
    assert whole is not None
    assert found.test is not None
    assert found.class_names == ("ant", "bee", "cow")
    assert found.test.labels.tolist() == [label for label in whole.labels.tolist() if label]
    assert any("no images of ant" in note for note in notes)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("L", "png", 1),
        ("RGB", "png", 3),
        ("RGB", "jpg", 3),
        ("P", "bmp", 3),
        ("P", "png", 3),
        ("1", "png", 1),
        ("I;16", "png", 1),
        ("RGBA", "png", 3),
        ("CMYK", "jpg", 3),
    ],
)
def test_grey_and_colour_are_told_apart(make_folder: MakeFolder, mode: str, suffix: str, channels: int) -> None:
    """Colour would be thrown away, or a network for grey images get three equal channels."""
    root = make_folder(train=1, test=0)
    for path in (root / "train").rglob("*.png"):
        image = random_image(0, mode={"P": "P", "RGB": "RGB", "RGBA": "RGB", "CMYK": "RGB"}.get(mode, "L"))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
        path.unlink()
        image.convert(mode).save(path.with_suffix(f".{suffix}")) if mode != "I;16" else image.save(path)
    source = load_source(str(root))
    assert source.train.image(0).mode == mode
    assert source.channels == channels
    assert len(read_image(source.train, 0, channels).getbands()) == channels


def test_one_colour_image_makes_the_data_colour(make_folder: MakeFolder) -> None:
    """Its colour would be lost."""
    root = make_folder(mode="L")
    assert load_source(str(root)).channels == 1
    random_image(0).save(root / "train" / "bee" / "0.png")
    assert load_source(str(root)).channels == 3


def test_eight_and_sixteen_bit_grey_together_are_grey(make_folder: MakeFolder) -> None:
    """Grey scans from two machines would be taken for colour."""
    root = make_folder(mode="L")
    Image.fromarray(np.full((12, 10), 40_000, dtype=np.uint16)).save(root / "train" / "bee" / "0.png")
    assert load_source(str(root)).channels == 1


def _index(source: DataSource, name: str) -> int:
    return next(i for i in range(len(source.train.labels)) if source.train.name(i).endswith(name))


def test_sixteen_bit_images_are_scaled_alike(make_folder: MakeFolder) -> None:
    """A dark image would come out brighter than a bright one."""
    root = make_folder(mode="L")
    for number, value in enumerate((200, 300, 40_000)):
        path = root / "train" / "bee" / f"{number}.png"
        Image.fromarray(np.full((12, 10), value, dtype=np.uint16)).save(path)
    source = load_source(str(root))
    indices = [_index(source, f"bee/{number}.png") for number in range(3)]
    values = [np.asarray(read_image(source.train, index, 1)) for index in indices]
    assert [int(each.max()) for each in values] == [0, 1, 156]
    assert not source.first_notes


def test_twelve_bits_in_sixteen_are_noticed(make_folder: MakeFolder) -> None:
    """Images of a 12-bit camera would be left four bits, in silence."""
    root = make_folder(mode="L")
    Image.fromarray(np.full((12, 10), 4_095, dtype=np.uint16)).save(root / "train" / "bee" / "0.png")
    notes: list[str] = []
    load_source(str(root)).tell(notes.append)
    assert any("4095 of 65535" in note for note in notes)


def test_one_process_downloads_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processes that download into one folder cut off each other's files."""
    monkeypatch.setattr(locks, "RETRY", 0.01)
    inside, most = [], []

    def download() -> None:
        with sources._only_one(tmp_path / "new"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=download) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == [1] * 4


def test_a_complete_folder_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--download in a config file, and a folder that is shared read-only."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sources, "Lock", refused)
    with sources._only_one(tmp_path):
        entered = True
    assert entered


def test_eight_bits_in_sixteen_are_refused(make_folder: MakeFolder) -> None:
    """All of them would be black, and a training go on."""
    root = make_folder(mode="L")
    Image.fromarray(np.full((12, 10), 255, dtype=np.uint16)).save(root / "train" / "bee" / "0.png")
    assert "would be black" in refused(root).problem


@pytest.mark.parametrize("value", [-1, 2**16])
def test_more_bits_than_sixteen_are_refused(make_folder: MakeFolder, value: int) -> None:
    """They would wrap around."""
    root = make_folder(mode="L")
    Image.fromarray(np.full((12, 10), value, dtype=np.int32)).save(root / "train" / "bee" / "0.tif")
    source = load_source(str(root))
    with pytest.raises(UserError, match="more than 16 bits"):
        read_image(source.train, _index(source, "0.tif"), 1)


@pytest.mark.parametrize(
    ("sizes", "expected"), [(((12, 10),), (12, 10)), (((12, 10), (10, 12)), None), (((9, 9), (9, 8)), None)]
)
def test_the_common_size_is_found(make_folder: MakeFolder, sizes: Any, expected: Any) -> None:
    """Small images would be blown up, or mixed ones take the size of the first."""
    assert load_source(str(make_folder(sizes=sizes))).size == expected


@pytest.mark.parametrize("name", ["nonsense.png", "truncated.png", "empty.png"])
def test_a_bad_image_does_not_keep_a_folder_from_opening(make_folder: MakeFolder, name: str) -> None:
    """--skip-bad-images could not go on without it."""
    root = make_folder()
    whole = (root / "train/ant/0.png").read_bytes()
    (root / "train/ant" / name).write_bytes({"n": b"no image", "t": whole[:100], "e": b""}[name[0]])
    source = load_source(str(root))
    index = _index(source, name)
    assert source.size == (12, 10)
    with pytest.raises(UserError, match=f"ant/{name}: ") as caught:
        read_image(source.train, index, 3)
    assert "--skip-bad-images" in caught.value.remedy
    assert "\n" not in caught.value.problem


def test_a_decompression_bomb_is_a_bad_image(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """One absurdly large file would end everything with a traceback, --skip-bad-images or not."""
    root = make_folder()
    random_image(0, (200, 200)).save(root / "train/ant/huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = load_source(str(root))
    with pytest.raises(UserError, match=r"huge\.png"):
        read_image(source.train, 4, 3)


def test_sources_travel_to_worker_processes(make_folder: MakeFolder) -> None:
    """On macOS and Windows no worker would start."""
    for spec in (str(make_folder()), "digits"):
        images = load_source(spec).train
        copy = pickle.loads(pickle.dumps(images))
        assert np.array_equal(np.asarray(copy.image(1)), np.asarray(images.image(1)))


# --- unknown names ---


@pytest.mark.parametrize("spec", ["digit", "nowhere/photos", "cifar10"])
def test_unknown_data_are_refused_with_what_there_is(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback from deep inside timm."""
    monkeypatch.chdir(tmp_path)
    error = refused(spec)
    assert repr(spec) in error.problem
    assert "digits" in error.remedy
    assert error.exit_code == 2


# --- timm's names ---


def write_idx(path: Path, array: np.ndarray) -> None:
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_mnist(folder: Path) -> np.ndarray:
    """Files as MNIST, KMNIST and Fashion-MNIST have them, of 20 + 10 random images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 20), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return images


@pytest.mark.parametrize("name", ["torch/mnist", "torch/MNIST", "Torch/mnist", "torch/fashion_mnist", "torch/kmnist"])
def test_torchvision_data_open_by_timms_names(tmp_path: Path, name: str) -> None:
    """The common data sets would not open, be split wrongly, or digits be mirrored into other digits."""
    folder = {"fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}.get(name.split("/")[1], "MNIST")
    held_out = write_mnist(tmp_path / folder / "raw")
    source = load_source(name, data_dir=str(tmp_path))
    assert source.test is not None
    assert (len(source.train.labels), len(source.test.labels)) == (20, 10)
    assert source.test.labels.tolist() == list(range(10))
    assert (source.num_classes, source.channels, source.size, source.flip) == (10, 1, (28, 28), False)
    assert source.class_names is not None
    assert len(source.class_names) == 10
    assert np.array_equal(np.asarray(source.test.image(3)), held_out[3])


def test_qmnist_opens(tmp_path: Path) -> None:
    """Its labels come with seven more columns, which are not labels."""
    folder = tmp_path / "QMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 20), ("test", 10)):
        write_idx(folder / f"qmnist-{name}-images-idx3-ubyte", np.zeros((count, 28, 28), dtype=np.uint8))
        labels = np.stack([np.arange(count) % 10, *[np.full(count, 77)] * 7], axis=1)
        write_idx(folder / f"qmnist-{name}-labels-idx2-int", labels.astype(np.int32))
    source = load_source("torch/qmnist", data_dir=str(tmp_path))
    assert source.train.labels.tolist() == [*range(10), *range(10)]


def test_cifar_opens_with_its_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most used benchmark would not open, or a teacher's classes not be compared with it."""
    kind, folder = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    classes = ["airplane", "automobile", *"cdefghij"]
    for attribute in ("train_list", "test_list"):  # the check sums are those of the true files
        monkeypatch.setattr(kind, attribute, [(name, None) for name, _ in getattr(kind, attribute)])
        for name, _ in getattr(kind, attribute):
            content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 2, 9]}
            (folder / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    source = load_source("torch/cifar10", data_dir=str(tmp_path))
    assert source.test is not None
    assert (len(source.train.labels), len(source.test.labels)) == (20, 4)
    assert source.class_names == tuple(classes)
    assert (source.channels, source.size, source.flip) == (3, (32, 32), True)
    expected = content["data"][1].reshape(3, 32, 32).transpose(1, 2, 0)  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(source.test.image(1)), expected)


def test_data_that_are_not_there_are_not_fetched_unasked(tmp_path: Path) -> None:
    """Gigabytes would be downloaded for a misspelt --data-dir."""
    error = refused("torch/cifar10", data_dir=str(tmp_path / "none"))
    assert "torch/cifar10 cannot be opened" in error.problem
    assert "--download" in error.remedy
    assert not (tmp_path / "none").exists() or not list((tmp_path / "none").iterdir())
    assert "Unknown torchvision dataset nothing" in refused("torch/nothing", data_dir=str(tmp_path)).problem


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="Hugging Face datasets is installed")
def test_hugging_face_data_without_their_package(tmp_path: Path) -> None:
    """A traceback that does not say what to install."""
    error = refused("hfds/mnist", data_dir=str(tmp_path))
    assert "hfds/mnist" in error.problem
    assert "kdcompress[hf]" in error.remedy
    assert "datasets" in error.problem


# --- py: ---


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Writes a user's module into the working directory and gives the spec of its function ``make``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    start = "import numpy as np, torch\nfrom PIL import Image\nfrom torch.utils.data import *\n"

    def write(body: str) -> str:
        name = f"user_{abs(hash(body))}"
        Path(f"{name}.py").write_text(f"{start}\n{body}\n")
        importlib.invalidate_caches()
        trust.typed(spec := f"py:{name}:make")
        return spec

    return write


IMAGES = {
    "PIL": ("Image.fromarray(np.full((6, 5, 3), i, np.uint8))", 3),
    "grey PIL": ("Image.fromarray(np.full((6, 5), i, np.uint8))", 1),
    "array": ("np.full((6, 5, 3), i, np.uint8)", 3),
    "grey array": ("np.full((6, 5), i, np.uint8)", 1),
    "array of one channel": ("np.full((6, 5, 1), i, np.uint8)", 1),
    "tensor": ("torch.full((3, 6, 5), i, dtype=torch.uint8)", 3),
    "grey tensor": ("torch.full((1, 6, 5), i, dtype=torch.uint8)", 1),
    "flat tensor": ("torch.full((6, 5), i, dtype=torch.uint8)", 1),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_a_python_data_set(module: Module, kind: str) -> None:
    """A data set that works with PyTorch would have to be rewritten, or be read with its axes mixed up."""
    expression, channels = IMAGES[kind]
    source = load_source(
        module(f"def make():\n    data = [({expression}, i % 3) for i in range(9)]\n    return data, data")
    )
    assert source.test is not None
    assert (source.num_classes, source.channels, source.size) == (3, channels, (6, 5))
    assert source.train.labels.tolist() == [0, 1, 2] * 3
    pixels = np.asarray(read_image(source.train, 4, channels))
    assert pixels.shape == ((6, 5) if channels == 1 else (6, 5, 3))
    assert (pixels == 4).all()


def test_a_tensor_keeps_its_rows_columns_and_colours(module: Module) -> None:
    """Images would come out transposed."""
    made = "torch.arange(90, dtype=torch.uint8).reshape(3, 6, 5)"
    source = load_source(module(f"def make():\n    return [({made}, 0), ({made}, 1)], None"))
    expected = np.arange(90, dtype=np.uint8).reshape(3, 6, 5).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(source.train.image(1)), expected)


def test_names_flip_and_splits_of_a_python_data_set(module: Module) -> None:
    """What the data set says of itself would be ignored."""
    body = """
class Data(Dataset):
    classes, flip, targets = ("x", "y", "z"), False, [0, 1, 1]
    def __len__(self): return 3
    def __getitem__(self, index): return Image.new("L", (4, 4)), self.targets[index]

def make(): return {"train": Data()}
"""
    source = load_source(module(body))
    assert source.class_names == ("x", "y", "z")
    assert (source.num_classes, source.flip, source.test) == (3, False, None)


def test_labels_of_a_subset_are_those_of_its_images(module: Module) -> None:
    """Subset and ConcatDataset have no list of labels; taking the whole set's would shuffle classes."""
    body = """
class Data(Dataset):
    targets = [0, 1, 2, 0, 1, 2]
    def __len__(self): return 6
    def __getitem__(self, index): return Image.new("L", (4, 4)), self.targets[index]

def make(): return Subset(Data(), [5, 0, 1]), None
"""
    assert load_source(module(body)).train.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("def make(): return 3", "returned int"),
        ("def make(): return [1, 2]", "returned list"),
        ("def make(): return {'test': []}", "returned dict"),
        ("def make(): return 1, 2, 3", "returned tuple"),
        ("def make(): return [], None", "have no images"),
        ("def make(): return [(Image.new('L', (4, 4)), 0)] * 4, None", "only one class"),
        (
            "def make(): return [(Image.new('L', (4, 4)), i - 1) for i in range(4)], None",
            "image 0 of the training split is -1",
        ),
        (
            "def make(): return [[(Image.new('L', (4, 4)), i) for i in range(n)] for n in (3, 5)]",
            "returned list",
        ),
        (
            "def make(): return tuple([(Image.new('L', (4, 4)), i) for i in range(n)] for n in (3, 5))",
            "image 3 of the test split is 3, but the data have 3 classes",
        ),
        ("def make(): return [(torch.zeros(3 + i), i) for i in range(4)], None", "differ in shape"),
        ("def make(): return [(torch.zeros(1, 1, 1, 4), i) for i in range(4)], None", "shape (1, 1, 1, 4)"),
        ("def make(): return [(torch.zeros(2, 4, 4).byte(), i) for i in range(4)], None", "uint8, shape (2, 4, 4)"),
        ("def make(): return [(torch.zeros(16).byte(), i) for i in range(4)], None", "shape (16,)"),
        (
            "class Endless(IterableDataset):\n    def __iter__(self): yield\n\ndef make(): return Endless(), None",
            "is a stream",
        ),
        ("make = 3", "is not callable"),
        ("other = 3", "cannot be imported"),
        ("import nothing_of_this_name", "cannot be imported"),
    ],
)
def test_what_is_wrong_with_a_python_data_set_is_told(module: Module, body: str, words: str) -> None:
    """A traceback deep inside training, or (images of floats) a run on black images."""
    assert words in refused(module(body)).problem


def test_a_bad_image_does_not_keep_python_data_from_opening(module: Module, make_folder: MakeFolder) -> None:
    """--skip-bad-images could not go on without it."""
    path = make_folder() / "train/ant/0.png"
    path.write_bytes(path.read_bytes()[:150])
    paths = [str(path), *(str(path.with_name(f"{i}.png")) for i in (1, 2, 3))]
    source = load_source(module(f"def make(): return [(Image.open(p), i % 2) for i, p in enumerate({paths})], None"))
    with pytest.raises(UserError, match="image 0: "):
        read_image(source.train, 0, 3)
    assert read_image(source.train, 1, 3).size == (10, 12)


@pytest.mark.parametrize("spec", ["py:", "py:json", "py:json:", "py:no_such_module:f", "py::f"])
def test_a_python_spec_that_leads_nowhere(spec: str) -> None:
    """A traceback instead of how to write it."""
    trust.typed(spec)
    with pytest.raises(UserError) as caught:
        trust.import_callable(spec)
    assert spec in caught.value.problem
    assert "py:package.module:function" in caught.value.remedy


def test_the_fingerprint_of_python_data_follows_labels_and_pixels(module: Module) -> None:
    """Changed data would go unnoticed."""
    body = "def make(): return [(np.full((4, 4), {}, np.uint8), {}) for i in range(6)], None"
    prints = [load_source(module(body.format(*parts))).fingerprint for parts in (("i", "i % 2"), ("i", "i % 3"))]
    prints.append(load_source(module(body.format("i + 1", "i % 2"))).fingerprint)
    assert len(set(prints)) == 3
    assert load_source(module(body.format("i", "i % 2"))).fingerprint == prints[0]


def test_torch_stays_out_of_numpys_way() -> None:
    """Labels of torchvision data sets are tensors or lists; both have to become whole numbers."""
    from kdcompress.data.labels import decode
    from kdcompress.data.map_source import _labels_of

    class Tensors:
        targets = torch.tensor([2, 0, 1])

        def __len__(self) -> int:
            return 3

    assert decode(_labels_of(Tensors()), None, None).train.tolist() == [2, 0, 1]
    assert decode(_labels_of(Tensors()), None, None).train.dtype == np.int64


def test_files_are_those_of_torchvisions_folder(tmp_path: Path) -> None:
    """Runs of other tools on the same folder could not be compared; and names are kept in one piece, not as objects."""
    from torchvision.datasets import ImageFolder

    for name in ("b/10.png", "b/9.PNG", "b/deep/er/x.jpeg", "a/\u00fcmlaut.jpg", "a/z.webp", "a/notes.txt"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")
    found = load_source(str(tmp_path)).train
    theirs = ImageFolder(str(tmp_path / "train"))
    assert isinstance(found, FileImages)
    assert list(found.paths) == [path for path, _ in theirs.samples]
    assert found.labels.tolist() == theirs.targets
    again = pickle.loads(pickle.dumps(found))
    assert [again.name(index) for index in range(5)] == list(found.paths)
    assert found.paths[-1] == found.paths[4] == found.paths[1:][3]
    with pytest.raises(IndexError):
        found.paths[5]


def test_a_pipe_among_the_images_is_named(tmp_path: Path) -> None:
    """Every training on the folder would hang at the same place, without a word."""
    root = photos(tmp_path / "photos")
    (root / "train" / "cat" / "0.png").unlink()
    os.mkfifo(root / "train" / "cat" / "0.png")
    source = load_source(str(root))
    with pytest.raises(UserError, match=r"0\.png"):
        read_image(source.train, 0, 3)
