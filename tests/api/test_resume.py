"""`--resume` of one training: the same weights, or a refusal."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import kdcompress
from chains import (
    COMMON,
    SMALL,
    TINY,
    WHERE,
    Chain,
    record_of,
    same_weights,
    stopped,
)
from kdcompress.api.job import changed_since
from kdcompress.errors import UserError
from kdcompress.methods.base import Frozen
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.options import LOGIT_LOSSES, CompressOptions, DistillOptions
from kdcompress.runs import WEIGHTS


def test_an_interrupted_distillation_resumes(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command, not only the loop: same weights, same result as if it was never stopped."""
    given = {**COMMON, "teacher": chain.teacher.run, "student": TINY, "ema_decay": 0.9, "mixup": 0.2}
    whole = kdcompress.distill(out=str(tmp_path / "whole"), **given)
    with stopped(KdTask, 9, signal.SIGINT, monkeypatch):
        kdcompress.distill(out=str(tmp_path / "broken"), **given)
    assert record_of(str(tmp_path / "broken"))["status"] == "unfinished"
    with pytest.raises(UserError, match="unfinished"):
        kdcompress.evaluate(run=str(tmp_path / "broken"), **WHERE)
    resumed = kdcompress.distill(out=str(tmp_path / "broken"), resume=True, **given)
    assert same_weights(resumed.run, whole.run)
    volatile = ("run", "seconds", "images_per_second")
    assert {k: v for k, v in resumed.to_dict().items() if k not in volatile} == {
        k: v for k, v in whole.to_dict().items() if k not in volatile
    }


