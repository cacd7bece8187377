"""EXIF orientation: an image is seen as the photographer saw it, wherever it is read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kdcompress.data import Data, Preprocess, load_source
from kdcompress.data.exif import upright
from kdcompress.data.timm_images import EachItsOwn
from kdcompress.options import DataOptions

from .images import random_image

CPU = torch.device("cpu")


def photo(orientation: int | None, kind: str = "png") -> bytes:
    """An image of 6 x 4 (H x W) with a tag."""
    exif, file = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    random_image(3, (6, 4)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [None, 0, *range(1, 9), 77])
def test_as_pillow_turns_it(orientation: int | None, kind: str) -> None:
    """Photos taken upright with a phone would be learned lying on their side."""
    with Image.open(io.BytesIO(photo(orientation, kind))) as image:
        image.load()
        turned, expected = upright(image), ImageOps.exif_transpose(image)
    assert np.array_equal(np.asarray(turned), np.asarray(expected))
    assert np.array_equal(np.asarray(upright(turned)), np.asarray(turned)), "turned twice"
    with Image.open(io.BytesIO(photo(orientation, kind))) as image:
        assert np.array_equal(np.asarray(upright(image)), np.asarray(expected)), "an image that is not loaded yet"


def test_damaged_exif_data_leave_the_image_as_it_is() -> None:
    """A camera's broken tag would make a sound image unreadable."""
    image = random_image(0)
    image.info["exif"] = b"Exif\x00\x00MM\x00*\xff\xff"
    assert np.array_equal(np.asarray(upright(image)), np.asarray(image))


def write_folder(root: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number}.png").write_bytes(photo(6))


def test_in_training_evaluation_and_from_memory_and_disk(tmp_path: Path) -> None:
    """Images would be turned in training and lie in evaluation, or the other way round."""
    write_folder(tmp_path / "photos")
    source = load_source(str(tmp_path / "photos"))
    assert source.size == (4, 6), "as turned"
    prep = Preprocess((4, 6), 3, (0.0,) * 3, (1.0,) * 3)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(photo(6))))).transpose(2, 0, 1) / 255
    for loading in ("memory", "stream"):
        data = Data(source, prep, DataOptions(loading=loading, workers=0), CPU)
        for batches in (data.evaluation("test", 2), data.training(2, 0, "none").epoch(0)):
            x, _ = next(iter(batches))
            assert np.allclose(x[0].numpy(), expected, atol=1e-6), loading


def test_in_tar_shards_and_timms_data_sets(tmp_path: Path) -> None:
    """The same photos would look different as shards."""
    with tarfile.open(tmp_path / "photos-train-0.tar", "w") as tar:
        for number in range(4):
            for suffix, content in (("png", photo(8)), ("cls", str(number % 2).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(photo(8)))))
    assert np.array_equal(np.asarray(load_source("wds/photos", data_dir=str(tmp_path)).train.image(2)), expected)
    image, _ = EachItsOwn([(io.BytesIO(photo(8)), 0)])[0]
    assert np.array_equal(np.asarray(image), expected)
