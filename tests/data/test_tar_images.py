"""Images in tar shards: found by their headers, read in any order, and nothing of them lost without a word."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcompress.data import Data, Preprocess, load_source
from kdcompress.data.source import DataSource
from kdcompress.data.tar_headers import Damaged, members
from kdcompress.data.tar_images import TarImages
from kdcompress.errors import UserError
from kdcompress.options import TrainingOptions

from .images import random_image

File = tuple[str, bytes]


def image_bytes(seed: int, kind: str = "png") -> bytes:
    made = io.BytesIO()
    random_image(seed).save(made, kind)
    return made.getvalue()


def sample(number: int, label: int, name: str = "") -> list[File]:
    key = name or f"{number:04}"
    return [(f"{key}.png", image_bytes(number)), (f"{key}.cls", str(label).encode())]


def write(path: Path, files: Sequence[File], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two shards of six training images and one of three test images, three classes."""
    for shard in range(2):
        files = [file for i in range(6) for file in sample(6 * shard + i, i % 3)]
        write(tmp_path / f"photos-train-{shard:04}.tar", files)
    write(tmp_path / "photos-test-0000.tar", [file for i in range(3) for file in sample(100 + i, i)])
    return tmp_path


def info(root: Path, **changed: Any) -> None:
    """``_info.json`` as timm has it."""
    names = {split: sorted(path.name for path in root.glob(f"*-{split}-*.tar")) for split in ("train", "test")}
    lengths = {"train": [6, 6], "test": [3]}
    splits = {
        split: {"name": split, "num_samples": sum(lengths[split]), "filenames": names[split]}
        | {"shard_lengths": lengths[split]}
        | changed
        for split in names
    }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


def opened(root: Path) -> DataSource:
    return load_source("wds/photos", data_dir=str(root))


