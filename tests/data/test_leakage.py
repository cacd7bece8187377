"""Test images that training has, too: accuracy on them is too good."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import kdcompress
from data.images import scene
from heard import Heard
from kdcompress.data import leakage, load_source
from kdcompress.data.leakage import copies_in_test
from kdcompress.errors import UserError
from kdcompress.options import DescribeDataOptions


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 training and 10 test photos, all different."""
    root = tmp_path / "photos"
    for number in range(60):
        folder = root / ("test" if number % 3 == 2 else "train") / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scene(number).save(folder / f"{number:02}.png")
    return root


def test_different_photos_are_no_copies(photos: Path) -> None:
    """A warning that is always there is read by nobody."""
    assert copies_in_test(load_source(str(photos))) == (0, [])


def test_copies_are_counted_and_named(photos: Path) -> None:
    """Half of the test images may have been trained on, and the table looks the better for it."""
    shutil.copy(photos / "train" / "ant" / "00.png", photos / "test" / "ant" / "again.png")
    scene(3).save(photos / "test" / "bee" / "saved.jpg", quality=80)
    heard = Heard()
    found = kdcompress.describe_data(data=str(photos), reporter=heard)
    assert (found.test, found.test_copies) == (22, 2)
    exact, near = [note for note in heard.notes if "accuracy on them" in note]
    assert exact.startswith("Notice: 1 test image is a copy of a training image (")
    assert f"{photos}/test/ant/again.png = {photos}/train/ant/00.png" in exact
    assert near.startswith("Notice: 1 test image is a near-duplicate of a training image (")
    assert f"{photos}/test/bee/saved.jpg = {photos}/train/bee/03.png" in near


def test_copies_inside_of_a_split_are_not_meant(photos: Path) -> None:
    """Two test images that are alike are not what training has seen."""
    shutil.copy(photos / "test" / "ant" / "02.png", photos / "test" / "ant" / "again.png")
    shutil.copy(photos / "train" / "ant" / "00.png", photos / "train" / "ant" / "again.png")
    assert copies_in_test(load_source(str(photos))) == (0, [])


def test_of_many_images_only_exact_copies_are_looked_for(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million images would be decoded before the sizes are shown, or nothing would say that they were not."""
    shutil.copy(photos / "train" / "ant" / "00.png", photos / "test" / "ant" / "again.png")
    scene(3).save(photos / "test" / "bee" / "saved.jpg", quality=80)
    monkeypatch.setattr(leakage, "MOST_FILES", 10)
    count, notes = copies_in_test(load_source(str(photos)), thorough=True)
    assert count == 1
    assert notes[-1] == "Notice: among 62 images only exact copies are looked for."


def test_of_more_images_only_whoever_asks_is_answered(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million images would be read before the number of classes is shown."""
    shutil.copy(photos / "train" / "ant" / "00.png", photos / "test" / "ant" / "again.png")
    monkeypatch.setattr(leakage, "QUICK", 10)
    heard = Heard()
    assert kdcompress.describe_data(data=str(photos), reporter=heard).test_copies is None
    assert any("61 images no copies are looked for without --find-copies" in note for note in heard.notes)
    assert kdcompress.describe_data(data=str(photos), find_copies=True).test_copies == 1


def test_images_that_are_left_out_are_not_counted(photos: Path) -> None:
    """More copies than test images would be told."""
    for split in ("train", "test"):
        (photos / split / "ant" / "broken.png").write_bytes(b"no image")
    found = kdcompress.describe_data(data=str(photos), skip_bad_images=True)
    assert (found.test, found.test_copies) == (20, 0)


def test_a_folder_that_is_divided_here_has_none(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be read twice, to find what has been kept on one side."""
    shutil.copy(photos / "train" / "ant" / "00.png", photos / "train" / "ant" / "again.png")
    source = load_source(str(photos / "train"))
    monkeypatch.setattr(leakage, "copies_of", lambda *_: pytest.fail("looked again"))
    assert copies_in_test(source) == (0, [])


def test_a_fixed_camera_proves_nothing(tmp_path: Path) -> None:
    """All its test images would be taken for training images."""
    for split, count in (("train", 20), ("test", 10)):
        for number in range(count):
            for name, seed in (("one", 1), ("two", 100 + number + count)):
                folder = tmp_path / split / name
                folder.mkdir(parents=True, exist_ok=True)
                scene(seed).save(folder / f"{number}.jpg", quality=60 + number + (split == "test") * 20)
    count, notes = copies_in_test(load_source(str(tmp_path)))
    assert count == 0
    assert any("look alike" in note for note in notes)


def test_what_is_not_in_files_is_not_compared() -> None:
    """None is not 0: nobody has looked."""
    assert kdcompress.describe_data(data="digits").test_copies is None


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """Whoever asks for copies would take null for none."""
    sheet = tmp_path / "sheet.png"
    with pytest.raises(UserError, match=r"find_copies.* needs image files"):
        kdcompress.describe_data(data="digits", find_copies=True, preview=str(sheet))
    assert not sheet.exists()


def test_the_help_says_how_many_are_compared_unasked() -> None:
    """Somebody with a few thousand photos would not know whether anything was looked for."""
    field = DescribeDataOptions.__dataclass_fields__["find_copies"]
    assert f"more than {leakage.QUICK:,} images" in field.metadata["help"]
