"""``data``: what a data set is, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdcompress
from cli.shell import photos
from heard import Heard
from kdcompress.api import contact_sheet
from kdcompress.data import load_source
from kdcompress.errors import UserError

NAME = 17  # pixels below an image: its class, and the gap


def test_classes_splits_and_sizes_are_described() -> None:
    """Counts that are not those of the splits that training uses."""
    found = kdcompress.describe_data(data="digits")
    assert (found.num_classes, found.input_size, found.fit, found.calibration, found.test) == (
        10,
        (1, 8, 8),
        1295,
        142,
        360,
    )
    assert found.preview is None


def test_a_sheet_shows_the_images(tmp_path: Path) -> None:
    """A preview of other images than those trained on hides what is wrong with them."""
    kdcompress.describe_data(data="digits", preview=str(tmp_path / "sheet.png"), images=16, split="test")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (64 + NAME) + 2, 8 * 66 + 2, 3), "eight times as large, so that there is room for a name"
    source = load_source("digits")
    assert source.test is not None
    all_of = np.stack([np.asarray(source.test.image(index)) for index in range(len(source.test.labels))]).astype(int)
    tiles = [
        sheet[2 + row : 66 + row : 8, 2 + column : 66 + column : 8, 0]
        for row in (0, 64 + NAME)
        for column in range(0, 8 * 66, 66)
    ]
    found = [int(np.abs(all_of - tile).max((1, 2)).argmin()) for tile in tiles]
    assert all(np.abs(all_of[index] - tile).max() <= 1 for index, tile in zip(found, tiles, strict=True))
    assert len(set(found)) == 16
    assert np.bincount(source.test.labels[found], minlength=10).max() <= 2


@pytest.mark.parametrize(("data", "images"), [("digits", 64), ("digits", 7), ("synth-digits:100,n=1000", 64)])
def test_the_sheet_has_the_requested_number_of_images(tmp_path: Path, data: str, images: int) -> None:
    """Else half of a sheet is missing, and with it a class."""
    size = 64  # of a tile: small images are enlarged
    for augment in ("none", "crop"):
        path = tmp_path / f"{augment}.png"
        kdcompress.describe_data(data=data, preview=str(path), images=images, augment=augment)
        sheet = np.asarray(Image.open(path))[2:, 2:, 0]
        columns = min(images, 8)
        assert sheet.shape == (-(-images // 8) * (size + NAME), columns * (size + 2))
        last = sheet[-size - NAME :, : (images - 1) % 8 * (size + 2) + size]
        assert len(np.unique(last[:size, -size:])) > 1, "the last place is empty"


def test_augmented_or_not(tmp_path: Path) -> None:
    """Nobody would see what augmentation does to their images."""
    sheets = []
    for augment in ("none", "crop", "auto"):
        path = tmp_path / f"{augment}.png"
        kdcompress.describe_data(data="digits", preview=str(path), augment=augment, seed=3)
        sheets.append(path.read_bytes())
    assert sheets[0] != sheets[1]
    assert sheets[1] == sheets[2], "auto: what training uses"


def test_the_sheet_names_the_classes(tmp_path: Path) -> None:
    """Images in the wrong folder cannot be seen on a sheet that does not say what they are taken for."""

    def strips(names: Sequence[str], width: int) -> list[np.ndarray]:
        picture = contact_sheet.sheet(torch.zeros(len(names), 1, 64, width), names)
        return [picture[66:81, 2 + (width + 2) * n :][:, :width] for n in range(len(names))]

    cat, same, dog = strips(["cat", "cat", "dog"], 64)
    assert (cat == same).all()
    assert (cat != dog).any()
    assert (cat > 200).any()
    long, longer = strips(["a" * 200, "a" * 300], 64)
    assert (long == longer).all(), "cut off where the image ends"


def test_folders_of_colour_images(tmp_path: Path) -> None:
    """The first thing to do with data of one's own."""
    root = photos(tmp_path / "photos")
    result = kdcompress.describe_data(data=str(root), preview=str(tmp_path / "sheet.png"))
    assert result.class_names == ["cat", "dog"]
    assert result.preview == str(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] > 8


def test_invalid_previews_are_refused(tmp_path: Path) -> None:
    """A file of the user's written over, or a traceback of Pillow."""
    (tmp_path / "there.png").write_text("mine")
    for given, words in (
        ({"preview": str(tmp_path / "there.png")}, "exists already"),
        ({"preview": str(tmp_path / "sheet.xyz")}, "no image format"),
        ({"preview": str(tmp_path / "no" / "sheet.png")}, "cannot be written"),
        ({"preview": str(tmp_path / "s.png"), "split": "test", "augment": "crop"}, "Only the fit split"),
        ({"data": "nothing"}, "no data 'nothing'"),
    ):
        with pytest.raises(UserError, match=words):
            kdcompress.describe_data(**given)
    assert (tmp_path / "there.png").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"there.png"}


def test_counts_are_those_of_the_images_that_are_used(tmp_path: Path) -> None:
    """Shares computed from a table would be of images that no network sees."""
    root = photos(tmp_path / "photos")
    whole = kdcompress.describe_data(data=str(root))
    for split in ("train", "test"):
        (root / split / "cat" / "0.png").write_bytes(b"no image")
        (root / split / "dog" / "0.png").write_bytes(b"no image")
    heard = Heard()
    found = kdcompress.describe_data(data=str(root), skip_bad_images=True, reporter=heard)
    assert whole.test is not None
    assert (found.fit + found.calibration, found.test) == (whole.fit + whole.calibration - 2, whole.test - 2)
    told = " ".join(heard.notes)
    broken = {str(root / split / name / "0.png") for split in ("train", "test") for name in ("cat", "dog")}
    assert all(name in told for name in broken)
    assert set(found.unreadable) == broken
