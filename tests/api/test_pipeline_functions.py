"""The pipeline end to end on digits, as Python functions, and what its runs record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kdcompress
from chains import (
    CALIBRATION,
    COMMON,
    SMALL,
    TEST,
    TINY,
    WHERE,
    Chain,
    logits_on,
    record_of,
    same_weights,
    source_and_data,
    top1,
    weights_of,
)
from cli.shell import photos
from heard import Heard
from kdcompress.api.nested import adopt
from kdcompress.api.starting import check_seen
from kdcompress.api.teacher import may_have_seen_calibration
from kdcompress.data import Data, load_source
from kdcompress.errors import UserError
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.build import ModelSpec
from kdcompress.models.loading import Network, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.options import CompressOptions, TrainingOptions
from kdcompress.results import EvalResult, ProfileResult, TrainResult
from kdcompress.runs import CONFIG, METRICS, RECORD, WEIGHTS, RunFolder


def test_results_are_typed_and_complete(chain: Chain) -> None:
    """Scripts read these fields; a missing one breaks the next link of the pipe."""
    for result, command in (
        (chain.teacher, "train-teacher"),
        (chain.student, "distill"),
        (chain.cascade, "add-res-student"),
    ):
        assert type(result) is TrainResult
        assert result.command == command
        assert result.run is not None
        assert Path(result.run).is_absolute()
        assert (result.data, result.num_classes, result.input_size) == ("digits", 10, (1, 8, 8))
        assert (result.split, result.n, result.seed) == ("calibration", CALIBRATION, 0)
        assert result.epochs == (2 if command == "train-teacher" else 1)
        assert result.flops == 2 * result.macs
        assert result.seconds > 0
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["run"] == result.run
    assert (chain.teacher.method, chain.student.method, chain.cascade.method) == ("ce", "reskd", "reskd")
    assert chain.teacher.architecture == "resnet8_cifar"
    assert chain.student.architecture == "residual_cascade"


def test_run_folders_hold_what_they_should(chain: Chain) -> None:
    """A finished run has no resume state left over and everything else in place."""
    for result in (chain.teacher, chain.student, chain.cascade, chain.longer):
        names = {path.name for path in Path(str(result.run)).iterdir()}
        assert names == {CONFIG, WEIGHTS, RECORD, METRICS}
    assert {path.name for path in Path(str(chain.gated.run)).iterdir()} == {CONFIG, WEIGHTS, RECORD}


def test_reported_accuracy_is_that_of_the_saved_network(chain: Chain) -> None:
    """The figure printed must be the file's, not the one of some network in memory."""
    for result in (chain.teacher, chain.student, chain.cascade, chain.longer):
        logits, labels = logits_on(load_network(str(result.run)), "calibration")
        assert result.top1 == pytest.approx(top1(logits, labels), abs=1e-3)
        assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-4)


def test_energies_are_those_of_the_sums(chain: Chain) -> None:
    """The energy decides whether another res-student is worth its cost."""
    told, _ = logits_on(load_network(str(chain.teacher.run)), "calibration")
    cascade = load_network(str(chain.longer.run)).model
    assert isinstance(cascade, ResidualCascade)
    with torch.no_grad():
        x = next(iter(source_and_data(load_network(str(chain.longer.run)).prep).evaluation("calibration", 1000)))[0]
        sums = cascade.forward_stages(x)
    expected = [float((told - total).square().mean()) for total in sums]
    assert chain.longer.energies == pytest.approx(expected, rel=1e-4)
    assert chain.cascade.energies == pytest.approx(expected[:2], rel=1e-4)
    assert chain.student.energies == pytest.approx(expected[:1], rel=1e-4)
    assert expected[0] > expected[1] > expected[2]


def test_frozen_members_are_not_touched(chain: Chain) -> None:
    """A later member trained into the earlier ones would break every earlier threshold and number."""
    before, after = weights_of(chain.cascade.run), weights_of(chain.longer.run)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {key.split(".")[1] for key in after} == {"0", "1", "2"}


