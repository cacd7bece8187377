"""``export``, and ``eval`` and ``profile-flops`` of what it wrote."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcompress
from chains import COMMON, TINY, Chain
from cli.shell import photos
from data.images import random_image
from heard import Heard
from kdcompress.api import onnx_file, quantized
from kdcompress.api.check import check_exported
from kdcompress.api.exported_file import evaluate_file
from kdcompress.data import Data, load_source
from kdcompress.engine.progress import Silent
from kdcompress.errors import UserError
from kdcompress.export import onnx_network, verify
from kdcompress.gating import Measure
from kdcompress.models.loading import load_network
from kdcompress.options import DataOptions, EvalOptions
from kdcompress.runs import RunFolder

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

SAME = (
    "exit_rates",
    "expected_macs",
    "expected_macs_ratio",
    "measure",
    "thresholds",
    "top1",
    "macs",
    "members",
    "params",
)


@pytest.fixture(scope="module")
def exported(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("exported") / "gated.onnx"
    return kdcompress.export_network(run=chain.gated.run, out=str(file))


def test_the_file_is_scored_as_the_run(chain: Chain, exported: Any) -> None:
    """What is deployed is less accurate, or costs more, than what was promised."""
    assert exported.largest_difference <= 1e-4
    assert (exported.top1, exported.top1_agreement) == (exported.pytorch_top1, 100.0)
    assert exported.exit_rates == chain.gated.exit_rates
    run, file = (kdcompress.evaluate(run=str(each), device="cpu") for each in (chain.gated.run, exported.file))
    assert {key: getattr(run, key) for key in SAME} == {key: getattr(file, key) for key in SAME}
    assert file.loss == pytest.approx(run.loss, rel=1e-4)
    assert (file.run, file.file) == (None, exported.file)


def test_the_file_knows_its_cost(chain: Chain, exported: Any) -> None:
    """Who has the file alone cannot say what it costs."""
    run, file = (kdcompress.profile_flops(model=str(each)) for each in (chain.gated.run, exported.file))
    keys = ("macs", "params", "members", "exit_rates", "macs_ratio", "input_size", "architecture")
    assert {key: getattr(run, key) for key in keys} == {key: getattr(file, key) for key in keys}
    with pytest.raises(UserError, match="needs the network"):
        kdcompress.profile_flops(model=exported.file, by_module=True)


def test_options_without_effect_on_a_file_are_refused() -> None:
    """A user believes that the file was scored in bf16, or by the GPU."""
    check_exported(EvalOptions(precision="fp32"), "arch")
    for options in (EvalOptions(precision="bf16"), EvalOptions(device="cuda"), EvalOptions(arch="lenet5")):
        with pytest.raises(UserError, match="exported file"):
            check_exported(options, "arch")


def test_a_file_of_ones_own_photos_keeps_their_division(tmp_path: Path) -> None:
    """Another share for calibration would be scored, most of it trained on, without a word."""
    root = photos(tmp_path / "photos")
    given: dict[str, Any] = {"data": str(root), "holdout": 0.4, **COMMON}
    made = kdcompress.train_teacher(model=TINY, out=str(tmp_path / "run"), **given)
    file = kdcompress.export_network(run=made.run, out=str(tmp_path / "file.onnx")).file
    heard = Heard()
    scored = kdcompress.evaluate(run=file, data=str(root), split="calibration", reporter=heard)
    assert (scored.n, scored.top1) == (made.n, pytest.approx(made.top1, abs=1e-3))
    assert not any("is not what" in note for note in heard.notes)
    random_image(7).save(root / "train" / "cat" / "another.png")
    kdcompress.evaluate(run=file, data=str(root), reporter=heard)
    assert any("is not what file.onnx was made from" in note for note in heard.notes)
    with pytest.raises(UserError, match=r"score_teacher.*exported file"):
        kdcompress.evaluate(run=file, data=str(root), score_teacher=True)
    with pytest.raises(UserError, match="runs on the CPU"):
        kdcompress.benchmark(networks=[file], device="cuda")


def test_the_next_command_of_a_pipe_takes_the_file(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``export RUN | eval -`` scores the run, and not what was made of it."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(exported.to_dict())))
    assert kdcompress.profile_flops(model="-").file == exported.file


def test_the_file_names_no_path_of_this_machine(chain: Chain, exported: Any) -> None:
    """A file that is given away tells how its maker's folders are called."""
    content = Path(exported.file).read_bytes()
    assert str(chain.folder).encode() not in content
    assert b"digits" in content