def refused(root: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        opened(root)
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("named", [True, False])
def test_every_image_has_an_index(root: Path, named: bool) -> None:
    """A stream cannot be divided or shown again alike: data in shards could not be used at all."""
    if named:
        info(root)
    source = opened(root)
    assert (source.num_classes, source.channels, source.size) == (3, 3, (12, 10))
    assert isinstance(source.train, TarImages)
    assert source.train.labels.tolist() == [0, 1, 2] * 4
    assert source.test is not None
    assert source.test.labels.tolist() == [0, 1, 2]
    for index in (11, 0, 5, 6):
        assert np.array_equal(source.train.image(index), random_image(index))
    assert np.array_equal(source.test.image(2), random_image(102))
    assert source.train.name(7) == f"{root}/photos-train-0001.tar: 0007.png"


def test_the_index_is_small(tmp_path: Path) -> None:
    """A million images would be a million Python objects, in each of all worker processes."""
    write(tmp_path / "a-train-0.tar", [file for i in range(300) for file in sample(0, i % 2, f"{i:050}")])
    train = opened(tmp_path).train
    assert isinstance(train, TarImages)
    arrays = (train.offsets, train.sizes, train.labels)
    assert sum(values.nbytes for values in arrays) == 20 * 300
    assert len(pickle.dumps(train)) < 20 * 300 + 1000


def test_shards_travel_to_worker_processes(root: Path) -> None:
    """Only data sets that fit into memory could be read by several processes."""
    options = TrainingOptions(loading="stream", workers=2)
    data = Data(opened(root), Preprocess((12, 10), 3, (0.0,) * 3, (1.0,) * 3), options, torch.device("cpu"))
    found = {
        (round(float(x.mean()), 5), int(y)) for xs, ys in data.evaluation("fit", 4) for x, y in zip(xs, ys, strict=True)
    }
    train = data.source.train
    wanted = {
        (round(float(np.asarray(train.image(i)).mean() / 255), 5), int(train.labels[i])) for i in data._select("fit")[1]
    }
    assert found == wanted
    assert len(found) == data.fit_size()


def test_what_a_cache_is_known_by(root: Path) -> None:
    """Targets of the images that a shard held before it was written anew would be taken for those of the new ones."""
    before = opened(root)
    shard = root / "photos-train-0001.tar"
    files = [file for i in range(6) for file in sample(6 + i, i % 3)]
    write(shard, files)
    same = opened(root)
    assert before.fingerprint == same.fingerprint
    assert isinstance(before.train, TarImages)
    assert isinstance(same.train, TarImages)
    assert before.train.written != same.train.written
    options = TrainingOptions(loading="stream", workers=0)
    data = Data(same, Preprocess((12, 10), 3, (0.0,) * 3, (1.0,) * 3), options, torch.device("cpu"))
    assert bytes(data.training(4, 0, "none").images.content()) == same.train.written
    write(shard, [*files[:-2], *sample(11, 1)])
    assert opened(root).fingerprint != before.fingerprint


def test_cut_off_anywhere(tmp_path: Path) -> None:
    """An interrupted copy would train on the images that had arrived, and nobody would know."""
    whole = write(tmp_path / "whole.tar", [("a.cls", b"1"), ("b.cls", b"0" * 600)]).read_bytes()
    path, ending = tmp_path / "cut.tar", 512 * 5  # what follows the first block of zeros is padding
    for length in range(0, len(whole), 64):
        path.write_bytes(whole[:length])
        with open(path, "rb") as file:
            if length >= ending + 512:
                assert [(member.name, member.size) for member in members(file)] == [("a.cls", 1), ("b.cls", 600)]
            else:
                with pytest.raises(Damaged, match=f"cut off after {length:,} bytes"):
                    list(members(file))


def test_a_damaged_shard_is_named(root: Path) -> None:
    """``tarfile`` takes a damaged header for the end: the images behind it would be lost in silence."""
    path = root / "photos-train-0001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"The shard {path} is cut off" in refused(root).problem
    path.write_bytes(whole)
    with open(path, "rb") as file:
        third = list(members(file))[2].offset - 512
    for position in range(third, third + 512):
        flipped = bytearray(whole)
        flipped[position] ^= 0x04
        path.write_bytes(flipped)
        with open(path, "rb") as file, pytest.raises(Damaged, match=f"damaged at byte {third:,}"):
            list(members(file))
    path.write_bytes(flipped)
    assert str(path) in refused(root).problem


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_of_tar_files(tmp_path: Path, form: int) -> None:
    """Shards of another tool, or with long names, would be refused or misread."""
    folder = "a/" * 40 + "long" * (10 if form == tarfile.USTAR_FORMAT else 60)
    names = [f"{folder}/{i}" for i in range(4)] + ["été"] * (form != tarfile.USTAR_FORMAT)
    files = [file for i, name in enumerate(names) for file in sample(i, i % 2, name)]
    path = write(tmp_path / "x-train-0.tar", [("__notes__.txt", b"none"), *files], form)
    with open(path, "rb") as file, tarfile.open(path) as tar:
        assert [(m.name, m.offset, m.size) for m in members(file)] == [(m.name, m.offset_data, m.size) for m in tar]
    train = opened(tmp_path).train
    assert train.labels.tolist() == [i % 2 for i in range(len(names))]
    assert all(np.array_equal(train.image(i), random_image(i)) for i in range(len(names)))


def test_labels_in_json(root: Path) -> None:
    """timm's own shards of ImageNet-22k keep theirs there; images without one are marked by -1."""
    labels = [0, 1, -1, 2, 1, 0]
    for shard in range(2):
        files = []
        for i, label in enumerate(labels):
            files += [(f"{i}.json", json.dumps({"in12k": label}).encode()), (f"{i}.JPEG", image_bytes(i, "jpeg"))]
        write(root / f"photos-train-{shard:04}.tar", files)
    write(root / "photos-test-0000.tar", [(f"{i}.{kind}", content) for i in range(3) for kind, content in
                                          (("json", b'{"in12k": 1}'), ("jpg", image_bytes(i, "jpeg")))])  # fmt: skip
    assert "alt_label" in refused(root).remedy
    info(root, alt_label="in12k")
    assert opened(root).train.labels.tolist() == [0, 1, 2, 1, 0] * 2
    info(root, alt_label="absent")
    assert "no class number as absent in 0.json" in refused(root).problem


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("0.png", b"x")], "no class number as 0.cls"),
        ([("0.png", b"x"), ("0.cls", b"cat")], "no class number as 0.cls"),
        ([("0.png", b"x"), ("0.cls", b"-1")], "the class number -1 as 0.cls"),
        ([("0.png", b"x"), ("0.cls", b"1000000000")], "the class number 1000000000"),
        ([("0.png", b"x"), ("0.cls", b"1" * 40)], "40 bytes in 0.cls"),
        ([("0.cls", b"1")], "no image"),
        ([("0.png", b"x"), ("0.png", b"y"), ("0.cls", b"1")], "two files 0.png"),
    ],
)
def test_samples_that_cannot_be(root: Path, files: list[File], words: str) -> None:
    """timm logs such samples and drops them: an epoch would have fewer images than the data."""
    write(root / "photos-train-0001.tar", [*sample(7, 1, "a"), *files])
    error = refused(root)
    assert words in error.problem
    assert str(root / "photos-train-0001.tar") in error.problem


def test_shards_that_are_not_all_there(root: Path) -> None:
    """A download that stopped half-way would train on half of the data."""
    info(root)
    (root / "photos-train-0001.tar").unlink()
    assert "photos-train-0001.tar cannot be opened" in refused(root).problem
    write(root / "photos-train-0001.tar", sample(1, 1))
    assert "has 1 samples, not the 6" in refused(root).problem
    (root / "_info.json").write_text('{"splits": {"train": {"filenames": 3}}}')
    assert "_info.json cannot be read" in refused(root).problem
    (root / "_info.json").write_text('{"splits": {"val": {"filenames": ["photos-test-0000.tar"]}}}')
    assert refused(root).exit_code == 2


def test_labels_of_the_test_split(root: Path) -> None:
    """An image of a class that no network knows would end the training's last step with an index error."""
    write(root / "photos-test-0000.tar", sample(0, 3))
    assert "3 classes, but an image has the label 3" in refused(root).problem


def test_streams_name_the_way_out() -> None:
    """The user would be told that it cannot be done, though the same data with an index are a letter away."""
    with pytest.raises(UserError, match="hfds/org/name") as caught:
        load_source("hfids/org/name")
    assert caught.value.exit_code == 2
