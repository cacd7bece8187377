"""From names that a user gives to image files."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cli.shell import Stdin
from kdcompress.data import find_images as module
from kdcompress.data.find_images import find_images
from kdcompress.errors import UserError
from kdcompress.results import Unreadable


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``photos`` with images, subfolders, and what is to be passed over."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.png",
        "a.JPG",
        "z/c.png",
        "z/deep/d.webp",
        "m/e.png",
        ".hidden.png",
        "__MACOSX/._b.png",
        ".git/f.png",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("notes.txt", "phone.HEIC", "z/phone.heic"):
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def given(text: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(text))


def problems(names: list[str]) -> list[str]:
    return [each.problem for each in find_images(names, Counter()) if isinstance(each, Unreadable)]


def test_folders_are_searched_in_a_fixed_order(folder: Path) -> None:
    """Rows come in another order on every machine, or hidden files of macOS are classified as photos."""
    unread = Counter[str]()
    found = list(find_images(["photos/z/c.png", "photos"], unread))
    inside = ["a.JPG", "b.png", "m/e.png", "z/c.png", "z/deep/d.webp"]
    assert found == ["photos/z/c.png", *(f"photos/{name}" for name in inside)]
    assert unread == {".heic": 2}, "photos of a type that is not read are left out without a word"


def test_files_that_are_named_are_taken_whatever_they_are_called(folder: Path) -> None:
    """A user names a file, and it is passed over without a word."""
    names = ["photos/.hidden.png", "photos/notes.txt", "photos/.git"]
    assert list(find_images(names, Counter())) == [*names[:2], "photos/.git/f.png"]


def test_what_is_missing_is_named(folder: Path) -> None:
    """A misspelt path looks like a folder without images."""
    (folder / "empty").mkdir()
    (folder / "lost.png").symlink_to("nowhere.png")
    assert problems(["photo", "photos/empty", "photos/a.JPG"]) == [
        "There is no file or folder photo.",
        "The folder photos/empty has no images.",
    ]
    assert problems(["photos/lost.png"]) == ["There is no file or folder photos/lost.png."]


def test_links_that_lead_back_end(folder: Path) -> None:
    """A link to the folder above makes every image count forty times."""
    (folder / "z" / "back").symlink_to(folder)
    (folder / "elsewhere").symlink_to(folder / "m")
    found = list(find_images(["photos"], Counter()))
    assert found.count("photos/z/c.png") == 1
    assert len(found) == 6, "links to other folders are followed"


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of another user's is left out without a word."""
    genuine = os.scandir

    def refused(path: str) -> Any:
        if path.endswith("m"):
            raise PermissionError(13, "Permission denied", path)
        return genuine(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert problems(["photos"]) == ["The folder photos/m cannot be read: Permission denied."]


@pytest.mark.parametrize(
    ("text", "nul"),
    [("photos/a.JPG\n\nphotos/m\n", False), ("photos/a.JPG\nphotos/m", False), ("photos/a.JPG\0photos/m\0", True)],
)
def test_paths_come_from_standard_input(folder: Path, text: str, nul: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last path, which has no line break, is lost."""
    given(text, monkeypatch)
    found = list(find_images(["photos/b.png", "-"], Counter(), nul))
    assert found == ["photos/b.png", "photos/a.JPG", "photos/m/e.png"]


def test_any_name_of_a_file_comes_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose names hold line breaks or are not UTF-8 cannot be classified."""
    names = [b"photos/line\nbreak.png", b"photos/caf\xe9.png"]
    for name in names:
        Path(os.fsdecode(name)).touch()
    given(b"".join(name + b"\0" for name in names), monkeypatch)
    assert list(find_images(["-"], Counter(), nul=True)) == [os.fsdecode(name) for name in names]


def test_paths_may_be_cut_anywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that lies across two reads from the pipe is torn."""
    monkeypatch.setattr(module, "BLOCK", 3)
    given("photos/a.JPG\nphotos/b.png\n", monkeypatch)
    assert list(find_images(["-"], Counter())) == ["photos/a.JPG", "photos/b.png"]


def test_a_list_of_other_make_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of find -print0 without -0 is one long path, which fills the memory or does not exist."""
    given("photos/a.JPG\0photos/b.png\0\n", monkeypatch)
    with pytest.raises(UserError, match="-0"):
        list(find_images(["-"], Counter()))
    given("x" * (module.LONGEST + module.BLOCK), monkeypatch)
    with pytest.raises(UserError, match="1 MiB"):
        list(find_images(["-"], Counter()))


def test_standard_input_is_read_as_it_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that never ends is collected before the first image is classified."""
    monkeypatch.setattr(module, "BLOCK", 16)
    reader, writer = os.pipe()
    os.write(writer, b"photos/a.JPG\nphotos/b.png\npho")
    with open(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        found = find_images(["-"], Counter())
        assert [next(found), next(found)] == ["photos/a.JPG", "photos/b.png"]
        os.write(writer, b"tos/m/e.png\n")
        os.close(writer)
        assert list(found) == ["photos/m/e.png"]
