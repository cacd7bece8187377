"""Near copies of photos: saved again, resized, or brightened, they belong on one side of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data.images import scene
from kdcompress.data import load_source
from kdcompress.data.near_copies import implausible, near_copies
from kdcompress.data.split_file import SplitFile
from kdcompress.data.splits import fit_calibration

Change = Callable[[Image.Image], Image.Image]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 20 different photos."""
    for number in range(60):
        folder = tmp_path / "photos" / ("ant", "bee", "wasp")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        scene(number).save(folder / f"{number:02}.png")
    return tmp_path / "photos"


def said(folder: Path) -> str:
    source = load_source(str(folder))
    return " ".join(source.notes + source.first_notes)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("jpg", lambda image: image),
        ("png", lambda image: image.resize((96, 80))),
        ("png", lambda image: ImageEnhance.Brightness(image).enhance(0.9)),
        ("png", lambda image: image.convert("L")),
    ],
)
def test_changed_copies_are_found_and_other_photos_are_not(
    tmp_path: Path, photos: Path, suffix: str, change: Change
) -> None:
    """The test split would hold photos that were trained on; or different photos would count as one."""
    files = sorted(str(path) for path in photos.glob("*/*"))
    copies = []
    for number, file in enumerate(files[:20]):
        change(Image.open(file)).save(copy := tmp_path / f"{number}.{suffix}")
        copies.append(str(copy))
    groups = near_copies(files + copies, list(range(80)))
    assert groups[:60] == list(range(60))
    assert sum(groups[60 + number] == number for number in range(20)) >= 19


def test_groups_do_not_depend_on_the_order_of_the_files(photos: Path) -> None:
    """Two machines that list a folder in another order would divide it in two ways."""
    for file in sorted(photos.glob("*/*"))[::4]:
        Image.open(file).save(file.with_suffix(".jpg"))
    files = sorted(str(path) for path in photos.glob("*/*"))
    order = np.random.default_rng(0).permutation(len(files))

    def together(names: list[str]) -> set[frozenset[str]]:
        found: dict[int, set[str]] = {}
        for name, group in zip(names, near_copies(names, list(range(len(names)))), strict=True):
            found.setdefault(group, set()).add(name)
        return {frozenset(names) for names in found.values()}

    assert together([files[index] for index in order]) == together(files)
    assert len(together(files)) == 60


def test_blank_and_broken_images_are_near_copies_of_nothing(tmp_path: Path) -> None:
    """All blank scans would be one group, and a broken file end the command before it is named."""
    for number in range(4):
        Image.new("L", (40, 40), 250 - number).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    files = sorted(str(path) for path in tmp_path.iterdir())
    assert near_copies(files, list(range(5))) == list(range(5))
    assert near_copies([], []) == []


def test_near_copies_stay_in_one_split_and_are_said(photos: Path) -> None:
    """Accuracy would be too good, for half of the test photos were trained on at another size."""
    for file in sorted(photos.glob("*/*"))[::2]:
        Image.open(file).resize((72, 60)).save(file.with_name(f"{file.stem}-large.png"))
    assert "60 images have near-duplicates; they stay in one split." in said(photos)
    source = load_source(str(photos))
    assert source.test is not None
    for label in range(3):
        assert (source.test.labels == label).sum() == 6
    sides: dict[str, set[int]] = {}
    for part in (source.train, source.test):
        for index in range(len(part.labels)):
            stem = Path(part.name(index)).stem.removesuffix("-large")
            sides.setdefault(stem, set()).add(id(part))
    assert len(sides) == 60
    assert {len(found) for found in sides.values()} == {1}


def test_near_copies_are_not_calibrated_on(photos: Path, tmp_path: Path) -> None:
    """Thresholds would come from photos that the network was fitted on, and exit too early on new ones."""
    for file in sorted(photos.glob("*/*")):
        Image.open(file).resize((72, 60)).save(file.with_name(f"{file.stem}-large.png"))
    source = load_source(str(photos))
    assert source.split is not None
    (tmp_path / "split.csv").write_bytes(source.split.content())
    again = load_source(str(photos), split=SplitFile.read(tmp_path / "split.csv"))
    assert again.split is not None
    assert again.split.content() == source.split.content()
    parts = []
    for opened in (source, again):
        fit, calibration = fit_calibration(opened.train.labels, 0.2, opened.groups)
        stems = [
            {Path(opened.train.name(int(index))).stem.removesuffix("-large") for index in part}
            for part in (fit, calibration)
        ]
        assert not stems[0] & stems[1]
        assert len(calibration) == 18
        parts.append(calibration.tolist())
    assert parts[0] == parts[1]


def test_a_record_without_groups_divides_as_it_did(photos: Path) -> None:
    """A run of an earlier version would be calibrated on images that it was fitted on."""
    for file in sorted(photos.glob("*/*")):
        Image.open(file).resize((72, 60)).save(file.with_name(f"{file.stem}-large.png"))
    made = load_source(str(photos)).split
    assert made is not None
    assert made.content().startswith(b"path,label,split,group\n")
    assert load_source(str(photos), split=SplitFile(made.rows)).groups is None
    assert SplitFile(made.rows).content().startswith(b"path,label,split\n")


def test_one_photo_in_two_classes_is_named(photos: Path) -> None:
    """One of its labels is wrong, and the network can learn neither."""
    Image.open(photos / "ant" / "00.png").resize((72, 60)).save(photos / "ant" / "again.png")
    assert "another class" not in said(photos)
    (photos / "ant" / "again.png").rename(photos / "wasp" / "again.png")
    assert "1 image is a near-duplicate of one in another class (ant/00.png = wasp/again.png)" in said(photos)


def test_photos_of_a_fixed_camera_are_not_taken_for_copies(photos: Path) -> None:
    """A whole class would be one group, and nothing of it be tested."""
    (photos / "fly").mkdir()
    for number in range(30):
        image = scene(99)
        image.putpixel((number, number), (255, 0, 0))
        image.save(photos / "fly" / f"{number}.png")
    source = load_source(str(photos))
    assert source.test is not None
    assert (source.test.labels == 2).sum() == 6
    assert "most images of a class look alike (as fly/0.png)" in said(photos)
    assert implausible([0] * 12 + list(range(12, 40)), np.zeros(40, dtype=int)) == set()


def test_of_very_many_images_only_exact_copies_are_looked_for(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step all images would be read, which takes hours for some folders."""
    monkeypatch.setattr("kdcompress.data.undivided.MOST_FILES", 50)
    monkeypatch.setattr("kdcompress.data.near_copies._picture", lambda file: 1 / 0)
    assert "of more than 50 images only exact copies are kept in one split" in said(photos)
