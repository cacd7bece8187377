"""Precision and memory format of a training are checked once, recorded in the run, and reported."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcompress
from chains import TINY, record_of
from heard import Heard
from kdcompress.api import numerics
from kdcompress.engine import distributed
from kdcompress.engine.gradient_check import Numerics
from kdcompress.engine.interrupt import Interrupted
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.runs import CHECKPOINT, RunFolder

COMMON: dict[str, Any] = {"epochs": 2, "batch_size": 256, "device": "cpu", "precision": "fp32"}
ODD = Numerics("fp32", channels_last=False, fp32_layers=("conv1",))


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Trains into a folder until it is stopped in the second epoch."""

    def train(run: Path) -> None:
        calls: list[int] = []
        genuine = SupervisedTask.forward

        def stopping(self: Any, input: torch.Tensor, target: torch.Tensor) -> Any:
            if self.training and self.has_ema() and len(input) > 1:  # not the check's
                calls.append(1)
                if len(calls) == 8:
                    signal.raise_signal(signal.SIGINT)
            return genuine(self, input, target)

        with monkeypatch.context() as patch:
            patch.setattr(SupervisedTask, "forward", stopping)
            with pytest.raises(Interrupted):
                kdcompress.train_teacher(model=TINY, out=run, ema_decay=0.9, **COMMON)
        assert (run / CHECKPOINT).is_file()

    return train


def found_at_the_start(monkeypatch: pytest.MonkeyPatch, found: Numerics) -> list[Numerics]:
    asked: list[Numerics] = []

    def checked(wanted: Numerics, *_: Any) -> Numerics:
        asked.append(wanted)
        return found

    monkeypatch.setattr(numerics, "checked", checked)
    return asked


def test_a_resumed_run_keeps_its_numerics(
    tmp_path: Path, interrupted: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked anew, perhaps on another machine, its steps would not be those of the unbroken run."""
    asked = found_at_the_start(monkeypatch, ODD)
    kdcompress.train_teacher(model=TINY, out=tmp_path / "whole", ema_decay=0.9, **COMMON)
    interrupted(tmp_path / "cut")
    assert len(asked) == 2
    kept = record_of(tmp_path / "cut")["numerics"]
    chosen = {"precision": "fp32", "channels_last": False, "fp32_layers": ["conv1"], "find_unused": False}
    assert kept == {"0": chosen}
    used = watched_formats(monkeypatch)
    kdcompress.train_teacher(model=TINY, out=tmp_path / "cut", resume=True, ema_decay=0.9, **COMMON)
    assert len(asked) == 2, "it was checked anew"
    assert used == [torch.contiguous_format]
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert record_of(tmp_path / "cut")["numerics"] == record_of(tmp_path / "whole")["numerics"] == kept


def watched_formats(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from kdcompress.api import job

    used: list[Any] = []
    genuine = job.fit

    def fit(*args: Any, **more: Any) -> Any:
        used.append(more["memory_format"])
        return genuine(*args, **more)

    monkeypatch.setattr(job, "fit", fit)
    return used


def test_a_run_older_than_the_check_resumes_unchanged(
    tmp_path: Path, interrupted: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update in the middle of a long training must not change its arithmetic."""
    run = tmp_path / "old"
    interrupted(run)
    RunFolder(run).write_record(
        {key: value for key, value in record_of(run).items() if key not in ("numerics", "digest", "digests")}
    )
    asked = found_at_the_start(monkeypatch, ODD)
    kdcompress.train_teacher(model=TINY, out=run, resume=True, ema_decay=0.9, **COMMON)
    assert asked == []
    assert record_of(run)["numerics"]["0"]["fp32_layers"] == []


def test_every_phase_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trains other layers."""
    asked = found_at_the_start(monkeypatch, dataclasses.replace(ODD, fp32_layers=()))
    settings = {**COMMON, "epochs": 3}
    teacher = kdcompress.train_teacher(model=TINY, out=tmp_path / "teacher", **settings)
    kdcompress.distill(
        teacher=teacher.run, method="rkd-assistant", student="resnet8_cifar,width=0.5", scheme="progressive",
        out=tmp_path / "pair", **settings,
    )  # fmt: skip
    assert len(asked) == 4
    assert list(record_of(tmp_path / "pair")["numerics"]) == ["0", "1", "2"]


@pytest.mark.usefixtures("bf16")
def test_small_images_train_in_bf16_as_in_fp32(tmp_path: Path) -> None:
    """The layers with stride 2 on 1 x 1 maps made the loss infinite, and the advice was to lower --lr."""
    heard, top1 = Heard(), {}
    for precision in ("fp32", "bf16"):
        settings = {**COMMON, "epochs": 2, "batch_size": 32, "precision": precision}
        result = kdcompress.train_teacher(model="test_resnet", out=tmp_path / precision, reporter=heard, **settings)
        top1[precision] = result.top1
    kept = record_of(tmp_path / "bf16")["numerics"]["0"]
    notices = [note for note in heard.notes if note.startswith("Notice")]
    assert len(notices) == bool(kept["fp32_layers"])
    assert all("bf16" in note and "layer" in note for note in notices)
    assert top1["fp32"] > 70
    assert top1["bf16"] == pytest.approx(top1["fp32"], abs=8)


def test_a_resumed_run_keeps_its_precision(
    tmp_path: Path, interrupted: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial on a busy machine may answer otherwise; the rest of the epochs would run in another arithmetic."""
    interrupted(tmp_path / "run")
    monkeypatch.setattr(distributed, "cpu_precision", lambda name, trial: "bf16" if name == "auto" else name)
    more = {**COMMON, "precision": "auto"}
    result = kdcompress.train_teacher(model=TINY, out=tmp_path / "run", resume=True, ema_decay=0.9, **more)
    assert result.precision == "fp32"
    assert record_of(tmp_path / "run")["precision"] == "fp32"
