"""Images that nobody has labelled: a student learns the teacher's logits, and accuracy is agreement with it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import kdcompress
from chains import TINY, record_of
from heard import Heard
from kdcompress.api import agreement
from kdcompress.errors import UserError

FAST: dict[str, Any] = {"epochs": 1, "device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two classes, and 60 images without labels, half of each class."""
    root, rng = tmp_path_factory.mktemp("agreement"), np.random.default_rng(0)
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "phone.heic").write_bytes(b"not read")
    for name, low in (("bright", 96), ("dark", 0)):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(50):
            image = Image.fromarray(rng.integers(low, low + 160, (12, 12, 3), dtype=np.uint8))
            inner = "deep/" if number % 2 else ""
            image.save(root / (f"photos/{name}/{number}.png" if number < 20 else f"new/{inner}{name}-{number}.png"))
    kdcompress.train_teacher(data=str(root / "photos"), model=TINY, out=str(root / "t"), **{**FAST, "epochs": 15})
    return root


def losses(run: Path) -> dict[str, str]:
    with open(run / "metrics.csv", newline="") as file:
        return next(csv.DictReader(file))


def test_a_chain_without_any_label(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has a teacher and a pile of photos would have to label thousands; or take agreement for accuracy."""
    monkeypatch.chdir(made)
    heard, out = Heard(), [str(tmp_path / name) for name in ("s", "c", "g")]
    student = kdcompress.distill(
        teacher=str(made / "t"), data="unlabelled:new", method="reskd", student=TINY, out=out[0], reporter=heard,
        **{**FAST, "epochs": 12},
    )  # fmt: skip
    said = " ".join(heard.notes)
    assert "accuracy is agreement with the teacher" in said
    assert "48 images for training, 12 for testing" in said
    assert "are not read: 1 .heic" in said, "a photo that is left out in silence is missed by nobody"
    assert (student.agreement, student.teacher_top1, student.data) == (True, 100.0, f"unlabelled:{made / 'new'}")
    monkeypatch.chdir(tmp_path)
    kdcompress.add_res_student(run=out[0], arch=TINY, out=out[1], **FAST)
    values = losses(tmp_path / "c")
    assert float(values["train_loss"]) == pytest.approx(float(values["train_kd_loss"]), abs=1e-5)
    gated = kdcompress.gate_calibrate(run=out[1], max_drop=5.0, out=out[2])
    assert gated.agreement
    found = kdcompress.evaluate(run=out[2], reporter=heard)
    assert (found.n, found.agreement, found.teacher_top1) == (12, True, 100.0)
    recorded = (tmp_path / "s" / "split.csv").read_text()
    answers = kdcompress.predict(run=str(made / "t"), images=[str(made / "new")])
    labels = {Path(row.path).name: row.label for row in answers}
    rows = [line.split(",") for line in recorded.split("\n")[1:-1]]
    assert {Path(path).name: label for path, label, _ in rows} == labels
    assert len(labels) == 60
    assert (tmp_path / "g" / "split.csv").read_text() == recorded
    assert record_of(out[2])["data_fingerprint"] == record_of(out[0])["data_fingerprint"]
    assert kdcompress.evaluate(run=str(made / "t")).agreement is None


def test_the_labels_of_the_same_folder_serve_later(made: Path, tmp_path: Path) -> None:
    """Answers on record were taken for class folders, and the folder "0" could not be read."""
    bare = tmp_path / "bare.safetensors"
    save_file(kdcompress.load(str(made / "t")).model.state_dict(), bare)
    given = {"teacher": str(bare), "teacher_arch": TINY, "data": f"unlabelled:{made / 'photos'}", "student": TINY}
    heard = Heard()
    student = kdcompress.distill(**given, method="reskd", out=str(tmp_path / "s"), reporter=heard, **FAST)
    assert {row.split(",")[1] for row in (tmp_path / "s" / "split.csv").read_text().split("\n")[1:-1]} <= {"0", "1"}
    found = kdcompress.evaluate(run=student.run, data=str(made / "photos"))
    sides = (tmp_path / "s" / "split.csv").read_text().count(",test")
    assert (found.n, found.agreement) == (sides, None)
    assert not any("overstated" in note for note in heard.notes), "the teacher is right by definition"
    both = kdcompress.add_res_student(run=student.run, arch=TINY, out=str(tmp_path / "c"), **FAST)
    gated = kdcompress.gate_calibrate(run=both.run, threshold=[0.5], data=str(made / "photos"), out=str(tmp_path / "g"))
    rows = [line.split(",") for line in (tmp_path / "g" / "split.csv").read_text().split("\n")[1:-1]]
    assert all(path.startswith(f"{label}/") for path, label, _ in rows), "labels, no answers"
    assert kdcompress.evaluate(run=gated.run).n == sides


def test_labels_on_record_are_no_answers(made: Path, tmp_path: Path) -> None:
    """The labels of the teacher's own data were taken for its answers: accuracy was called agreement."""
    photos = tmp_path / "photos"
    shutil.copytree(made / "photos", photos)
    (photos / "bright" / "0.png").rename(photos / "dark" / "wrong.png")
    teacher = kdcompress.train_teacher(
        data=str(photos), model=str(made / "t"), out=str(tmp_path / "t"), lr=1e-9, **FAST
    )
    kdcompress.distill(teacher=teacher.run, data=f"unlabelled:{photos}", student=TINY, out=str(tmp_path / "s"), **FAST)
    rows = dict(line.split(",")[:2] for line in (tmp_path / "s" / "split.csv").read_text().split("\n")[1:-1])
    answers = {row.path: row.label for row in kdcompress.predict(run=teacher.run, images=[str(photos)])}
    assert {str(photos / path): label for path, label in rows.items()} == answers
    assert rows["dark/wrong.png"] == "bright"


def test_a_question_is_asked_once(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each training of compress ran the teacher over all images again, outside of its time budget."""
    genuine, asked = agreement._asked, []
    monkeypatch.setattr(agreement, "_answered", {})
    monkeypatch.setattr(agreement, "_asked", lambda *given: asked.append(1) or genuine(*given))
    for name in "ab":
        kdcompress.distill(
            teacher=str(made / "t"), data=f"unlabelled:{made / 'new'}", student=TINY, out=str(tmp_path / name), **FAST
        )
    assert len(asked) == 1


def test_the_student_learns_nothing_but_the_logits(made: Path, tmp_path: Path) -> None:
    """The teacher's errors would count as labels, and be learned twice."""
    given = {"teacher": str(made / "t"), "data": f"unlabelled:{made / 'new'}", "student": TINY, **FAST}
    kdcompress.distill(**given, out=str(tmp_path / "a"))
    values = losses(tmp_path / "a")
    assert float(values["train_loss"]) == pytest.approx(float(values["train_kd_loss"]), abs=1e-5)
    with pytest.raises(UserError, match="alpha= has no effect here"):
        kdcompress.distill(**given, alpha=0.5, out=str(tmp_path / "b"))
    run = str(tmp_path / "a")
    assert kdcompress.distill(**given, out=run, resume=True).run == run


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"method": "ce", "teacher": None}, "have no labels, and no teacher's answers"),
        ({"method": "rkd-assistant"}, "learns from labels, and .* has none"),
        ({"data": "unlabelled:nowhere"}, "There is no folder 'nowhere'"),
    ],
)
def test_methods_that_need_labels_say_so(made: Path, tmp_path: Path, given: dict[str, Any], problem: str) -> None:
    """A student would learn from labels that are none."""
    options = {"teacher": str(made / "t"), "data": f"unlabelled:{made / 'new'}", "student": TINY, **FAST, **given}
    with pytest.raises(UserError, match=problem):
        kdcompress.distill(**options, out=str(tmp_path / "s"))
    assert not (tmp_path / "s").exists()


