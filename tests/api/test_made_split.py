"""A folder without splits through a chain of commands: one division for all of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdcompress
from chains import TINY
from heard import Heard
from kdcompress.errors import UserError
from kdcompress.runs import RunFolder

FAST: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "loading": "memory"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 30 images of 12 pixels, bright and dark."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(30):
            image = rng.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


def add_images(photos: Path) -> None:
    for number in range(10):
        Image.new("RGB", (12, 12), (200, number, 0)).save(photos / "bright" / f"0-new-{number}.png")


def test_all_commands_of_a_chain_use_one_division(photos: Path, tmp_path: Path) -> None:
    """Images that were trained on would come into the test split as soon as somebody adds photos."""
    out = [str(tmp_path / name) for name in ("t", "s", "c", "g")]
    kdcompress.train_teacher(data=str(photos), model=TINY, out=out[0], **FAST)
    recorded = (tmp_path / "t" / "split.csv").read_bytes()
    assert recorded.startswith(b"path,label,split\nbright/00.png,bright,")
    assert recorded.count(b",test\n") == 12
    before = kdcompress.evaluate(run=out[0])
    add_images(photos)
    heard = Heard()
    kdcompress.distill(teacher=out[0], student=TINY, method="reskd", out=out[1], reporter=heard, **FAST)
    kdcompress.add_res_student(run=out[1], arch=TINY, out=out[2], **FAST)
    kdcompress.gate_calibrate(run=out[2], max_drop=5.0, out=out[3])
    assert any("0-new-0.png" in note and "not used" in note for note in heard.notes)
    assert kdcompress.evaluate(run=out[3]).n == before.n == 12
    assert kdcompress.evaluate(run=out[0]).top1 == before.top1
    for name in ("s", "c", "g"):
        assert (tmp_path / name / "split.csv").read_bytes() == recorded
    (Path(out[3]) / "checkpoint.pt").touch()  # a kill while the run was finished
    assert kdcompress.verify(run=out[3]).whole
    (tmp_path / "g" / "split.csv").write_bytes(recorded.replace(b"train", b"test", 1))
    assert not kdcompress.verify(run=out[3]).whole
    with pytest.raises(UserError, match=r"split\.csv"):
        kdcompress.evaluate(run=out[3])


def test_a_training_goes_on_with_the_division_that_it_began_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed could not go on after somebody has added a photo."""
    given = {"data": str(photos), "model": TINY, "out": str(tmp_path / "t"), **FAST, "epochs": 2}

    def killed(self: RunFolder, record: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            kdcompress.train_teacher(**given)
    recorded = (tmp_path / "t" / "split.csv").read_bytes()
    add_images(photos)
    kdcompress.train_teacher(**given, resume=True)
    assert (tmp_path / "t" / "split.csv").read_bytes() == recorded


def test_data_with_val_alone_are_enough_to_evaluate(photos: Path, tmp_path: Path) -> None:
    """Whoever has a model and a held-out set would have to make up a training split."""
    run = str(tmp_path / "t")
    kdcompress.train_teacher(data=str(photos), model=TINY, out=run, **FAST)
    (tmp_path / "held-out").mkdir()
    photos.rename(tmp_path / "held-out" / "val")
    held_out = str(tmp_path / "held-out")
    assert kdcompress.evaluate(run=run, data=held_out).n == 60
    assert kdcompress.describe_data(data=held_out).to_dict()["fit"] == 0
    with pytest.raises(UserError, match="no training split"):
        kdcompress.train_teacher(data=held_out, model=TINY, **FAST)
    with pytest.raises(UserError, match="no training split"):
        kdcompress.evaluate(run=run, data=held_out, split="calibration")


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, True), ({"input_size": "48"}, False), ({"input_size": "32"}, False), ({"model": "test_resnet"}, False)],
)
def test_small_images_are_not_reduced_in_silence(
    given: dict[str, Any], said: bool, photos: Path, tmp_path: Path
) -> None:
    """Photos of 48 pixels went through a CIFAR network at 32: cheaper and less accurate than anybody asked for."""
    for file in photos.glob("*/*.png"):
        Image.open(file).resize((48, 48)).save(file)
    heard = Heard()
    options = {"model": TINY, **FAST, **given}
    kdcompress.train_teacher(data=str(photos), out=str(tmp_path / "t"), reporter=heard, **options)
    notes = [note for note in heard.notes if "48x48 pixels are reduced to 32x32" in note]
    assert bool(notes) == said
    assert not said or "input_size=48x48" in notes[0] or "--input-size 48x48" in notes[0]


@pytest.mark.parametrize(
    ("given", "said"), [({}, True), ({"input_size": "32"}, False), ({"model": "test_resnet"}, False)]
)
def test_photos_are_not_made_tiny_in_silence(given: dict[str, Any], said: bool, photos: Path, tmp_path: Path) -> None:
    """The default student is a network for thumbnails, and photos would be reduced to 32 pixels."""
    for number, file in enumerate(sorted(photos.glob("*/*.png"))):
        Image.open(file).resize((240 + number, 320)).save(file)
    heard = Heard()
    kdcompress.train_teacher(
        data=str(photos), out=str(tmp_path / "t"), reporter=heard, **{"model": TINY, **FAST, **given}
    )
    assert any("photos are reduced to 32x32" in note and "--model resnet18" in note for note in heard.notes) == said


@pytest.mark.parametrize("way", ["dots", "link", "moved"])
def test_the_division_belongs_to_the_folder_whatever_it_is_called(photos: Path, tmp_path: Path, way: str) -> None:
    """With another path to the same photos, images that were trained on would come into the test split."""
    named = tmp_path / "elsewhere" / ".." / "photos" if way == "dots" else photos
    (tmp_path / "elsewhere").mkdir()
    kdcompress.train_teacher(data=str(named), model=TINY, out=str(tmp_path / "t"), **FAST)
    recorded = (tmp_path / "t" / "split.csv").read_bytes()
    add_images(photos)
    if way == "link":
        (tmp_path / "linked").symlink_to(photos)
        named = tmp_path / "linked"
    if way == "moved":
        named = photos.rename(tmp_path / "elsewhere" / "new name")
    heard = Heard()
    found = kdcompress.evaluate(run=str(tmp_path / "t"), data=str(named), reporter=heard)
    assert found.n == 12
    assert any("not used" in note for note in heard.notes)
    student = kdcompress.distill(
        teacher=str(tmp_path / "t"), data=str(named), student=TINY, out=str(tmp_path / "s"), **FAST
    )
    assert (Path(str(student.run)) / "split.csv").read_bytes() == recorded


def test_another_folder_is_divided_anew(photos: Path, tmp_path: Path) -> None:
    """The images of one folder would be looked for in another."""
    kdcompress.train_teacher(data=str(photos), model=TINY, out=str(tmp_path / "t"), **FAST)
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    add_images(other)
    assert kdcompress.evaluate(run=str(tmp_path / "t"), data=str(other)).n == 14


def test_too_few_photos_for_three_splits_are_said(tmp_path: Path) -> None:
    """Two readable photos a class would be called unreadable."""
    for name, level in (("bright", 200), ("dark", 20)):
        (tmp_path / "two" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (12, 12), (level, number, 0)).save(tmp_path / "two" / name / f"{number}.png")
    with pytest.raises(UserError, match=r"split of .* is empty") as caught:
        kdcompress.train_teacher(data=str(tmp_path / "two"), model=TINY, out=str(tmp_path / "t"), **FAST)
    assert "three images or more" in caught.value.remedy