def test_costs_add_up(chain: Chain) -> None:
    """The ratio to the teacher is the product's headline."""
    cascade = chain.longer
    assert cascade.members is not None
    assert [member["architecture"] for member in cascade.members] == [SMALL, TINY, "lenet5,width=0.5"]
    alone = kdcompress.profile_flops(model="resnet8_cifar,in_chans=1,input_size=1x8x8")
    assert chain.teacher.macs == alone.macs
    assert cascade.macs == sum(member["macs"] for member in cascade.members)
    assert cascade.params == sum(member["params"] for member in cascade.members)
    assert cascade.teacher == chain.teacher.run
    assert cascade.teacher_macs == chain.teacher.macs
    assert cascade.macs_ratio == pytest.approx(cascade.macs / chain.teacher.macs, abs=1e-6)
    assert chain.teacher.teacher_macs is None


def test_provenance_is_written_down(chain: Chain) -> None:
    """A year later, run.json is all that says where the weights come from."""
    record = record_of(chain.longer.run)
    teacher = load_network(str(chain.teacher.run))
    assert record["status"] == "finished"
    assert (record["command"], record["method"]) == ("add-res-student", "reskd")
    assert record["parents"] == [chain.cascade.run]
    assert record["teacher"]["reference"] == chain.teacher.run
    assert record["teacher"]["fingerprint"] == teacher.fingerprint()
    assert record["teacher"]["macs"] == chain.teacher.macs
    assert record["options"]["data"] == "digits"
    assert record["options"]["holdout"] == 0.1
    assert record["options"]["epochs"] == 1
    assert record["data_fingerprint"] == load_source("digits").fingerprint
    assert record["seed"] == 0
    assert {"kdcompress", "torch", "timm", "python"} <= set(record["versions"])
    assert record["result"] == json.loads(json.dumps(chain.longer.to_dict()))
    assert record_of(chain.teacher.run)["teacher"] is None


def test_the_gate_is_counted_by_hand(chain: Chain) -> None:
    """expected_macs is what the user pays: each member's MACs times the share of images that ran it."""
    gated = chain.gated
    network = load_network(str(gated.run))
    cascade = network.model
    assert isinstance(cascade, ResidualCascade)
    assert cascade.gate is not None
    assert list(cascade.gate.thresholds) == gated.thresholds
    x, labels = next(iter(source_and_data(network.prep).evaluation("calibration", 1000)))
    with torch.no_grad():
        logits, stages = cascade.forward_gated(x)
        full = cascade.forward_full(x)
    assert gated.members is not None
    macs = [member["macs"] for member in gated.members]
    by_hand = sum(sum(macs[: stage + 1]) for stage in stages.tolist()) / CALIBRATION
    assert gated.expected_macs == pytest.approx(by_hand, abs=0.1)
    assert gated.expected_macs_ratio == pytest.approx(by_hand / chain.teacher.macs, abs=1e-5)
    shares = [float((stages == stage).float().mean()) for stage in range(3)]
    assert gated.exit_rates == pytest.approx(shares, abs=1e-5)
    assert gated.gated_top1 == pytest.approx(top1(logits, labels), abs=1e-3)
    assert gated.full_top1 == pytest.approx(top1(full, labels), abs=1e-3)
    assert gated.gated_top1 >= gated.full_top1 - 2.0
    assert gated.expected_macs is not None
    assert gated.expected_macs < gated.macs
    assert (gated.split, gated.n) == ("calibration", CALIBRATION)
    assert same_weights(gated.run, chain.longer.run)


