"""Folders of photos as people have them: without splits, with other files, unlabelled tests and copies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdcompress.data import DataSource, listing, load_source
from kdcompress.data.listing import has_images
from kdcompress.data.split_file import SplitFile, divide
from kdcompress.errors import UserError

from .images import MakeFolder, random_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders without a split: 20 ants, 10 bees, 5 wasps."""
    root, number = tmp_path / "insects", 0
    for name, count in (("ant", 20), ("bee", 10), ("wasp", 5)):
        (root / name).mkdir(parents=True)
        for _ in range(count):
            random_image(number).save(root / name / f"{number:02}.png")
            number += 1
    return root


def names(source: DataSource, split: str) -> set[str]:
    images = getattr(source, split)
    return {"/".join(Path(images.name(index)).parts[-2:]) for index in range(len(images.labels))}


def notes(source: DataSource) -> str:
    return " ".join(source.notes + source.first_notes)


def test_a_folder_without_a_split_gets_one(photos: Path) -> None:
    """Photos sorted by class, which is what most people have, could not be used."""
    source = load_source(str(photos))
    assert source.test is not None
    assert np.bincount(source.train.labels).tolist() == [16, 8, 4]
    assert np.bincount(source.test.labels).tolist() == [4, 2, 1]
    assert not names(source, "train") & names(source, "test")
    assert source.class_names == ("ant", "bee", "wasp")
    assert "28 images for training, 7 for testing" in notes(source)
    assert "seed 0" in notes(source)


def test_classes_too_small_for_a_test_image_are_named(photos: Path) -> None:
    """A class that is never tested looks as if it were learned."""
    assert "no test images" not in notes(load_source(str(photos)))
    for number, name in enumerate(("fly", "gnat", "hornet", "moth")):
        (photos / name).mkdir()
        random_image(100 + number).save(photos / name / "only.png")
    assert "no test images of fly, gnat, hornet and 1 more: a class of one image" in notes(load_source(str(photos)))


def test_the_split_is_the_same_wherever_the_folder_is(photos: Path, tmp_path: Path) -> None:
    """Two commands would train on what the other one tests."""
    first = load_source(str(photos))
    shutil.copytree(photos, tmp_path / "moved")
    again = load_source(str(tmp_path / "moved"))
    assert names(again, "test") == names(first, "test")
    assert again.fingerprint == first.fingerprint
    assert first.train.written != b""


def test_the_fingerprint_follows_the_split(photos: Path) -> None:
    """Cached targets and calibration would be taken for those of another split."""
    source = load_source(str(photos))
    assert source.split is not None
    other = tuple((path, label, {"train": "test", "test": "train"}[split]) for path, label, split in source.split.rows)
    assert load_source(str(photos), split=SplitFile(other)).fingerprint != source.fingerprint


def test_an_added_image_moves_few_others(photos: Path) -> None:
    """Each new photo would shuffle the whole test split of people who keep no runs."""
    before = load_source(str(photos))
    random_image(99).save(photos / "ant" / "99.png")
    after = load_source(str(photos))
    assert len(names(before, "test") ^ names(after, "test")) <= 2


def test_copies_stay_on_one_side(photos: Path) -> None:
    """The test split would hold images that were trained on, and accuracy be too good."""
    test = sorted(names(load_source(str(photos)), "test"))[0]
    train = sorted(names(load_source(str(photos)), "train"))[0]
    for number, (name, folder) in enumerate([(test, "ant"), (test, "bee"), (train, "ant"), (train, "wasp")]):
        shutil.copy(photos / name, photos / folder / f"copy-{number}.png")
    source = load_source(str(photos))
    for original, copies in (
        (test, ("ant/copy-0.png", "bee/copy-1.png")),
        (train, ("ant/copy-2.png", "wasp/copy-3.png")),
    ):
        sides = {split for split in ("train", "test") for name in (original, *copies) if name in names(source, split)}
        assert len(sides) == 1, original
    assert "4 exact copies stay with their originals" in notes(source)