def test_what_exists_is_not_overwritten(exported: Any) -> None:
    """A second export takes the place of a file that is in use."""
    before = Path(exported.file).read_bytes()
    with pytest.raises(UserError, match="exists already"):
        kdcompress.export_network(run=exported.run, out=exported.file)
    assert Path(exported.file).read_bytes() == before


def test_the_file_is_named_like_the_run(chain: Chain) -> None:
    """Two exports of one run are one file."""
    first, second = (
        kdcompress.export_network(run=chain.student.run, precision=precision, preprocess=True)
        for precision in ("fp32", "int8")
    )
    assert first.file == f"{chain.student.run}.onnx"
    assert second.file == f"{chain.student.run}-int8.onnx"
    for each in (first, second):
        found = kdcompress.evaluate(run=each.file, split="calibration")
        assert (found.top1, found.precision) == (each.top1, each.precision)


def test_int8_has_a_gate_of_its_own(chain: Chain, exported: Any, tmp_path: Path) -> None:
    """Thresholds of float32 logits let the wrong images exit in int8."""
    heard = Heard()
    result = kdcompress.export_network(
        run=chain.gated.run, precision="int8", out=str(tmp_path / "int8.onnx"), reporter=heard
    )
    assert any("Choosing thresholds" in note for note in heard.notes)
    assert result.thresholds != chain.gated.thresholds
    assert result.bytes < exported.bytes
    assert result.pytorch_top1 == exported.top1
    found = kdcompress.evaluate(run=result.file, split="calibration")
    assert (found.top1, found.exit_rates) == (result.top1, result.exit_rates)


