"""``polish``: what is kept, what is refused, and that it goes on where it was cut off."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kdcompress
from heard import Heard
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError
from kdcompress.methods.polish import PolishTask
from kdcompress.runs import RECORD, WEIGHTS

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")

    def out(name: str) -> dict[str, Any]:
        return {**COMMON, "epochs": 1, "out": str(folder / name)}

    teacher = kdcompress.train_teacher(model="resnet8_cifar", data="digits", **{**out("teacher"), "epochs": 4})
    tiny = "resnet8_cifar,width=0.25"
    student = kdcompress.distill(teacher=teacher.run, method="reskd", student=tiny, **out("student"))
    cascade = kdcompress.add_res_student(run=student.run, arch=tiny, **out("cascade"))
    kdcompress.gate_calibrate(run=cascade.run, threshold=(0.7,), **{**COMMON, "out": str(folder / "gated")})
    return folder / "gated"


def weights(run: str | Path | None) -> dict[str, torch.Tensor]:
    return load_file(Path(str(run)) / WEIGHTS)


def same(one: Any, other: Any) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_what_is_better_is_kept(gated: Path, tmp_path: Path) -> None:
    """The weights, the gate and the figures must be of one network, for no more MACs than before."""
    result = kdcompress.polish(run=str(gated), epochs=3, out=str(tmp_path / "polished"), **COMMON)
    former = json.loads((gated / RECORD).read_text())["result"]
    assert result.polished
    assert result.former_top1 == former["gated_top1"]
    assert (result.gated_top1 or 0) > former["gated_top1"]
    assert (result.expected_macs or math.inf) <= former["expected_macs"]
    assert same(result.run, tmp_path / "polished" / "trained")
    assert not same(result.run, gated)
    seen = kdcompress.evaluate(run=result.run, split="calibration", **COMMON)
    assert seen.top1 == pytest.approx(result.gated_top1, abs=1e-3)
    assert seen.expected_macs == pytest.approx(result.expected_macs)
    record = json.loads((tmp_path / "polished" / RECORD).read_text())
    assert record["parents"] == [str(gated)]
    longer = kdcompress.add_res_student(
        run=result.run, arch="resnet8_cifar,width=0.25", epochs=1, out=str(tmp_path / "longer"), **COMMON
    )
    assert len(longer.members or ()) == 3


def test_what_is_not_better_is_left_as_it_was(gated: Path, tmp_path: Path) -> None:
    """A pipeline goes on with a cascade that is worse than the one that it had."""
    heard = Heard()
    given = {"run": str(gated), "epochs": 1, "out": str(tmp_path / "polished"), **COMMON}
    result = kdcompress.polish(**given, lr=3.0, reporter=heard)
    assert result.polished is False
    assert result.gated_top1 == result.former_top1
    assert same(result.run, gated)
    assert any("left as they were" in note for note in heard.notes)
    seen = kdcompress.evaluate(run=result.run, split="calibration", **COMMON)
    assert seen.top1 == pytest.approx(result.gated_top1, abs=1e-3)
    assert kdcompress.polish(**given, lr=3.0, resume=True).to_dict() == result.to_dict()


def test_it_goes_on_where_it_was_cut_off(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training would be lost, or their result differ."""
    given = {"run": str(gated), "epochs": 2, **COMMON}
    whole = kdcompress.polish(**given, out=str(tmp_path / "whole"))
    calls: list[int] = []
    genuine = PolishTask.forward

    def stopping(self: PolishTask, *values: Any) -> Any:
        calls.append(1)
        if len(calls) == 50:  # in the second epoch
            signal.raise_signal(signal.SIGTERM)
        return genuine(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(PolishTask, "forward", stopping)
        with pytest.raises(Interrupted) as stopped:
            kdcompress.polish(**given, out=str(tmp_path / "cut"))
    assert stopped.value.path == tmp_path / "cut"
    with pytest.raises(UserError, match="unfinished"):
        kdcompress.evaluate(run=str(tmp_path / "cut"), **COMMON)
    result = kdcompress.polish(**given, out=str(tmp_path / "cut"), resume=True)
    assert same(tmp_path / "cut" / "trained", tmp_path / "whole" / "trained")
    assert result.gated_top1 == whole.gated_top1


def test_only_a_gated_cascade_can_be_polished(gated: Path, tmp_path: Path) -> None:
    """The user learns what to do first, before anything is made."""
    out = tmp_path / "polished"
    with pytest.raises(UserError, match="has no gate") as refused:
        kdcompress.polish(run=str(gated.parent / "cascade"), out=str(out), **COMMON)
    assert "gate-calibrate" in refused.value.remedy
    with pytest.raises(UserError, match="single network"):
        kdcompress.polish(run=str(gated.parent / "teacher"), out=str(out), **COMMON)
    assert not out.exists()