def test_one_photo_in_two_classes_is_named(photos: Path) -> None:
    """One of its labels is wrong, and the network can learn neither."""
    first = sorted(names(load_source(str(photos)), "train"))[0]
    shutil.copy(photos / first, photos / "wasp" / "copy.png")
    said = notes(load_source(str(photos)))
    assert "1 exact copy stays with its original" in said
    assert "1 image is a copy of one in another class" in said
    assert first in said
    assert "wasp/copy.png" in said


def test_copies_within_a_class_are_no_dispute(photos: Path) -> None:
    """A notice about labels that are right would send people looking for nothing."""
    first = sorted(names(load_source(str(photos)), "train"))[0]
    shutil.copy(photos / first, (photos / first).with_name("copy.png"))
    assert "another class" not in notes(load_source(str(photos)))


def test_files_of_one_size_and_beginning_are_not_copies(photos: Path) -> None:
    """All photos of a scanner with a black margin would land on one side."""
    for folder in photos.iterdir():
        for number, path in enumerate(folder.iterdir()):
            path.write_bytes(b"\0" * 5000 + f"{folder.name:>5}{number:09}".encode())
    source = load_source(str(photos))
    assert source.test is not None
    assert len(source.test.labels) == 7
    assert "copies" not in notes(source)


def test_the_share_of_a_class_is_kept_beside_groups() -> None:
    """A class of copies would take the test split over, or a small class have no image to learn from."""
    labels = np.repeat([0, 1, 2, 3], [10, 10, 2, 1])
    groups = [0] * 6 + list(range(6, 23))
    test = divide([f"{number}.png" for number in range(23)], labels, groups)
    assert np.bincount(labels[test], minlength=4).tolist() == [2, 2, 1, 0]
    assert not test[:6].any()
    one_group = divide(["a", "b", "c", "d"], np.array([0, 0, 1, 1]), [0, 0, 1, 2])
    assert not one_group[:2].any()
    assert one_group[2:].sum() == 1


def test_a_recorded_split_stays_when_images_come_and_go(photos: Path, tmp_path: Path) -> None:
    """Images that a network was trained on would come into its test split, or labels shift by a new class."""
    first = load_source(str(photos))
    assert first.split is not None
    (tmp_path / "split.csv").write_bytes(first.split.content())
    split = SplitFile.read(tmp_path / "split.csv")
    assert split.rows == first.split.rows
    random_image(99).save(photos / "ant" / "00-new.png")
    (photos / "aphid").mkdir()
    random_image(98).save(photos / "aphid" / "0.png")
    later = load_source(str(photos), split=split)
    for part in ("train", "test"):
        assert names(later, part) == names(first, part)
    assert np.array_equal(later.train.labels, first.train.labels)
    assert (later.fingerprint, later.class_names) == (first.fingerprint, first.class_names)
    assert "ant/00-new.png" in notes(later)
    assert "aphid" in notes(later)
    assert str(tmp_path) in notes(later)
    gone = sorted(names(first, "test"))[0]
    (photos / gone).unlink()
    fewer = load_source(str(photos), split=split)
    assert names(fewer, "test") == names(first, "test") - {gone}
    assert gone in notes(fewer)
    assert fewer.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ['a,"b".png', "line\nbreak.png", "\u00fcmlaut.png", "caf\udce9.png"])
def test_any_name_of_a_file_can_be_recorded(tmp_path: Path, name: str) -> None:
    """One odd file name among thousands, and no run could be written, or the next command not read it."""
    split = SplitFile((("ant/" + name, "ant", "train"), ("ant/b.png", "ant", "test")))
    (tmp_path / "split.csv").write_bytes(split.content())
    assert SplitFile.read(tmp_path / "split.csv").rows == split.rows


