"""Manifests as people write them: by hand, by spreadsheet programs and by scripts, with all that goes wrong in them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kdcompress.data import DataSource, load_source
from kdcompress.data.split_file import SplitFile
from kdcompress.errors import UserError

from .images import random_image

Rows = Sequence[tuple[str, ...]]
Write = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> list[tuple[str, str]]:
    """Path and label of 10 ants, 10 bees and 5 wasps in one folder."""
    labels = ["ant"] * 10 + ["bee"] * 10 + ["wasp"] * 5
    (tmp_path / "all").mkdir()
    for number in range(25):
        random_image(number).save(tmp_path / "all" / f"{number:02}.png")
    return [(f"all/{number:02}.png", label) for number, label in enumerate(labels)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: Rows, header: str = "path,label", name: str = "photos.csv", before: str = "") -> Path:
        keys = header.split(",")
        if name.endswith(".jsonl"):
            lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        else:
            lines = [header, *(",".join(row) for row in rows)]
        (tmp_path / name).write_text(before + "\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    return write


def names(source: DataSource, split: str) -> dict[str, int]:
    part = getattr(source, split)
    return {Path(part.name(index)).name: int(part.labels[index]) for index in range(len(part.labels))}


def said(source: DataSource) -> str:
    return " ".join(source.notes + source.first_notes)


def with_splits(images: list[tuple[str, str]], *other: str) -> list[tuple[str, str, str]]:
    """Every fifth image is of another split."""
    return [
        (path, label, "train" if number % 5 else other[number // 5 % len(other)])
        for number, (path, label) in enumerate(images)
    ]


@pytest.mark.parametrize("name", ["photos.csv", "photos.jsonl", "PHOTOS.CSV"])
def test_a_manifest_without_splits_is_divided_as_a_folder(
    images: list[tuple[str, str]], write: Write, name: str
) -> None:
    """Labels that are kept in a table, as most are, could not be used."""
    source = load_source(str(write(images, name=name)))
    assert source.test is not None
    assert source.class_names == ("ant", "bee", "wasp")
    assert np.bincount(source.train.labels).tolist() == [8, 8, 4]
    assert np.bincount(source.test.labels).tolist() == [2, 2, 1]
    assert not set(names(source, "train")) & set(names(source, "test"))
    labels = {"ant": 0, "bee": 1, "wasp": 2}
    assert names(source, "train") | names(source, "test") == {Path(path).name: labels[of] for path, of in images}
    assert "has no column split, so a fifth of each class is the test split" in said(source)
    assert source.train.image(0).size == (10, 12)


def test_the_order_of_lines_changes_nothing(images: list[tuple[str, str]], write: Write) -> None:
    """A table that was sorted anew would be another data set, whose calibration images were trained on."""
    first = load_source(str(write(images)))
    random.Random(0).shuffle(images)
    again = load_source(str(write(images)))
    assert again.fingerprint == first.fingerprint
    assert list(names(again, "train").items()) == list(names(first, "train").items())


def test_another_label_is_other_data(images: list[tuple[str, str]], write: Write) -> None:
    """Corrected labels would go unnoticed by what is built on the wrong ones."""
    first = load_source(str(write(images)))
    images[0] = (images[0][0], "bee")
    assert load_source(str(write(images))).fingerprint != first.fingerprint
    split = with_splits(images, "test")
    before = load_source(str(write(split, "path,label,split")))
    path, label, _ = split[0]
    split[0] = (path, label, "train")
    assert load_source(str(write(split, "path,label,split"))).fingerprint != before.fingerprint


@pytest.mark.parametrize("word", ["test", "Test", "val", "valid", "validation"])
def test_a_column_says_the_split(images: list[tuple[str, str]], write: Write, word: str) -> None:
    """Images that others hold out would be trained on."""
    rows = with_splits(images, word)
    source = load_source(str(write(rows, "path,label,split")))
    assert source.split is None
    assert set(names(source, "test")) == {Path(path).name for path, _, split in rows if split == word}
    assert len(source.train.labels) == 20


def test_test_goes_before_val_unless_it_has_no_labels(images: list[tuple[str, str]], write: Write) -> None:
    """Competition data would be refused, or the two splits be mixed."""
    rows = with_splits(images, "test", "val")
    source = load_source(str(write(rows, "path,label,split")))
    assert len(names(source, "test")) == 3
    assert "val in" in said(source)
    assert "is not used: test is the test split" in said(source)
    rows = [(path, "" if split == "test" else label, split) for path, label, split in rows]
    source = load_source(str(write(rows, "path,label,split")))
    assert len(names(source, "test")) == 2
    assert "the images of test in" in said(source)
    assert "no labels, so val is the test split" in said(source)


def test_images_to_evaluate_on_need_not_have_all_classes(images: list[tuple[str, str]], write: Write) -> None:
    """A network could not be scored on today's photos, for nobody saw a wasp today; or labels be shifted by one."""
    rows = [(path, label, "test") for path, label in images if label != "ant"]
    known = ("wasp", "ant", "bee")
    source = load_source(str(write(rows, "path,label,split")), classes=known)
    assert source.class_names == known
    assert set(names(source, "test").values()) == {0, 2}
    assert "no images of ant" in said(source)
    rows.append((images[0][0], "dragon", "test"))
    with pytest.raises(UserError, match="labels that the network does not know: 'dragon'") as caught:
        load_source(str(write(rows, "path,label,split")), classes=known)
    assert "wasp, ant, bee" in caught.value.remedy


