"""Every method through the Python API, and combinations that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kdcompress
from chains import (
    COMMON,
    TINY,
    WHERE,
    Chain,
    logits_on,
    record_of,
    top1,
    weights_of,
)
from kdcompress.api import job as job_module
from kdcompress.errors import UserError
from kdcompress.models.loading import load_network


@pytest.mark.parametrize("method", ["ce", "label-smoothing", "tf-kd", "kd"])
def test_every_method_trains_a_plain_student(chain: Chain, tmp_path: Path, method: str) -> None:
    """Four baselines that every study compares with; each better than chance after an epoch."""
    teacher = {"teacher": chain.teacher.run} if method == "kd" else {}
    result = kdcompress.distill(method=method, student="resnet8_cifar", out=str(tmp_path / "run"), **teacher, **COMMON)
    assert result.method == record_of(result.run)["method"] == method
    assert result.architecture == "resnet8_cifar"
    assert result.top1 > 30
    assert (result.teacher_macs is None) == (method != "kd")
    assert kdcompress.load(str(result.run)).class_names == tuple("0123456789")
    weights = {"kd": (0.9, 4.0), "tf-kd": (0.1, 20.0)}.get(method, (None, None))
    recipe = record_of(result.run)["recipe"]["0"]
    assert (recipe.get("alpha"), recipe.get("temperature")) == weights
    assert recipe["label_smoothing"] == (0.1 if method == "label-smoothing" else 0)


def test_the_record_says_what_every_open_default_was(chain: Chain) -> None:
    """Learning rate, optimiser or batch size of a run could only be guessed, from the code of its day."""
    recipe = record_of(chain.cascade.run)["recipe"]["0"]
    assert {key for key, value in recipe.items() if value is None} == {"layer_decay"}  # its default, 1
    left_open = {"batch_size", "lr", "weight_decay", "opt", "warmup_epochs", "decay_epochs", "label_smoothing"}
    assert {*left_open, "alpha", "temperature", "sum_weight", "augment", "epochs"} <= recipe.keys()
    assert (recipe["opt"], recipe["lr"], recipe["batch_size"]) == ("sgd", 0.1 * 32 / 128, 32)
    assert recipe["sum_weight"] == record_of(chain.cascade.run)["result"]["members"][1]["sum_weight"]


def test_methods_differ(chain: Chain, tmp_path: Path) -> None:
    """A --method, --alpha or --temperature that is read and forgotten trains the same network."""
    variants: list[dict[str, Any]] = [
        {"method": "ce"},
        {"method": "label-smoothing"},
        {"method": "tf-kd"},
        {"method": "tf-kd", "alpha": 0.5},
        {"method": "kd", "teacher": chain.teacher.run},
        {"method": "kd", "teacher": chain.teacher.run, "temperature": 1.0},
        {"method": "kd", "teacher": chain.teacher.run, "alpha": 0.2},
        {"method": "ce", "label_smoothing": 0.2},
    ]
    prints = [
        kdcompress.load(
            str(
                kdcompress.distill(student=TINY, out=str(tmp_path / str(number)), batch_size=256, **given, **COMMON).run
            )
        ).fingerprint()
        for number, given in enumerate(variants)
    ]
    assert len(set(prints)) == len(variants)


def test_the_average_is_what_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--ema-decay: the reported accuracy and the file must be of the same weights, the averaged ones."""
    tasks: list[Any] = []
    genuine = job_module.fit
    monkeypatch.setattr(job_module, "fit", lambda task, *a, **k: (tasks.append(task), genuine(task, *a, **k))[1])
    result = kdcompress.train_teacher(model=TINY, ema_decay=0.95, out=str(tmp_path / "run"), **COMMON)
    saved, average = weights_of(result.run), tasks[0].get_trainable_module(ema=True).module.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in saved.items())
    logits, labels = logits_on(load_network(str(result.run)), "calibration")
    assert result.top1 == pytest.approx(top1(logits, labels), abs=1e-3)


def test_wrong_combinations_are_refused_before_any_work(chain: Chain, tmp_path: Path) -> None:
    """Each ends in a line and a remedy, and leaves no folder behind."""
    run, teacher = str(chain.student.run), str(chain.teacher.run)
    cases = [
        (lambda out: kdcompress.distill(method="ce", teacher=teacher, out=out), "takes no teacher"),
        (lambda out: kdcompress.distill(method="kd", out=out), "needs a teacher"),
        (
            lambda out: kdcompress.distill(
                teacher=teacher, data="synth-digits:2", logit_loss="standardized-kl", out=out, **COMMON
            ),
            "three classes",
        ),
        (lambda out: kdcompress.distill(teacher=teacher, res_students=1, out=out), "res_students="),
        (lambda out: kdcompress.add_res_student(run=run, out=out), "arch="),
        (lambda out: kdcompress.add_res_student(run=run, arch="resnt8_cifar", out=out, **COMMON), "resnt8_cifar"),
        (lambda out: kdcompress.add_res_student(run=teacher, arch=TINY, out=out, **COMMON), "no teacher on record"),
        (lambda out: kdcompress.gate_calibrate(run=teacher, max_drop=1.0, out=out, **WHERE), "single network"),
        (lambda out: kdcompress.gate_calibrate(run=run, max_drop=1.0, out=out, **WHERE), "single member"),
        (lambda out: kdcompress.gate_calibrate(run=run, out=out, **WHERE), "exactly one target"),
        (lambda out: kdcompress.train_teacher(model="resnt8_cifar", out=out, **COMMON), "resnt8_cifar"),
        (lambda out: kdcompress.train_teacher(modle="resnet8_cifar", out=out), "modle"),
        (lambda out: kdcompress.train_teacher(model=TINY, decay_epochs=3, out=out, **COMMON), 'sched="step"'),
        (
            lambda out: kdcompress.add_res_student(
                run=run, arch=TINY, residual_loss="mse", label_smoothing=0.1, out=out, **COMMON
            ),
            "label_smoothing= has no effect",
        ),
    ]
    for number, (call, words) in enumerate(cases):
        out = tmp_path / str(number)
        with pytest.raises(UserError, match=words) as caught:
            call(str(out))
        assert caught.value.remedy
        assert not out.exists()