@pytest.mark.parametrize(
    "content", [b"", b"path,split\na,train\n", b"path,label,split\na,b,dev\n", b"path,label,split\na\n"]
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """A traceback, or all images left out."""
    (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"split\.csv cannot be read"):
        SplitFile.read(tmp_path / "split.csv")


def test_an_unlabelled_test_gives_way_to_val(make_folder: MakeFolder) -> None:
    """Data laid out as competitions do would be refused."""
    for number, layout in enumerate(("flat", "one folder", "empty")):
        made = make_folder(held_out="val")
        root = made.rename(made.with_name(f"kaggle-{number}"))
        inner = root / "test" / ("unknown" if layout == "one folder" else "")
        inner.mkdir(parents=True)
        if layout != "empty":
            random_image(1).save(inner / "1.png")
        source = load_source(str(root))
        assert source.test is not None
        assert names(source, "test") == {"ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png"}
        assert "val/ is the test split" in notes(source)
        shutil.rmtree(root / "val")
        source = load_source(str(root))
        assert source.test is None
        assert "no test split" in notes(source)


def test_runs_of_before_valid_was_found_can_go_on(make_folder: MakeFolder) -> None:
    """A new version would refuse to calibrate what an older one has trained, for the data look changed."""
    root = make_folder(held_out="valid")
    source = load_source(str(root))
    shutil.rmtree(root / "valid")
    assert source.former == load_source(str(root)).fingerprint
    assert load_source(str(root)).former is None


def test_a_split_that_is_not_used_is_named(make_folder: MakeFolder) -> None:
    """People would think that the calibration split is their val/."""
    root = make_folder()
    shutil.copytree(root / "test", root / "valid")
    source = load_source(str(root))
    assert f"{root / 'valid'} is not used: test/ is the test split" in notes(source)


@pytest.mark.parametrize("held_out", ["val", "valid", "test"])
def test_data_for_evaluation_alone(make_folder: MakeFolder, held_out: str) -> None:
    """A held-out set by itself could not be evaluated on."""
    root = make_folder(train=0, test=3, held_out=held_out, mode="L")
    source = load_source(str(root))
    assert source.test is not None
    assert (len(source.train.labels), len(source.test.labels)) == (0, 6)
    assert (source.channels, source.size, source.num_classes) == (1, (12, 10), 2)
    assert (f"{held_out}/ is the test split" in notes(source)) == (held_out != "test")


def test_an_unlabelled_test_beside_class_folders(photos: Path) -> None:
    """test/ would become a class, or the folder be refused."""
    (photos / "test").mkdir()
    random_image(0).save(photos / "test" / "1.png")
    source = load_source(str(photos))
    assert source.class_names == ("ant", "bee", "wasp")
    assert f"{photos / 'test'} has no class folders, and is not used" in notes(source)


def test_valid_and_invalid_are_classes(tmp_path: Path) -> None:
    """A class called as a split is would not be found."""
    for name in ("valid", "invalid"):
        (tmp_path / name).mkdir()
        for number in range(5):
            random_image(number).save(tmp_path / name / f"{name}-{number}.png")
    assert load_source(str(tmp_path)).class_names == ("invalid", "valid")


def test_trains_may_be_a_class(photos: Path) -> None:
    """Trains beside buses were taken for the training split, and the user told to do what had been done."""
    (photos / "wasp").rename(photos / "train")
    source = load_source(str(photos))
    assert source.class_names == ("ant", "bee", "train")
    assert source.test is not None
    for name in ("ant", "bee"):
        shutil.rmtree(photos / name)
    with pytest.raises(UserError, match="no class folders"):
        load_source(str(photos))


def test_a_folder_that_cannot_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images would be missing in the training, and nothing said so."""
    genuine = listing.walk

    def walk(folder: Path) -> Iterator[tuple[str, list[str], OSError | None]]:
        yield from genuine(folder)
        if folder.name == "bee":
            yield f"{folder}/2023", [], PermissionError(13, "Permission denied")

    monkeypatch.setattr(listing, "walk", walk)
    with pytest.raises(UserError, match="bee/2023 cannot be read: Permission denied"):
        load_source(str(photos))


def test_a_class_that_no_image_has_takes_no_test_images_away() -> None:
    """A teacher that never answers one of its classes left unlabelled photos without a test split."""
    labels = np.array([0] * 10 + [2] * 10)
    assert divide([f"{number}.png" for number in range(20)], labels, list(range(20))).sum() == 4


def test_a_folder_around_the_data_is_named(photos: Path, tmp_path: Path) -> None:
    """Unpacked archives often have one; "only one class" would lead nowhere."""
    (tmp_path / "outer").mkdir()
    photos.rename(tmp_path / "outer" / "insects")
    with pytest.raises(UserError) as caught:
        load_source(str(tmp_path / "outer"))
    assert str(tmp_path / "outer" / "insects") in caught.value.remedy


def test_what_systems_leave_behind_is_no_image_and_no_class(photos: Path) -> None:
    """macOS's ._0.png would end the training as a broken image, or __MACOSX become a class."""
    before = load_source(str(photos))
    shutil.copytree(photos, photos / "__MACOSX")
    for name in ("__pycache__", ".ipynb_checkpoints", "@eaDir"):
        shutil.copytree(photos / "ant", photos / "bee" / name)
        shutil.copytree(photos / "ant", photos / name)
    for name in ("._00.png", ".hidden.jpg", "Thumbs.db", ".DS_Store", "desktop.ini"):
        (photos / "ant" / name).write_bytes(b"no image")
    after = load_source(str(photos))
    assert (after.fingerprint, after.class_names) == (before.fingerprint, before.class_names)
    assert notes(after) == notes(before)


def test_types_that_are_not_read_are_counted_once(make_folder: MakeFolder) -> None:
    """A third of the photos would be missing, and nobody know."""
    root = make_folder()
    for name in ("train/ant/a.GIF", "train/bee/b.heic", "test/bee/c.heic", "test/bee/d.txt"):
        (root / name).write_bytes(b"x")
    source = load_source(str(root))
    assert len(source.first_notes) == 1
    assert "1 .gif, 2 .heic" in source.first_notes[0]
    assert str(root / "train/ant/a.GIF") in source.first_notes[0]
    for path in (root / "train" / "bee").glob("*.png"):
        path.rename(path.with_suffix(".avif"))
    with pytest.raises(UserError, match="has no images") as caught:
        load_source(str(root))
    assert ".avif" in caught.value.remedy


def test_a_link_that_leads_nowhere_is_a_bad_image(make_folder: MakeFolder) -> None:
    """A traceback before anything is read, and --skip-bad-images would not help."""
    root = make_folder()
    (root / "train" / "ant" / "gone.png").symlink_to(root / "nothing.png")
    source = load_source(str(root))
    assert "ant/gone.png" in names(source, "train")


def test_links_that_lead_back_list_each_image_once(make_folder: MakeFolder) -> None:
    """Every image of the class would be there forty times, and count forty times in training."""
    root = make_folder()
    before = load_source(str(root))
    (root / "train" / "ant" / "loop").symlink_to(".")
    after = load_source(str(root))
    assert len(after.train.labels) == len(before.train.labels)
    assert after.fingerprint == before.fingerprint


def test_two_links_to_one_folder_both_count(make_folder: MakeFolder, tmp_path: Path) -> None:
    """The images of a class would change, and runs on them could not go on."""
    root, more = make_folder(), tmp_path / "more"
    before = len(load_source(str(root)).train.labels)
    more.mkdir()
    random_image(99).save(more / "new.png")
    for name in ("first", "second"):
        (root / "train" / "ant" / name).symlink_to(more)
    assert len(load_source(str(root)).train.labels) == before + 2


def test_images_are_looked_for_no_further_than_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of images beside test/ would be listed to say that there are some."""
    (tmp_path / "deep").mkdir()
    random_image(0).save(tmp_path / "a.png")
    entered, scandir = list[str](), os.scandir

    def counted(folder: str) -> object:
        entered.append(folder)
        return scandir(folder)

    monkeypatch.setattr("kdcompress.data.listing.os.scandir", counted)
    assert has_images(tmp_path)
    assert entered == [str(tmp_path)]