def test_eval_scores_gated_and_full_on_the_test_split(chain: Chain) -> None:
    """The test split is for this alone, and it is what users quote."""
    result = kdcompress.evaluate(run=chain.gated.run, **WHERE)
    assert type(result) is EvalResult
    assert (result.split, result.n, result.data) == ("test", TEST, "digits")
    network = load_network(str(chain.gated.run))
    cascade = network.model
    assert isinstance(cascade, ResidualCascade)
    x, labels = next(iter(source_and_data(network.prep).evaluation("test", 1000)))
    with torch.no_grad():
        logits, stages = cascade.forward_gated(x)
        full = cascade.forward_full(x)
    assert result.top1 == result.gated_top1 == pytest.approx(top1(logits, labels), abs=1e-3)
    assert result.full_top1 == pytest.approx(top1(full, labels), abs=1e-3)
    assert result.exit_rates == pytest.approx([float((stages == stage).float().mean()) for stage in range(3)], abs=1e-5)
    assert result.members is not None
    macs = [member["macs"] for member in result.members]
    by_hand = sum(sum(macs[: stage + 1]) for stage in stages.tolist()) / TEST
    assert result.expected_macs == pytest.approx(by_hand, abs=0.1)
    assert result.macs_speedup == pytest.approx(sum(macs) / by_hand, abs=1e-3)
    assert result.thresholds == chain.gated.thresholds
    assert result.teacher_macs == chain.teacher.macs
    assert result.hardware


def test_eval_of_a_plain_network_has_no_gate(chain: Chain) -> None:
    """Keys that do not apply are left out of the JSON, not null."""
    result = kdcompress.evaluate(run=chain.teacher.run, split="calibration", **WHERE)
    assert result.top1 == pytest.approx(chain.teacher.top1, abs=1e-3)
    assert result.n == CALIBRATION
    assert not {"exit_rates", "gated_top1", "thresholds", "expected_macs", "members"} & set(result.to_dict())
    assert kdcompress.evaluate(run=chain.longer.run, split="calibration", **WHERE).top1 == chain.longer.top1


def test_profile_of_a_gated_cascade(chain: Chain) -> None:
    """Cost as expected with the exits of the calibration split, and by module."""
    result = kdcompress.profile_flops(model=chain.gated.run, by_module=True)
    assert type(result) is ProfileResult
    assert (result.macs, result.params, result.members) == (
        chain.longer.macs,
        chain.longer.params,
        chain.longer.members,
    )
    assert result.expected_macs == pytest.approx(chain.gated.expected_macs, rel=1e-4)
    assert result.macs_ratio == chain.longer.macs_ratio
    assert sum(result.macs_by_operator.values()) == result.macs
    assert result.by_module is not None
    assert any(entry["module"] == "members.1.conv1" for entry in result.by_module)
    assert kdcompress.profile_flops(model=chain.longer.run).expected_macs is None
    with pytest.raises(UserError, match="has 10 classes"):
        kdcompress.profile_flops(model=chain.longer.run, num_classes=100)


def test_a_member_added_to_a_gated_cascade(chain: Chain, tmp_path: Path) -> None:
    """The old gate cannot know the new member: it goes, and the energies go on as a whole series."""
    heard = Heard()
    result = kdcompress.add_res_student(
        run=chain.gated.run, arch=TINY, out=str(tmp_path / "more"), reporter=heard, **COMMON
    )
    assert any("gate" in note for note in heard.notes)
    cascade = load_network(str(result.run)).model
    assert isinstance(cascade, ResidualCascade)
    assert cascade.gate is None
    assert len(cascade.members) == 4
    assert result.energies is not None
    assert result.energies[:3] == pytest.approx(chain.longer.energies, rel=1e-4)
    assert len(result.energies) == 4