def test_quotes_byte_order_marks_and_blank_lines(images: list[tuple[str, str]], write: Write, tmp_path: Path) -> None:
    """What a spreadsheet program saves could not be read."""
    shutil.copy(tmp_path / images[0][0], tmp_path / 'a, "b".png')
    rows = [*images[1:], ('"a, ""b"".png"', "ant")]
    source = load_source(str(write(rows, before="\ufeff")))
    assert 'a, "b".png' in names(source, "train") | names(source, "test")
    text = write(images).read_text().replace("\n", "\r\n\r\n")
    (tmp_path / "photos.csv").write_text(text, newline="")
    assert len(load_source(str(tmp_path / "photos.csv")).train.labels) == 20
    spaced = [(path, f" {label} " if number % 2 else label) for number, (path, label) in enumerate(images)]
    assert load_source(str(write(spaced))).class_names == ("ant", "bee", "wasp")
    numbered = [(path, {"ant": 1, "bee": 2, "wasp": 10}[label]) for path, label in images]
    assert load_source(str(write(numbered, name="n.jsonl"))).class_names == ("1", "10", "2")


def test_what_is_not_used_is_said_once(images: list[tuple[str, str]], write: Write) -> None:
    """A misspelt column, or a table that was pasted twice, would go unnoticed."""
    rows = [(path, label, "x") for path, label in [*images, images[3]]]
    source = load_source(str(write(rows, "path,label,splti")))
    assert len(names(source, "train")) == 20
    assert "columns of" in said(source)
    assert "that are not used: splti" in said(source)
    assert "1 line repeats others" in said(source)
    assert said(source).count("splti") == 1


def test_a_recorded_division_stays(images: list[tuple[str, str]], write: Write, tmp_path: Path) -> None:
    """Images that a network was trained on would come into its test split as soon as lines are added."""
    first = load_source(str(write(images[:23])))
    assert first.split is not None
    (tmp_path / "split.csv").write_bytes(first.split.content())
    split = SplitFile.read(tmp_path / "split.csv")
    random_image(99).save(tmp_path / "all" / "dragon.png")
    later = load_source(str(write([*images, ("all/dragon.png", "dragon")])), split=split)
    for part in ("train", "test"):
        assert names(later, part) == names(first, part)
    assert later.fingerprint == first.fingerprint
    assert "all/23.png" in said(later)
    assert "dragon" in said(later)
    assert split.is_of(tmp_path)