@pytest.mark.parametrize("changed", ["teacher", "data"])
def test_resuming_with_another_teacher_or_data_is_refused(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Half distilled from one teacher and half from another: nobody could tell from the record."""
    code = "from kdcompress.data import load_source\n\nclass Set(list):\n    classes = [str(k) for k in range(10)]\n\n"
    code += "def make():\n    source = load_source('digits').train\n"
    code += "    items = [(source.image(i), int(source.labels[i])) for i in range(400)]\n    return Set(items), None\n"
    (tmp_path / "other_data.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    given = {**COMMON, "student": TINY, "out": str(tmp_path / "run"), "batch_size": 32}
    with stopped(KdTask, 3, signal.SIGINT, monkeypatch):
        kdcompress.distill(teacher=chain.teacher.run, **given)
    now = {"teacher": chain.student.run} if changed == "teacher" else {"data": "py:other_data:make"}
    with pytest.raises(UserError, match=f"another {changed}"):
        kdcompress.distill(resume=True, **{"teacher": chain.teacher.run, **given, **now})
    kdcompress.distill(teacher=chain.teacher.run, resume=True, **given)


def test_a_finished_run_is_left_as_it_is(chain: Chain) -> None:
    """--resume in a script that is started again must cost nothing."""
    stamp = (Path(str(chain.student.run)) / WEIGHTS).stat().st_mtime_ns
    again = kdcompress.distill(
        teacher=chain.teacher.run, method="reskd", student=SMALL, out=str(chain.student.run), resume=True, **COMMON
    )
    assert again == chain.student
    assert (Path(str(chain.student.run)) / WEIGHTS).stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="train-teacher"):
        kdcompress.distill(teacher=chain.teacher.run, out=str(chain.teacher.run), resume=True, **COMMON)


def test_what_a_run_inherits_may_be_left_out_again() -> None:
    """The same command, with --resume, would be refused for an option that nobody gave."""
    given = CompressOptions(teacher="x", target_macs=0.5)
    filled_in = {**given.to_dict(), "skip_bad_images": True, "holdout": 0.2, "data": "photos"}
    assert changed_since(given, filled_in) == []
    assert changed_since(dataclasses.replace(given, holdout=0.1), filled_in) == ["holdout"]
    assert changed_since(given, {**filled_in, "epochs": 7}) == ["epochs"]


def test_a_default_that_has_changed_since_is_no_reason_to_go_on_with_another(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training begun by an earlier version would be half of one recipe and half of another, and nothing said so."""
    given = {**COMMON, "teacher": chain.teacher.run, "student": TINY, "out": str(tmp_path / "run")}
    with stopped(KdTask, 3, signal.SIGINT, monkeypatch):
        kdcompress.distill(**given)
    recipe = record_of(given["out"])["recipe"]["0"]
    assert recipe | {"alpha": 0.9, "temperature": 4.0, "label_smoothing": 0.0} == recipe
    with monkeypatch.context() as later:
        later.setitem(LOGIT_LOSSES, "kl", dataclasses.replace(LOGIT_LOSSES["kl"], temperature=2.0))
        with pytest.raises(UserError, match=r"temperature 4\.0, now 2\.0"):
            kdcompress.distill(resume=True, **given)
        resumed = kdcompress.distill(resume=True, **given, temperature=4)
    assert record_of(str(resumed.run))["recipe"]["0"] == recipe


def test_a_checkpoint_that_does_not_say_what_the_defaults_were_is_resumed(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of earlier versions do not, and their work would be lost."""
    given = {**COMMON, "teacher": chain.teacher.run, "student": TINY, "out": str(tmp_path / "run")}
    with monkeypatch.context() as earlier:
        earlier.setattr(KdTask, "hyperparameters", lambda _: {})  # whose checkpoints say nothing of them
        with stopped(KdTask, 3, signal.SIGINT, earlier):
            kdcompress.distill(**given)
    assert "temperature" not in record_of(given["out"])["recipe"]["0"]
    with pytest.raises(UserError, match=r"temperature -, now 2"):  # which it was not trained with so far
        kdcompress.distill(resume=True, **given, temperature=2)
    assert "temperature" not in record_of(given["out"])["recipe"]["0"], "a refused command has rewritten the record"
    resumed = kdcompress.distill(resume=True, **given)
    assert record_of(str(resumed.run))["recipe"]["0"]["temperature"] == 4.0


def test_a_default_may_be_given_once_a_run_is_finished(chain: Chain) -> None:
    """A chain whose first member is finished could not go on with its values after a default has changed."""
    given = {**COMMON, "teacher": chain.teacher.run, "method": "reskd", "student": SMALL, "out": str(chain.student.run)}
    assert kdcompress.distill(resume=True, **given, temperature=4, batch_size=32) == chain.student
    with pytest.raises(UserError, match="made with no"):
        kdcompress.distill(resume=True, **given, temperature=2)


def test_options_without_effect_are_no_part_of_a_recipe() -> None:
    """The report would name a temperature that nothing was softened by, and a changed one would stop a resumption."""
    teacher, student = Frozen(nn.Linear(2, 3)), nn.Linear(2, 3)
    assert KdTask(student, teacher, logit_loss="mse").hyperparameters().keys() == {"label_smoothing", "alpha"}
    assert KdTask(student, teacher, logit_loss="dkd").hyperparameters()["temperature"] == 4
    on_residual = ResKdTask(student, teacher, teacher, residual_loss="mse", sum_weight=0.5)
    assert on_residual.hyperparameters() == {"sum_weight": 0.5}


def test_of_several_phases_only_what_they_share_may_be_given() -> None:
    """A value of the last phase would pass for one that the whole run was trained with."""
    given = DistillOptions(teacher="x", student="y")
    phases = {
        "0": {"lr": 0.1, "opt": "sgd", "warmup_epochs": 0.5},
        "1": {"lr": 0.2, "opt": "sgd", "warmup_epochs": 0.5},
    }

    def changed(**now: Any) -> list[str]:
        return changed_since(dataclasses.replace(given, **now), given.to_dict(), phases)

    assert changed(opt="sgd") == []
    assert changed(lr=0.2) == ["lr"]
    assert changed(warmup_epochs=0.5) == ["warmup_epochs"]
