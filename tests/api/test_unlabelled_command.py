"""``--unlabelled``: students that learn from images without labels what their teacher says of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdcompress
from chains import TINY, record_of, same_weights
from heard import Heard
from kdcompress.errors import UserError
from kdcompress.runs import RunFolder

FAST: dict[str, Any] = {"epochs": 2, "device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 labelled images of two classes, 40 without labels, and a teacher."""
    root, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(0)
    for name, low in (("bright", 96), ("dark", 0)):
        for folder, count in ((f"photos/train/{name}", 10), (f"photos/test/{name}", 20), (f"more/{name}", 20)):
            (root / folder).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(low, low + 160, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / folder / f"{number:02}.png")
    kdcompress.train_teacher(data=str(root / "photos"), model=TINY, out=str(root / "t"), **{**FAST, "epochs": 30})
    return root


def rows_of(run: str | Path | None) -> list[dict[str, str]]:
    with open(Path(str(run)) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("method", "loading"), [("kd", "memory"), ("reskd", "stream")])
def test_a_student_learns_from_both(
    made: Path, tmp_path: Path, method: str, loading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of photos that nobody has labelled could not be used."""
    monkeypatch.chdir(made)
    given = {"teacher": str(made / "t"), "method": method, "student": TINY, "loading": loading, **FAST, "epochs": 15}
    heard = Heard()
    result = kdcompress.distill(**given, unlabelled="more", out=str(tmp_path / "s"), reporter=heard)
    assert result.unlabelled == 40
    assert any("Training on 18 labelled images, and on 40" in note for note in heard.notes)
    assert record_of(result.run)["options"]["unlabelled"] == str(made / "more")
    assert 0 <= float(rows_of(result.run)[-1]["train_top1"]) <= 100
    assert kdcompress.evaluate(run=str(result.run)).top1 > 90
    assert float(rows_of(result.run)[-1]["train_top1"]) > 80  # of labelled images alone; of all it would be below 32
    monkeypatch.chdir(tmp_path)
    assert kdcompress.distill(**given, unlabelled=str(made / "more"), out=result.run, resume=True).run == result.run


def test_a_res_student_learns_from_both(made: Path, tmp_path: Path) -> None:
    """Only the first member of a cascade would see the photos."""
    first = kdcompress.distill(
        teacher=str(made / "t"), method="reskd", student=TINY, res_students=1, arch=(TINY,),
        unlabelled=str(made / "more"), out=str(tmp_path / "s"), **FAST,
    )  # fmt: skip
    assert first.unlabelled == 40
    members = [record_of(tmp_path / "s" / f"member-{number}")["result"]["unlabelled"] for number in (0, 1)]
    assert members == [40, 40]
    for loss in ("kl", "mse"):
        result = kdcompress.add_res_student(
            run=str(first.run), arch=TINY, unlabelled=str(made / "more"), residual_loss=loss, focus=0.5,
            out=str(tmp_path / loss), **FAST,
        )  # fmt: skip
        assert result.unlabelled == 40


def test_cached_targets_cover_them(made: Path, tmp_path: Path) -> None:
    """With a large teacher every epoch would wait for its logits, or learn from those of other images."""
    given = {"teacher": str(made / "t"), "student": TINY, "augment": "none", **FAST}
    more = {"unlabelled": str(made / "more"), "cache_dir": str(tmp_path / "cache")}
    at_once = kdcompress.distill(**given, **more, target_views="0", out=str(tmp_path / "0"))
    cached = kdcompress.distill(**given, **more, target_views="1", out=str(tmp_path / "1"))
    ours, theirs = (float(rows_of(run.run)[-1]["train_loss"]) for run in (at_once, cached))
    assert ours == pytest.approx(theirs, rel=1e-2)
    assert cached.target_views == 1


def test_a_training_goes_on_with_the_images_that_it_began_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed would go on with other images, as if nothing had happened."""
    given = {"teacher": str(made / "t"), "student": TINY, **FAST}
    more = tmp_path / "more"
    more.mkdir()
    for number in range(8):
        Image.new("RGB", (12, 12), (number, 90, 9)).save(more / f"{number}.png")
    whole = kdcompress.distill(**given, unlabelled=str(more), out=str(tmp_path / "whole"))

    def killed(self: RunFolder, record: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            kdcompress.distill(**given, unlabelled=str(more), out=str(tmp_path / "s"))
    with pytest.raises(UserError, match=r"started with other options: unlabelled|started with other unlabelled images"):
        kdcompress.distill(**given, out=str(tmp_path / "s"), resume=True)
    again = kdcompress.distill(**given, unlabelled=str(more), out=str(tmp_path / "s"), resume=True)
    assert same_weights(again.run, whole.run)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"mixup": 0.2}, "cannot be combined with"),
        ({"cutmix": 0.2}, "cannot be combined with"),
        ({"method": "rkd-assistant"}, "has no effect here"),
        ({"method": "lwkd"}, "has no effect here"),
        ({"method": "ce", "teacher": None}, "has no effect here"),
        ({"unlabelled": "/nowhere"}, "is not a folder"),
    ],
)
def test_what_cannot_be_combined(made: Path, tmp_path: Path, given: dict[str, Any], problem: str) -> None:
    """A traceback, or images that are left out in silence."""
    options = {"teacher": str(made / "t"), "student": TINY, "unlabelled": str(made / "more"), **FAST, **given}
    with pytest.raises(UserError, match=problem):
        kdcompress.distill(**options, out=str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()