BAD: dict[str, tuple[str, str, str]] = {
    "no header": ("{first}", "no column path and no column label", "path,label"),
    "semicolons": ("path;label\na;b\n", "no column path", "commas"),
    "empty": ("", "no column path", "path,label"),
    "header alone": ("path,label\n", "names no images", "cat/1.jpg,cat"),
    "twice a column": ("path,label,label\na,b,c\n", "two columns of one name", "Rename"),
    "missing files": (
        "path,label\n{good}\ngone.png,ant\nlost.png,bee\n",
        r"2 of 12 files.*'gone\.png' \(line",
        "relative",
    ),
    "a folder": ("path,label\n{good}\nall,ant\n", r"folders, not images: 'all' \(line 12\)", "class folders"),
    "two labels": ("path,label\n{good}\nall/00.png,bee\n", r"'all/00\.png' is 'ant' in line 2 and 'bee' in", "Remove"),
    "no label": ("path,label\n{good}\nall/20.png,\n", r"no label: 'all/20\.png' \(line 12\)", "--unlabelled"),
    "spaces alone": ("path,label\n{good}\nall/20.png,  \n", "no label", "--unlabelled"),
    "no path": ("path,label\n{good}\n,ant\n", "no path", "remove"),
    "unknown split": (
        "path,label,split\nall/00.png,ant,dev\n",
        r"unknown splits: 'dev' \(line 2\)",
        "train, val and test",
    ),
    "calibration": ("path,label,split\nall/00.png,ant,calibration\n", "unknown splits", "part of train"),
    "no split": ("path,label,split\nall/00.png,ant,\n", "unknown splits: ''", "train, val and test"),
    "one class": ("path,label\nall/00.png,ant\nall/01.png,ant\n", "only one label, 'ant'", "two classes"),
    "one image each": ("path,label\nall/00.png,ant\nall/10.png,bee\n", "classes of one image: 'ant'", "three or more"),
    "one image": ("path,label\n{good}\nall/20.png,wasp\n", r"classes of one image: 'wasp' \(line 12\)", "remove it"),
    "other values": ("path,label\nall/00.png\n", "line 2 has 1 values, the header 2", "quotes"),
    "open quote": ('path,label\n"all/00.png,ant\n', "not valid CSV", "doubled"),
    "test alone": ("path,label,split\nall/00.png,,test\n", "no image with a label", "--unlabelled"),
    "new in test": ("path,label,split\n{split}\nall/20.png,wasp,test\n", "labels that no training image", "training"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named_by_line(images: list[tuple[str, str]], tmp_path: Path, case: str) -> None:
    """Somebody would look for one wrong line among thousands, or train on labels that are shifted."""
    text, problem, remedy = BAD[case]
    good = images[:5] + images[10:15]
    filled = text.replace("{first}", "all/00.png,ant\n").replace("{good}", "\n".join(map(",".join, good)))
    filled = filled.replace("{split}", "\n".join(f"{path},{label},train" for path, label in good))
    (tmp_path / "photos.csv").write_text(filled)
    with pytest.raises(UserError, match=problem) as caught:
        load_source(str(tmp_path / "photos.csv"))
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"path": "all/00.png"}', "line 2 has no key 'label'"),
        ('["all/00.png", "ant"]', "line 2 is a list, not an object"),
        ('{"path": "all/00.png", "label": "ant"', "line 2 is not valid JSON"),
        ("[" * 100_000, "line 2 is not valid JSON"),
        ('{"path": "all/00.png", "label": ["ant"]}', "line 2: label is a list, not text"),
        ('{"path": 3, "label": "ant"}', "line 2: path is an int, not text"),
        ('{"path": "all/00.png", "label": null}', "no label"),
        ('{"path": "all/00.png", "label": "ant", "split": "test"}', "line 1 has no split, but others have"),
        ('{"path": "a\\u0000b", "label": "ant"}', "1 of 2 files are not there"),
        ('{"path": "all/00.png", "label": "\\ud800"}', "line 2: label has half a character"),
    ],
)
def test_bad_lines_of_json_are_named(images: list[tuple[str, str]], tmp_path: Path, line: str, problem: str) -> None:
    """As for tables; and a traceback is no help."""
    first = json.dumps({"path": images[-1][0], "label": "wasp"})
    (tmp_path / "photos.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match=problem):
        load_source(str(tmp_path / "photos.jsonl"))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    """A traceback, where the path is wrong or the file is of another kind."""
    with pytest.raises(UserError, match=r"gone\.csv cannot be read: No such file"):
        load_source(str(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes("path,label\nk\u00e4fer.png,k\u00e4fer\n".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        load_source(str(tmp_path / "latin.csv"))
    (tmp_path / "photos.tsv").write_text("path\tlabel\n")
    with pytest.raises(UserError, match="There is no data") as caught:
        load_source(str(tmp_path / "photos.tsv"))
    assert ".csv or .jsonl" in caught.value.remedy
