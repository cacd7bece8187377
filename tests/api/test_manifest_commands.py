"""A manifest through a chain of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdcompress
from chains import TINY
from heard import Heard
from kdcompress.errors import UserError

FAST: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """20 bright, 20 dark and 20 red images of 12 pixels in one folder, and a table of them."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    lines = ["path,label"]
    for number in range(60):
        name, low = (("bright", 128), ("dark", 0), ("red", 64))[number % 3]
        image = rng.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
        if name == "red":
            image[..., 0] = 255
        Image.fromarray(image).save(tmp_path / "photos" / f"{number:02}.png")
        lines.append(f"{number:02}.png,{name}")
    (tmp_path / "photos" / "table.csv").write_text("\n".join(lines))
    return tmp_path / "photos" / "table.csv"


def add_images(table: Path) -> None:
    for number in range(10):
        Image.new("RGB", (12, 12), (200, number, 0)).save(table.parent / f"new-{number}.png")
    more = "".join(f"\nnew-{number}.png,bright" for number in range(10))
    table.write_text(table.read_text() + more)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_all_commands_of_a_chain_use_one_division(
    table: Path, tmp_path: Path, loading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that were trained on would come into the test split as soon as lines are added, or the table is moved."""
    monkeypatch.chdir(table.parent)
    out = [str(tmp_path / name) for name in ("t", "s", "c")]
    fast = {**FAST, "loading": loading, "workers": 0}
    kdcompress.train_teacher(data="table.csv", model=TINY, out=out[0], **fast)
    monkeypatch.chdir(tmp_path)
    recorded = (tmp_path / "t" / "split.csv").read_bytes()
    assert recorded.startswith(b"path,label,split\n00.png,bright,")
    assert recorded.count(b",test\n") == 12
    add_images(table)
    heard = Heard()
    kdcompress.distill(teacher=out[0], student=TINY, method="reskd", out=out[1], reporter=heard, **fast)
    assert any("new-0.png" in note and "not used" in note for note in heard.notes)
    kdcompress.add_res_student(run=out[1], arch=TINY, out=out[2], **fast)
    assert (tmp_path / "c" / "split.csv").read_bytes() == recorded
    table.parent.rename(tmp_path / "moved")
    assert kdcompress.evaluate(run=out[2], data=str(tmp_path / "moved" / "table.csv")).n == 12
    predicted = next(iter(kdcompress.predict(run=out[2], images=[str(tmp_path / "moved" / "00.png")])))
    assert predicted.label in ("bright", "dark", "red")


def test_a_manifest_is_scored_by_the_names_of_classes(table: Path, tmp_path: Path) -> None:
    """Accuracy would be of labels that mean other classes; or new photos could not be scored without all classes."""
    run = str(tmp_path / "t")
    kdcompress.train_teacher(data=str(table), model=TINY, out=run, **{**FAST, "epochs": 15})
    rows = [line for line in table.read_text().split("\n")[1:] if not line.endswith(",bright")]
    some = table.with_name("some.jsonl")
    some.write_text(
        "\n".join('{{"path": "{}", "label": "{}", "split": "test"}}'.format(*row.split(",")) for row in rows)
    )
    every = table.with_name("every.csv")
    every.write_text("path,label,split\n" + "\n".join(f"{row},test" for row in rows))
    result = kdcompress.evaluate(run=run, data=str(some))
    assert result.n == 40
    assert result.top1 > 90
    assert kdcompress.evaluate(run=run, data=str(every)).top1 == result.top1
    every.write_text(every.read_text().replace(",red,", ",pink,"))
    with pytest.raises(UserError, match=r"does not know: 'pink' \(line 3\)"):
        kdcompress.evaluate(run=run, data=str(every))


def test_a_manifest_can_be_looked_at(table: Path, tmp_path: Path) -> None:
    """A wrong table would be noticed after the training."""
    found = kdcompress.describe_data(data=str(table), preview=str(tmp_path / "sheet.png"))
    assert (found.fit, found.calibration, found.test) == (42, 6, 12)
    assert found.class_names == ["bright", "dark", "red"]
    assert found.data == str(table)


def test_nothing_is_left_of_a_run_on_a_bad_table(table: Path, tmp_path: Path) -> None:
    """A half-made run folder would have to be removed by hand before the next try."""
    table.write_text("path,label\n00.png,bright\n01.png,dark\n")
    with pytest.raises(UserError, match="classes of one image"):
        kdcompress.train_teacher(data=str(table), model=TINY, out=str(tmp_path / "t"), **FAST)
    assert not (tmp_path / "t").exists()