def test_a_file_that_differs_is_not_kept(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file is deployed."""
    genuine = verify.Comparison.add

    def shifted(self: Any, file: Any, *rest: Any) -> None:
        genuine(self, (file[0] + 0.01, file[1]), *rest)

    monkeypatch.setattr(verify.Comparison, "add", shifted)
    with pytest.raises(UserError, match="is not the network in PyTorch"):
        kdcompress.export_network(run=chain.student.run, out=str(tmp_path / "wrong.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file is taken for a whole one."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"The disk is full: .*half\.onnx"):
        kdcompress.export_network(run=chain.student.run, out=str(tmp_path / "half.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_loaded_is_not_kept(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails where it is deployed."""

    def refuses(file: Path) -> None:
        raise UserError(f"{file} cannot be loaded by ONNX Runtime", "")

    monkeypatch.setattr(onnx_file, "open_onnx", refuses)
    with pytest.raises(UserError, match="cannot be loaded"):
        kdcompress.export_network(run=chain.student.run, out=str(tmp_path / "refused.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"out": "file.txt"}, "does not end in .onnx"),
        ({"out": "nowhere/file.onnx"}, "There is no folder"),
        ({"opset": 11}, "11 is out of range"),
        ({"format": "onxn"}, "onxn.* is unknown"),
        ({"precision": "bf16"}, "bf16.* is unknown"),
        ({"data": "gone/"}, "gone"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_cannot_be_is_refused(
    chain: Chain, options: dict[str, Any], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slip of the pen costs minutes, or leaves a file that nobody wanted."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        kdcompress.export_network(**{"run": chain.student.run, "out": "made.onnx", **options})
    assert not list(tmp_path.iterdir())


def test_without_the_extra(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed it meets an ImportError after a minute."""
    monkeypatch.setattr(onnx_network, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnx, onnxscript, onnxruntime") as raised:
        kdcompress.export_network(run=chain.gated.run)
    assert raised.value.remedy == "pip install 'kdcompress[onnx]'"


def test_a_network_that_names_no_data(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint cannot be exported, or is said to have an accuracy that nobody measured."""
    weights, heard = Path(str(chain.teacher.run)) / "model.safetensors", Heard()
    monkeypatch.chdir(tmp_path)
    given = {"run": str(weights), "arch": f"{chain.teacher.architecture},mean=0.3,std=0.4,input_size=1x8x8"}
    result = kdcompress.export_network(**given, reporter=heard)
    assert any("verified on random images" in note for note in heard.notes)
    assert (result.top1, result.n, result.file) == (None, None, str(tmp_path / "runs" / "resnet8_cifar.onnx"))
    for option in ({"precision": "int8"}, {"preprocess": True}):
        with pytest.raises(UserError, match=r"names no data|no data are named"):
            kdcompress.export_network(**given, **option)
    with pytest.raises(UserError, match="names no data"):
        kdcompress.evaluate(run=str(result.file))


def test_a_file_is_no_network_to_train_on(exported: Any) -> None:
    """A file is taken for a checkpoint, and its architecture is asked for."""
    with pytest.raises(UserError, match="is an ONNX file"):
        kdcompress.gate_calibrate(run=exported.file, max_drop=1.0)


def test_full_runs_every_member(chain: Chain, tmp_path: Path) -> None:
    """``--full`` leaves the gate in."""
    result = kdcompress.export_network(run=chain.gated.run, full=True, out=str(tmp_path / "full.onnx"))
    assert result.thresholds is None
    assert kdcompress.evaluate(run=result.file, split="calibration").top1 == chain.gated.full_top1


def test_the_target_of_the_gate_is_kept(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The int8 gate loses more accuracy than was allowed, or runs more members than it must."""
    genuine, targets = quantized.search, list[dict[str, Any]]()

    def noted(scores: Any, measure: Measure, **target: Any) -> Any:
        targets.append({"measure": measure.name, **target})
        return genuine(scores, measure, **target)

    monkeypatch.setattr(quantized, "search", noted)
    kdcompress.export_network(run=chain.gated.run, precision="int8", out=str(tmp_path / "int8.onnx"))
    assert targets == [{"measure": chain.gated.measure, "max_drop": 2.0}]


def test_the_int8_gate_of_an_outer_run_has_the_target_of_the_gate(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What compress was asked for counts from the teacher: its gate in int8 would lose more than the run's own."""
    shutil.copytree(str(chain.gated.run), tmp_path / "outer")
    outer = RunFolder(tmp_path / "outer")
    record = outer.record()
    assert record["gate_target"] == {"max_drop": 2.0}
    asked = {"target_macs": 1.0, "confidence_level": 0.9}
    outer.finish(
        {**record, "command": "compress", "options": {**record["options"], "max_drop": 9}, "gate_target": asked}
    )
    budgets = list[tuple[float, float]]()

    def within(scores: Any, measure: Measure, most: float, level: float, groups: Any) -> Any:
        budgets.append((most, level))
        return quantized.search(scores, measure, max_macs=most)

    monkeypatch.setattr(quantized, "search_within", within)
    kdcompress.export_network(run=str(outer.path), precision="int8", out=str(tmp_path / "int8.onnx"))
    assert budgets == [(chain.teacher.macs, 0.9)]


def test_int8_without_a_record_costs_what_the_gate_did(chain: Chain, tmp_path: Path) -> None:
    """A cascade from the hub has no run.json: its thresholds, made for other logits, stayed."""
    shutil.copytree(str(chain.gated.run), tmp_path / "bare")
    (tmp_path / "bare" / "run.json").unlink()
    known = {"data": str(chain.gated.data), "precision": "int8"}
    made = kdcompress.export_network(run=str(tmp_path / "bare"), out=str(tmp_path / "int8.onnx"), **known)
    exact = kdcompress.export_network(
        run=str(tmp_path / "bare"), out=str(tmp_path / "fp32.onnx"), data=str(chain.gated.data)
    )
    assert made.thresholds != exact.thresholds
    assert made.expected_macs == pytest.approx(exact.expected_macs, rel=0.1)


def test_an_int8_guarantee_is_in_the_result(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script could not tell whether a gate had passed; and ranges were fitted to the images of the test."""
    gated = kdcompress.gate_calibrate(
        run=chain.cascade.run, max_drop=20.0, confidence_level=0.8, out=str(tmp_path / "promised")
    )
    genuine, seen = quantized.quantize_member, list[np.ndarray]()

    def noted(member: Any, ranges: Any, *rest: Any) -> Any:
        seen.append(np.concatenate(list(ranges)))
        return genuine(member, [seen[-1]], *rest)

    monkeypatch.setattr(quantized, "quantize_member", noted)
    made = kdcompress.export_network(run=gated.run, precision="int8", out=str(tmp_path / "int8.onnx"))
    assert made.promise is not None
    assert made.promise["max_drop"] == 20.0
    network = kdcompress.load(gated.run)
    data = Data(load_source("digits"), network.prep, DataOptions(), torch.device("cpu"))
    fit = {
        x.numpy().tobytes(): int(y)
        for batch, labels in data.evaluation("fit", 64)
        for x, y in zip(batch, labels, strict=True)
    }
    assert {fit[image.tobytes()] for image in seen[0]} == set(range(10)), "of all classes, and none held out"


@pytest.mark.parametrize("prefix", ["", "unlabelled:"])
def test_a_file_from_photos_names_no_folder_and_is_scored_beside_its_run(tmp_path: Path, prefix: str) -> None:
    """The path of a machine would be shipped; or compress, which knows the photos, could not score its own file."""
    data = prefix + str(photos(tmp_path / "photos", each=20))
    folder = data.removeprefix(prefix)
    teacher = kdcompress.train_teacher(model=TINY, data=folder, out=str(tmp_path / "teacher"), **COMMON)
    student = kdcompress.distill(teacher=teacher.run, student=TINY, data=data, out=str(tmp_path / "run"), **COMMON)
    run = str(student.run)
    made = kdcompress.export_network(run=run, out=str(tmp_path / "net.onnx"))
    assert str(tmp_path).encode() not in Path(made.file).read_bytes()
    options = EvalOptions(run=made.file, split="calibration")
    with pytest.raises(UserError, match="names no data"):
        evaluate_file(options, Silent())
    assert evaluate_file(options, Silent(), load_network(run)).n == kdcompress.evaluate(run=run, split="calibration").n


def test_members_that_no_image_reached_are_verified_too(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a gate at which all calibration images stop, a broken member would be shipped as verified."""
    stopped = kdcompress.gate_calibrate(run=chain.cascade.run, threshold=[0.0], out=str(tmp_path / "stopped"))
    genuine, gates = verify.compare, []

    def noted(run: Any, after_each: Any, gate: Any, images: Any) -> Any:
        gates.append(gate)
        return genuine(run, after_each, gate, images)

    monkeypatch.setattr(sys.modules["kdcompress.api.export"], "compare", noted)
    kdcompress.export_network(run=stopped.run, out=str(tmp_path / "stopped.onnx"))
    assert [gate is None for gate in gates] == [False, True]
    kdcompress.export_network(run=chain.gated.run, out=str(tmp_path / "gated.onnx"))
    assert len(gates) == 3


def test_a_run_whose_data_are_elsewhere_is_exported(chain: Chain, tmp_path: Path) -> None:
    """Whoever copies a run to another machine could not export it, where a bare checkpoint can be."""
    shutil.copytree(str(chain.gated.run), tmp_path / "moved")
    moved = RunFolder(tmp_path / "moved")
    record = moved.record()
    moved.finish({**record, "options": {**record["options"], "data": "/gone/photos"}})
    heard = Heard()
    made = kdcompress.export_network(run=str(moved.path), out=str(tmp_path / "net.onnx"), reporter=heard)
    assert made.n is None
    assert any("/gone/photos" in note and "random images" in note for note in heard.notes)
    for given in ({"precision": "int8"}, {"data": "/gone/photos"}, {"preprocess": True}):
        with pytest.raises(UserError, match="/gone/photos"):
            kdcompress.export_network(run=str(moved.path), out=str(tmp_path / "other.onnx"), **given)
