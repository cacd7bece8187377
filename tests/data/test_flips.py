"""Which images may be mirrored for training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from kdcompress.data import load_source
from kdcompress.data.flips import flips_confuse
from kdcompress.data.images import ArrayImages


def digits() -> ArrayImages:
    data = load_digits()
    return ArrayImages((data.images * 15).astype(np.uint8), data.target.astype(np.int64))


def test_mirrored_digits_are_other_digits() -> None:
    """Flips cost handwritten digits three points."""
    assert flips_confuse(digits())


def test_digits_that_were_mirrored_at_random_may_be() -> None:
    """Where both ways round belong to a class, flips help, and must not be left out."""
    images = digits()
    images.array[1::2] = images.array[1::2, :, ::-1]
    assert not flips_confuse(images)


def test_images_that_say_nothing_are_flipped() -> None:
    """Thumbnails of most photos tell little; chance must not take the flips from them."""
    generator = np.random.default_rng(0)
    noise = ArrayImages(generator.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8), np.arange(600) % 10)
    assert not flips_confuse(noise)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_are_no_proof(count: int) -> None:
    """A class of one image must not end in an error."""
    images = digits()
    chosen = np.concatenate([np.flatnonzero(images.labels == label)[:count] for label in range(10)])
    assert not flips_confuse(ArrayImages(images.array[chosen], images.labels[chosen]))


@pytest.mark.parametrize(("mode", "reason"), [("L", "grey"), ("RGB", "other classes")])
def test_a_folder_of_digits_is_not_flipped(tmp_path: Path, mode: str, reason: str) -> None:
    """Grey or in colour, as users have them: in folders that nobody has named after MNIST."""
    images = digits()
    for index in range(600):
        for split in ("train", "test") if index < 20 else ("train",):
            folder = tmp_path / split / str(images.labels[index])
            folder.mkdir(parents=True, exist_ok=True)
            images.image(index).convert(mode).save(folder / f"{index}.png")
    assert reason in load_source(str(tmp_path)).why_not_flipped


def test_damaged_images_are_met_later(tmp_path: Path) -> None:
    """They are named where they are trained on; the look must not end the command."""
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{number}.png")
        (tmp_path / "train" / name / "0.png").write_bytes(b"no image")
    assert load_source(str(tmp_path)).why_not_flipped == ""
