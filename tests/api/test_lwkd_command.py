"""LW-KD as a command: its teacher is trained once and cached, the bank holds its logits, and any data will do."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import kdcompress
from chains import TINY, record_of
from heard import Heard
from kdcompress.api.job import Job
from kdcompress.api.recipes import light_teacher
from kdcompress.api.recipes import lwkd as lwkd_module
from kdcompress.api.recipes.light_teacher import soft_targets
from kdcompress.api.recipes.lwkd import similar_classes
from kdcompress.cache import cache_dir
from kdcompress.data import Data, load_source
from kdcompress.data.synth_digits import SynthDigits
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Silent
from kdcompress.errors import UserError
from kdcompress.methods.lwkd import LwKdTask, SoftTargetBank
from kdcompress.models.loading import load_network
from kdcompress.options import DistillOptions
from kdcompress.results import TrainResult
from kdcompress.runs import CHECKPOINT, METRICS, WEIGHTS

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 2, "method": "lwkd", "student": TINY,
                          "adversarial_weight": 0.1, "bank_size": 8}  # fmt: skip
NUMBERS = "synth-digits:10,n=1000"


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A lightweight teacher, half trained."""
    out = str(tmp_path_factory.mktemp("light") / "teacher")
    return kdcompress.train_teacher(
        model="lenet5", data=NUMBERS, epochs=4, opt="adamw", lr=4e-3, out=out, device="cpu", precision="fp32"
    )


def quick(monkeypatch: pytest.MonkeyPatch, epochs: int = 1) -> None:
    """Let the lightweight teacher have so few epochs, of few images."""
    monkeypatch.setattr(light_teacher, "MOST_EPOCHS", epochs)
    monkeypatch.setattr(light_teacher, "_data", lambda classes: f"synth-digits:{classes},n=600")


