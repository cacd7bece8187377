"""``polish``: what is kept, what is refused, and that it resumes."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdcompress
from heard import Heard
from kdcompress.api.job import Job
from kdcompress.api.teacher import Teacher
from kdcompress.data import Data
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError
from kdcompress.methods.polish import PolishTask
from kdcompress.models.loading import Network
from kdcompress.runs import RECORD, WEIGHTS, RunFolder

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


def test_better_weights_are_kept(gated: Path, tmp_path: Path) -> None:
    """The weights, the gate and the figures must be of one network, for no more MACs than before."""
    result = kdcompress.polish(run=str(gated), epochs=3, out=str(tmp_path / "polished"), **COMMON)
    former = json.loads((gated / RECORD).read_text())["result"]
    assert result.polished
    assert former["gated_top1"] <= (result.former_top1 or 0) < (result.gated_top1 or 0)
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


def test_without_improvement_the_old_weights_stay(gated: Path, tmp_path: Path) -> None:
    """A pipeline goes on with a cascade that is worse than the one that it had."""
    heard = Heard()
    given = {"run": str(gated), "epochs": 1, "out": str(tmp_path / "polished"), **COMMON}
    result = kdcompress.polish(**given, lr=3.0, reporter=heard)
    assert result.polished is False
    former = json.loads((gated / RECORD).read_text())["result"]
    assert (result.gated_top1, result.thresholds) == (former["gated_top1"], former["thresholds"])
    assert same(result.run, gated)
    assert any("left as they were" in note for note in heard.notes)
    seen = kdcompress.evaluate(run=result.run, split="calibration", **COMMON)
    assert seen.top1 == pytest.approx(result.gated_top1, abs=1e-3)
    assert kdcompress.polish(**given, lr=3.0, resume=True).to_dict() == result.to_dict()


def test_an_interrupted_polish_resumes(gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_gain_from_thresholds_alone_keeps_no_weights(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate set by hand leaves room for a better one: weights that learned nothing would be called better.

    The last member is spoilt, so that every gate that asks it less often is better.
    """
    spoilt = shutil.copytree(gated.parent / "cascade", tmp_path / "cascade")
    last = {name: value for name, value in weights(spoilt).items() if name.startswith("members.1.fc.")}
    random = torch.Generator().manual_seed(0)
    noise = {name: 100 * torch.randn(value.shape, generator=random) for name, value in last.items()}
    save_file({**weights(spoilt), **noise}, spoilt / WEIGHTS, metadata={"format": "pt"})
    RunFolder(Path(spoilt)).accept()
    by_hand = kdcompress.gate_calibrate(run=str(spoilt), threshold=(0.7,), out=str(tmp_path / "gated"), **COMMON)

    def learned_nothing(network: Network, teacher: Teacher, data: Data, job: Job) -> None:
        shutil.copytree(tmp_path / "gated", job.options.out)

    monkeypatch.setattr(sys.modules["kdcompress.api.polish"], "_train", learned_nothing)
    run = RunFolder(Path(str(by_hand.run)))
    record, told = run.record(), {"cost_bound": {"confidence_level": 0.9, "images": 142, "macs_ratio": 0.5}}
    run.finish({**record, "result": {**record["result"], **told}})
    result = kdcompress.polish(run=by_hand.run, epochs=1, out=str(tmp_path / "polished"), **COMMON)
    assert result.cost_bound == told["cost_bound"], "of a gate that is what it was"
    assert (result.former_top1 or 0) > (by_hand.gated_top1 or 0), "the gate was the best already, and tests nothing"
    assert not result.polished
    assert RunFolder(Path(str(result.run))).record()["gate_target"] == {"threshold": [0.7]}


def test_another_gate_is_another_run(gated: Path, tmp_path: Path) -> None:
    """Cascades with other gates have the same weights: what one gate began would go on with the other."""
    run = shutil.copytree(gated, tmp_path / "run")
    given = {"run": str(run), "epochs": 1, "out": str(tmp_path / "polished"), **COMMON}
    kdcompress.polish(**given)
    shutil.rmtree(run)
    kdcompress.gate_calibrate(run=str(gated.parent / "cascade"), threshold=(0.9,), out=str(run), **COMMON)
    with pytest.raises(UserError, match="has changed since"):
        kdcompress.polish(resume=True, **given)


def test_a_refused_polish_leaves_no_folder(gated: Path, tmp_path: Path) -> None:
    """The corrected command would find its folder taken."""
    with pytest.raises(UserError, match="sdg"):
        kdcompress.polish(run=str(gated), epochs=1, opt="sdg", out=str(tmp_path / "polished"), **COMMON)
    assert not (tmp_path / "polished").exists()


def test_only_a_gated_cascade_can_be_polished(gated: Path, tmp_path: Path) -> None:
    """The user learns what to do first, before anything is made."""
    out = tmp_path / "polished"
    with pytest.raises(UserError, match="has no gate") as refused:
        kdcompress.polish(run=str(gated.parent / "cascade"), out=str(out), **COMMON)
    assert "kdcompress.gate_calibrate" in refused.value.remedy
    with pytest.raises(UserError, match="single network"):
        kdcompress.polish(run=str(gated.parent / "teacher"), out=str(out), **COMMON)
    assert not out.exists()