def test_no_network_is_scored_on_its_own_answers(made: Path, tmp_path: Path) -> None:
    """A student would agree with itself in every image."""
    data = f"unlabelled:{made / 'new'}"
    with pytest.raises(UserError, match="no teacher's answers"):
        kdcompress.evaluate(run=str(made / "t"), data=data)
    with pytest.raises(UserError, match="no teacher's answers"):
        kdcompress.train_teacher(data=data, model=TINY, out=str(tmp_path / "s"), **FAST)
    with pytest.raises(UserError, match="no teacher's answers"):
        kdcompress.describe_data(data=data)


@pytest.mark.parametrize("more", [{"data": "unlabelled:new"}, {"data": "photos", "unlabelled": "new"}])
def test_compress_with_images_that_nobody_has_labelled(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
) -> None:
    """The one command for everything would be the one that does not take them."""
    monkeypatch.chdir(made)
    fast = {"epochs": 1, "device": "cpu", "precision": "fp32", "workers": 0}
    kdcompress.train_teacher(data="photos", model="resnet14_cifar", out=str(tmp_path / "t"), **fast)
    heard = Heard()
    result = kdcompress.compress(
        teacher=str(tmp_path / "t"), target_macs=0.4, out=str(tmp_path / "out"), reporter=heard, report=False, **fast,
        **more,
    )  # fmt: skip
    assert result.met
    without_labels = "unlabelled" not in more
    assert bool(result.agreement) == without_labels
    trained = [note for note in heard.notes if note.startswith(("$ kdcompress distill", "$ kdcompress add-res"))]
    assert trained
    assert all(("--unlabelled" in note) != without_labels for note in trained)
    assert [row["top1"] == 100.0 for row in result.contenders[:1]] == [without_labels]