class Stops(Heard):
    """Asks the training to stop after its second epoch."""

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_the_lightweight_teacher_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for each student would be the price of a method whose promise is that they are spent once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick(monkeypatch)
    softened = {**COMMON, "temperature": 4.0, "epochs": 1}
    first = kdcompress.distill(**softened, out=str(tmp_path / "first"))
    (kept,) = (cache_dir() / "teachers").glob("lenet5*")
    assert first.teacher == str(kept)
    assert (first.teacher_macs, first.macs_ratio) == (None, None), "its cost is no measure of a student's"
    entry = record_of(first.run)["teacher"]
    assert entry["seconds"] > 0
    assert 0 < entry["entropy"] < entry["softened_entropy"] < 2.4
    before = (kept / WEIGHTS).stat().st_mtime_ns

    def never(*args: Any, **given: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(light_teacher, "_work_folder", never)
    again = kdcompress.distill(**softened, out=str(tmp_path / "again"))
    assert (again.loss, again.teacher) == (first.loss, first.teacher)
    assert (kept / WEIGHTS).stat().st_mtime_ns == before
    rows = list(csv.DictReader(open(Path(str(first.run)) / METRICS)))  # noqa: SIM115
    assert all(0 <= float(row["train_discriminator_accuracy"]) <= 1 for row in rows)
    assert all(float(row["train_adversarial_loss"]) > 0 for row in rows)


def test_a_failed_teacher_training_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a teacher in the cache would teach every later student."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def breaks(job: Any) -> Any:
        Path(job.options.out).mkdir(parents=True)
        raise UserError("The disk is full.", "")

    monkeypatch.setattr(light_teacher, "train_on_labels", breaks)
    with pytest.raises(UserError, match="disk"):
        kdcompress.distill(**COMMON, out=str(tmp_path / "run"))
    assert not list((cache_dir() / "teachers").glob("lenet5*"))


def test_an_interrupted_teacher_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a thousand classes it takes minutes; and what is left of it must not lie about."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick(monkeypatch, epochs=3)

    with pytest.raises(Interrupted) as caught:
        kdcompress.distill(**COMMON, out=str(tmp_path / "run"), teacher_top1=100, reporter=Stops())
    assert "same command again" in caught.value.remedy
    assert not any(option in caught.value.remedy for option in ("--resume", "resume="))
    assert not (tmp_path / "run").exists()
    begun = Heard()
    titles: list[str] = []
    monkeypatch.setattr(begun, "start", lambda title, epochs, steps, done: titles.append(f"{title} {done}"))
    result = kdcompress.distill(**COMMON, out=str(tmp_path / "run"), teacher_top1=100, reporter=begun)
    assert titles[0] == "train-teacher lenet5 2", "two epochs were done"
    assert any("reached" in note for note in begun.notes), "not as good as it was to be"
    left = {path.name for path in (cache_dir() / "teachers").iterdir() if not path.name.endswith(".lock")}
    assert left == {Path(str(result.teacher)).name}


def test_a_damaged_teacher_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user never made it, and cannot be asked to mend it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick(monkeypatch)
    once = {**COMMON, "epochs": 1}
    first = kdcompress.distill(**once, out=str(tmp_path / "first"))
    weights = Path(str(first.teacher)) / WEIGHTS
    for damage in (lambda: weights.write_bytes(b"cut"), weights.unlink):
        damage()
        again = kdcompress.distill(**once, out=str(tmp_path / "again"))
        assert again.loss == first.loss
        shutil.rmtree(tmp_path / "again")


def test_a_teacher_that_cannot_be_gone_on_with_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged checkpoint in a hidden folder of the cache would stop every later training of this kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick(monkeypatch, epochs=3)

    once = {**COMMON, "epochs": 1, "teacher_top1": 100}
    with pytest.raises(Interrupted) as caught:
        kdcompress.distill(**once, out=str(tmp_path / "run"), reporter=Stops())
    (caught.value.path / CHECKPOINT).write_bytes(b"cut")
    heard = Heard()
    kdcompress.distill(**once, out=str(tmp_path / "run"), reporter=heard)
    assert any("trained anew" in note for note in heard.notes)


def test_without_a_cache_the_teacher_is_used_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be written must neither stop the training nor be replaced by litter elsewhere."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(light_teacher, "_temporary", [])
    quick(monkeypatch)
    heard = Heard()
    kdcompress.distill(**COMMON, cache_dir=tmp_path / "cache", out=str(tmp_path / "run"), reporter=heard)
    assert sum(note.startswith("Warning: the lightweight teacher cannot be cached") for note in heard.notes) == 1
    for folder in light_teacher._temporary:
        folder.cleanup()
    assert not list((tmp_path / "tmp").iterdir())


def test_the_bank_holds_the_teachers_logits(light: TrainResult) -> None:
    """Soft targets of other images, other classes or another network would still train something."""
    network = load_network(str(light.run))
    job = Job("distill", "lwkd", None, Silent(), Place(torch.device("cpu"), "fp32"), 0.0)
    found = soft_targets(network, 5, DistillOptions(method="lwkd"), job, load_source("digits"))
    assert found.shape == (10, 5, 10)
    unseen = SynthDigits.parse("synth-digits:10,n=250,seed=1").test()
    assert len(unseen.labels) == 50
    pixels = np.stack([np.asarray(unseen.image(index)) for index in range(50)])
    x = (torch.from_numpy(pixels)[:, None] / 255 - network.prep.mean[0]) / network.prep.std[0]
    with torch.no_grad():
        live = network.model.eval()(x)
    for label in range(10):
        torch.testing.assert_close(found[label].float(), live[unseen.labels == label], atol=2e-2, rtol=2e-3)


@pytest.mark.parametrize(("data", "split"), [("digits", "fit"), (NUMBERS, "calibration")])
def test_the_bank_never_uses_the_test_split(
    tmp_path: Path, data: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits on test images, sorted by their labels, would reach the student."""
    made = kdcompress.train_teacher(model=TINY, data="digits", epochs=1, out=str(tmp_path / "t"), device="cpu")
    asked: list[str] = []
    genuine = Data.evaluation
    monkeypatch.setattr(
        Data, "evaluation", lambda self, split, *more: asked.append(split) or genuine(self, split, *more)
    )
    job = Job("distill", "lwkd", None, Heard(), Place(torch.device("cpu"), "fp32"), 0.0)
    found = soft_targets(load_network(str(made.run)), 128, DistillOptions(method="lwkd"), job, load_source(data))
    assert asked == [split]
    assert found.shape[1] < 128
    assert any("has only" in note for note in job.reporter.notes)  # type: ignore[attr-defined]


def test_another_loss_on_logits(light: TrainResult, tmp_path: Path) -> None:
    """--logit-loss would be taken, and change nothing."""
    given = {**COMMON, "teacher": light.run, "epochs": 1}
    losses = {kdcompress.distill(**given, logit_loss=name, out=str(tmp_path / name)).loss for name in ("kl", "dist")}
    assert len(losses) == 2
    recipe = record_of(tmp_path / "kl")["recipe"]["0"]
    assert (recipe["alpha"], recipe["temperature"]) == (0.5, 1.0)
    assert recipe["bank_size"] > 0


def test_lwkd_resumes(light: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discriminator, class map and draws are part of what a run is."""
    given = {**COMMON, "teacher": light.run, "class_map": "similar", "mixup": 0.2}
    whole = kdcompress.distill(**given, out=str(tmp_path / "whole"))
    forward, calls = LwKdTask.forward, []

    def counting(self: LwKdTask, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return forward(self, input, target)

    monkeypatch.setattr(LwKdTask, "forward", counting)
    with pytest.raises(KeyboardInterrupt):
        kdcompress.distill(**given, out=str(tmp_path / "cut"))
    resumed = kdcompress.distill(**given, out=str(tmp_path / "cut"), resume=True)
    made = [(Path(str(result.run)) / WEIGHTS).read_bytes() for result in (whole, resumed)]
    assert made[0] == made[1]


@pytest.mark.parametrize("class_map", ["random", "similar"])
def test_class_maps_train(light: TrainResult, tmp_path: Path, class_map: str) -> None:
    """A wrong map back would teach every class another's label."""
    result = kdcompress.distill(**{**COMMON, "epochs": 4}, teacher=light.run, class_map=class_map, out=tmp_path / "run")
    assert result.top1 > 50
    assert result.data == "digits", "those of its teacher"


def test_similar_classes_are_found() -> None:
    """Confusable classes would be aligned with classes that are not."""
    generator = np.random.default_rng(0)
    confused = np.kron(np.eye(3), np.ones((2, 2)))  # classes are confused in pairs
    order = generator.permutation(6)
    logits = torch.tensor(6 * np.eye(6) + 3 * confused)[:, None].repeat(1, 2, 1)
    ours = torch.tensor(confused[order][:, order] + 0.01)
    found = similar_classes(ours, SoftTargetBank(logits))
    assert sorted(found.tolist()) == list(range(6))
    pairs = {frozenset(found[np.flatnonzero(order // 2 == pair)].tolist()) for pair in range(3)}
    assert pairs == {frozenset((0, 1)), frozenset((2, 3)), frozenset((4, 5))}


def test_a_collapse_is_reported(tmp_path: Path) -> None:
    """A discriminator that is never fooled, or never learns, does nothing; nobody looks for that."""
    job = Job("distill", "lwkd", None, Heard(), Place(torch.device("cpu"), "fp32"), 0.0)
    for values, word in (
        ((0.7, 1.0, 0.995), "never fooled"),
        ((0.7, 0.5, 0.51), "never learned"),
        ((1.0, 0.9, 0.6), ""),
        ((0.5,), ""),
    ):
        lines = ["epoch,train_discriminator_accuracy", *(f"{n},{value}" for n, value in enumerate(values))]
        (tmp_path / METRICS).write_text("\n".join(lines))
        job.reporter.notes.clear()  # type: ignore[attr-defined]
        lwkd_module._report_collapse(tmp_path, job)
        notes = job.reporter.notes  # type: ignore[attr-defined]
        assert (word in notes[0]) if word else not notes


def test_options_reach_the_method(light: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is taken and does nothing."""
    seen: dict[str, Any] = {}
    genuine = LwKdTask.__init__

    def spy(self: LwKdTask, student: Any, bank: SoftTargetBank, *args: Any, **given: Any) -> None:
        seen.update(given, images=bank.logits.shape[1], classes=bank.classes.tolist())
        genuine(self, student, bank, *args, **given)

    monkeypatch.setattr(LwKdTask, "__init__", spy)
    wanted = {"adversarial_weight": 0.0, "adversarial_warmup": 0.7, "alpha": 0.3, "temperature": 2.0}
    given = {**COMMON, **wanted, "epochs": 1, "bank_size": 3, "class_map": "random"}
    result = kdcompress.distill(**given, teacher=light.run, out=str(tmp_path / "run"))
    classes = seen.pop("classes")
    assert sorted(classes) == list(range(10)) != classes
    assert seen == {**wanted, "images": 3}
    assert "discriminator" not in (Path(str(result.run)) / METRICS).read_text()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def look(job: Any) -> Any:
        raise UserError(f"stops at {job.options.stop_top1:g}", "")

    monkeypatch.setattr(light_teacher, "train_on_labels", look)
    with pytest.raises(UserError, match="stops at 42"):
        kdcompress.distill(**COMMON, teacher_top1=42.0, out=str(tmp_path / "other"))


def test_impossible_options_are_refused(light: TrainResult, tmp_path: Path) -> None:
    """Before anything is trained."""
    plain = {"adversarial_weight": 0.0, "bank_size": None}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"teacher": light.run, "data": "synth-digits:12,n=100"}, "has 10 classes"),
        ({"bank_size": 50_000_000}, "GiB"),
        ({"teacher": "lenet5,num_classes=10,in_chans=1"}, "no pretrained weights"),
        ({**plain, "method": "kd", "teacher": light.run, "class_map": "random"}, "class_map="),
        ({**plain, "method": "ce", "adversarial_weight": 0.3}, "adversarial_weight="),
    ]
    for given, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            kdcompress.distill(**{**COMMON, **given}, out=str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
        assert caught.value.remedy
    with pytest.raises(UserError, match="100000 classes takes") as none:
        light_teacher.bank_images(100_000, None)
    assert "--bank-size" not in none.value.remedy
    with pytest.raises(UserError, match="40000 classes takes") as one:
        light_teacher.bank_images(40_000, None)
    assert "--bank-size 1" in one.value.remedy
    assert [light_teacher.bank_images(classes, None) for classes in (10, 100, 1000, 10_000)] == [128, 128, 20, 2]


def test_a_cascade_does_not_learn_from_a_lightweight_teacher(light: TrainResult, tmp_path: Path) -> None:
    """The residual to a network that has never seen such images is noise."""
    given = {**COMMON, "epochs": 1}
    student = kdcompress.distill(**given, teacher=light.run, out=str(tmp_path / "student"))
    with pytest.raises(UserError, match="cannot classify its images") as caught:
        kdcompress.add_res_student(run=student.run, arch=TINY, epochs=1, device="cpu", out=str(tmp_path / "more"))
    assert "teacher=REF" in caught.value.remedy


def test_training_stops_where_it_is_good_enough(tmp_path: Path) -> None:
    """A teacher trained to the end has nothing to tell but the label."""
    given = {"model": TINY, "device": "cpu", "precision": "fp32", "epochs": 8, "stop_top1": 40.0}
    result = kdcompress.train_teacher(**given, out=str(tmp_path / "run"))
    rows = list(csv.DictReader(open(tmp_path / "run" / METRICS)))  # noqa: SIM115
    reached = [float(row["calibration_top1"]) >= 40 for row in rows]
    assert len(rows) < 8
    assert reached == [False] * (len(rows) - 1) + [True]
    again = kdcompress.train_teacher(**given, out=str(tmp_path / "run"), resume=True)
    assert dataclasses.asdict(again) == dataclasses.asdict(result)


TABLE = """
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

def data():
    found = load_breast_cancer()
    x = (found.data - found.data.mean(0)) / found.data.std(0)
    rows = [(torch.tensor(row, dtype=torch.float32), int(label)) for row, label in zip(x, found.target)]
    return rows[::2], rows[1::2]

def model(num_classes, in_chans):
    return nn.Sequential(nn.Flatten(), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, num_classes))
"""


def test_tables_are_data_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method never looks at the input; neither may the tool."""
    (tmp_path / "table.py").write_text(TABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    quick(monkeypatch, epochs=2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = {**COMMON, "student": "py:table:model", "data": "py:table:data", "epochs": 15}
    result = kdcompress.distill(**given, out=str(tmp_path / "run"))
    assert result.input_size == (1, 1, 30)
    assert result.macs == 30 * 16 + 16 * 2
    assert result.top1 > 80
    scored = kdcompress.evaluate(run=result.run, device="cpu")
    assert scored.top1 > 85
    with pytest.raises(UserError, match='augment="crop" needs images'):
        kdcompress.distill(**{**given, "augment": "crop"}, out=str(tmp_path / "other"))
    with pytest.raises(UserError, match="as they are"):
        kdcompress.distill(**{**given, "input_size": "32"}, out=str(tmp_path / "other"))