def test_a_res_student_for_a_plain_student(chain: Chain, tmp_path: Path) -> None:
    """RUN may be any distilled student; its teacher is on record."""
    student = kdcompress.distill(teacher=chain.teacher.run, student=SMALL, out=str(tmp_path / "kd"), **COMMON)
    result = kdcompress.add_res_student(
        run=student.run, arch=TINY, residual_loss="mse", out=str(tmp_path / "c"), **COMMON
    )
    assert result.members is not None
    assert len(result.members) == 2
    assert result.energies is not None
    assert result.energies[1] < result.energies[0]
    plain, member = weights_of(student.run), weights_of(result.run)
    assert all(torch.equal(value, member[f"members.0.{key}"]) for key, value in plain.items())


@pytest.mark.parametrize("loss", ["kl", "mse"])
def test_a_new_member_starts_at_zero(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """Before its first step the sum is the former student, to the bit."""
    first: list[dict[str, Any]] = []
    genuine = ResKdTask.forward

    def spy(self: Any, input: torch.Tensor, target: torch.Tensor) -> Any:
        result = genuine(self, input, target)
        if not first:
            first.append({"output": result["output"].detach(), "sum": self.members(input)})
        return result

    monkeypatch.setattr(ResKdTask, "forward", spy)
    kdcompress.add_res_student(
        run=chain.student.run,
        arch=TINY,
        residual_loss=loss,
        residual_warmup=0,
        sum_weight=0.5,
        out=str(tmp_path / "run"),
        **COMMON,
    )
    assert torch.equal(first[0]["output"], 0.5 * first[0]["sum"])


def test_sum_weight_defaults_to_the_share_of_the_macs(chain: Chain, tmp_path: Path) -> None:
    """In full it hands on a small student's errors to a large res-student; in part it loses what a large one knows."""
    first, second, third = chain.longer.members
    config = json.loads((Path(str(chain.longer.run)) / "config.json").read_text())
    weights = [entry.get("sum_weight") for entry in config["model_args"]["members"]]
    before = first["macs"] + second["macs"]
    expected = [first["macs"] / before, before / (before + third["macs"])]
    assert weights == [None, *(pytest.approx(share, abs=1e-4) for share in expected)]
    assert [member.get("sum_weight") for member in chain.longer.members] == weights
    run = kdcompress.add_res_student(
        run=chain.student.run, arch=TINY, sum_weight=0.25, out=str(tmp_path / "run"), **{**COMMON, "epochs": 1}
    ).run
    model = load_network(str(run)).model
    assert isinstance(model, ResidualCascade)
    x = torch.rand(4, 1, 8, 8)
    one, other = (member.eval()(x) for member in model.members)
    torch.testing.assert_close(model.eval()(x), 0.25 * one + other)


def test_a_student_starts_from_the_teacher(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student and a res-student of the teacher's architecture are the teacher before their first step."""
    seen: list[dict[str, Any]] = []
    for task in (KdTask, ResKdTask):

        def spy(self: Any, *given: Any, genuine: Any = task.forward, **more: Any) -> Any:
            seen.append({key: value.clone() for key, value in self.trainable_module.state_dict().items()})
            return genuine(self, *given, **more)

        monkeypatch.setattr(task, "forward", spy)
    teacher = load_network(str(chain.teacher.run))
    spec = json.loads((Path(str(chain.teacher.run)) / "run.json").read_text())["options"]["model"]
    common = {**COMMON, "epochs": 1, "from_teacher": True}
    kdcompress.distill(teacher=chain.teacher.run, method="kd", student=spec, out=str(tmp_path / "kd"), **common)
    student = seen[0]
    seen.clear()
    heard = Heard()
    kdcompress.add_res_student(run=chain.student.run, arch=spec, out=str(tmp_path / "run"), reporter=heard, **common)
    for state in (student, seen[0]):
        assert state.keys() == teacher.model.state_dict().keys()
        assert all(torch.equal(value, teacher.model.state_dict()[name]) for name, value in state.items())
    assert any("100% of its parameters" in line for line in heard.notes)


def test_a_teacher_that_may_have_seen_calibration_images_is_reported(chain: Chain, tmp_path: Path) -> None:
    """A gate whose images the weights have learned from would promise what it cannot keep, and nobody would know."""
    spec = json.loads((Path(str(chain.teacher.run)) / "run.json").read_text())["options"]["model"]
    weights = Path(str(chain.teacher.run)) / WEIGHTS
    common = {**COMMON, "method": "reskd", "student": spec, "data": "digits", "from_teacher": True}

    def distilled(name: str, **given: Any) -> TrainResult:
        return kdcompress.distill(**{**common, "out": str(tmp_path / name), **given})

    known = distilled("known", teacher=chain.teacher.run)
    foreign = distilled("foreign", teacher=str(weights), teacher_arch=f"{spec},in_chans=1")
    assert (known.calibration_seen, foreign.calibration_seen) == (False, True)
    teacher = load_network(str(chain.teacher.run))
    for holdout, seen in ((0.1, False), (0.3, True)):  # a copy of the data in another folder
        data = Data(load_source("digits"), teacher.prep, TrainingOptions(holdout=holdout), torch.device("cpu"))
        assert may_have_seen_calibration(teacher, data.source.spec, data.source.fingerprint, data.holdout) == seen
    grown = (str(teacher.record["options"]["data"]), "another", 0.1)  # images have been added: another division
    assert may_have_seen_calibration(teacher, *grown)
    assert not may_have_seen_calibration(teacher, "elsewhere", *grown[1:])
    assert distilled("once-more", teacher=foreign.run, from_teacher=False, method="kd").calibration_seen is False
    for student, seen in ((known, False), (foreign, True)):
        name = Path(str(student.run)).name
        cascade = kdcompress.add_res_student(run=student.run, arch=TINY, out=str(tmp_path / f"{name}-r1"), **COMMON)
        heard = Heard()
        given = {"run": cascade.run, "max_drop": 20.0, "confidence_level": 0.9, "reporter": heard, **WHERE}
        gated = kdcompress.gate_calibrate(**given, out=str(tmp_path / f"{name}-gated"))
        assert (cascade.calibration_seen, gated.calibration_seen) == (seen, seen)
        assert any("the guarantee does not hold" in line for line in heard.notes) == seen


def test_weights_of_timm_that_keep_their_classifier_may_know_the_images() -> None:
    """A guarantee was given for ImageNet on the very images that timm had trained on."""
    spec, heard = ModelSpec.parse("resnet18"), Heard()
    for classes, seen in ((1000, True), (10, False)):
        network = Network(torch.nn.Identity(), "resnet18", {}, "resnet18")
        network.model.pretrained_cfg = {"num_classes": classes}
        check_seen(network, spec, heard.note)
        assert network.record.get("calibration_seen", False) == seen
    assert len(heard.notes) == 1


def test_a_gate_for_other_images_is_a_run_like_any_other(chain: Chain, tmp_path: Path) -> None:
    """Its record named the new data with the fingerprint of the old: later commands refused it as changed."""
    root = photos(tmp_path / "photos", tuple(map(str, range(10))), mode="L")
    given = {"run": chain.longer.run, "data": str(root), "holdout": 0.4, **WHERE}
    gated = kdcompress.gate_calibrate(**given, threshold=(0.5,), out=str(tmp_path / "gated"))
    scored = kdcompress.evaluate(run=gated.run, split="calibration", **WHERE)
    assert (scored.data, scored.n) == (str(root), gated.n)
    assert scored.top1 == pytest.approx(gated.gated_top1, abs=1e-3)
    assert not gated.calibration_seen
    again = kdcompress.gate_calibrate(run=gated.run, threshold=(0.5,), out=str(tmp_path / "again"), **WHERE)
    assert again.gated_top1 == gated.gated_top1
    network = load_network(str(again.run))
    fingerprint = record_of(chain.longer.run)["data_fingerprint"]
    assert not may_have_seen_calibration(network, "digits", fingerprint, 0.1)
    assert may_have_seen_calibration(network, "digits", fingerprint, 0.4), "its weights were trained with 0.1"


def test_a_result_on_test_images_keeps_what_its_gate_does_on_others(chain: Chain, tmp_path: Path) -> None:
    """``compress`` reports the test split: int8 thresholds were then chosen by it, or a later gate had its rates."""
    inner, outer = RunFolder(Path(str(chain.gated.run))), RunFolder(tmp_path / "outer")
    outer.path.mkdir()
    tested = dataclasses.replace(chain.gated, exit_rates=[0.25, 0.5, 0.25], expected_macs=1.0, split="test")
    adopt(outer, inner, "compress", CompressOptions(out=str(outer.path)), tested)
    assert kdcompress.profile_flops(model=str(outer.path)).exit_rates == chain.gated.exit_rates
    later = kdcompress.gate_calibrate(run=str(outer.path), threshold=(0.9,), out=str(tmp_path / "later"), **WHERE)
    assert kdcompress.profile_flops(model=later.run).exit_rates == later.exit_rates != chain.gated.exit_rates


def test_a_student_takes_the_normalisation_it_starts_with(chain: Chain, tmp_path: Path) -> None:
    """The teacher's first layer is worth little on images that are scaled otherwise."""
    spec = "resnet8_cifar,mean=0.1,std=0.9"
    teacher = kdcompress.train_teacher(model=spec, data="digits", out=str(tmp_path / "teacher"), **COMMON)
    heard, own = Heard(), {**COMMON, "arch": spec, "from_teacher": True, "teacher": teacher.run}
    kdcompress.add_res_student(run=chain.student.run, **own, out=str(tmp_path / "longer"), reporter=heard)
    assert any("another normalisation than the cascade" in note for note in heard.notes)
    given = {**COMMON, "teacher": teacher.run, "method": "kd", "from_teacher": True}
    prep = {}
    for student in ("resnet8_cifar", "resnet8_cifar,mean=0.2"):
        run = kdcompress.distill(**given, student=student, out=str(tmp_path / student)).run
        prep[student] = load_network(str(run)).prep
    assert (prep["resnet8_cifar"].mean, prep["resnet8_cifar"].std) == ((0.1,), (0.9,))
    assert prep["resnet8_cifar,mean=0.2"].mean == (0.2,)


def test_a_student_that_cannot_start_from_the_teacher_is_reported(chain: Chain, tmp_path: Path) -> None:
    """Who asked for it would take the result for what it is not."""
    heard = Heard()
    given = {**COMMON, "teacher": chain.teacher.run, "method": "kd", "student": TINY}
    result = kdcompress.distill(**given, out=str(tmp_path / "told"), from_teacher=True, reporter=heard)
    assert any("is initialised randomly" in line for line in heard.notes)
    kdcompress.distill(**given, out=str(tmp_path / "plain"))
    told, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("told", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in told.items())
    again = kdcompress.distill(**given, out=str(tmp_path / "told"), from_teacher=True, resume=True)
    assert again == result


def test_a_budget_of_macs_is_kept_with_confidence(chain: Chain, tmp_path: Path) -> None:
    """The option would be taken, and the gate cost what it does without."""
    given = {"run": chain.longer.run, "target_macs": 0.4, **WHERE}
    plain = kdcompress.gate_calibrate(**given, out=str(tmp_path / "plain"))
    sure = kdcompress.gate_calibrate(**given, confidence_level=0.95, out=str(tmp_path / "sure"))
    assert plain.cost_bound is None
    assert sure.cost_bound is not None
    assert (sure.cost_bound["confidence_level"], sure.cost_bound["images"]) == (0.95, sure.n)
    assert sure.expected_macs_ratio < sure.cost_bound["macs_ratio"] <= 0.4
    assert sure.expected_macs_ratio < plain.expected_macs_ratio <= 0.4
