"""The commands as functions: the pipeline end to end on digits, and what is written down about it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kdcompress
from heard import Heard
from kdcompress.api import grow as grow_module
from kdcompress.api import job as job_module
from kdcompress.api.grow import Limits
from kdcompress.api.recipes import prepare
from kdcompress.api.teacher import Teacher, may_know_calibration
from kdcompress.data import Data, Preprocess, load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError
from kdcompress.gating import MEASURES
from kdcompress.methods.kd import KdTask
from kdcompress.methods.losses import LOGIT_LOSSES
from kdcompress.methods.reskd import ResKdTask
from kdcompress.methods.rkd_assistant import RkdAssistantTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.models.loading import load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.options import DistillOptions, TrainingOptions
from kdcompress.results import EvalResult, GateResult, ProfileResult, TrainResult
from kdcompress.runs import CONFIG, METRICS, RECORD, WEIGHTS

CPU = Place(torch.device("cpu"), "fp32")
SMALL, TINY = "resnet8_cifar,width=0.5", "resnet8_cifar,width=0.25"
FIT, CALIBRATION, TEST = 1295, 142, 360
COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1}
WHERE: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@dataclasses.dataclass
class Chain:
    """One pipeline, made once for all tests that look at it."""

    folder: Path
    teacher: TrainResult
    student: TrainResult
    cascade: TrainResult
    longer: TrainResult
    gated: GateResult


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")

    def out(name: str) -> dict[str, Any]:
        return {**COMMON, "out": str(folder / name)}

    teacher = kdcompress.train_teacher(model="resnet8_cifar", data="digits", **{**out("teacher"), "epochs": 2})
    student = kdcompress.distill(teacher=teacher.run, method="reskd", student=SMALL, **out("student"))
    cascade = kdcompress.add_res_student(run=student.run, arch=TINY, **out("cascade"))
    longer = kdcompress.add_res_student(run=cascade.run, arch="lenet5,width=0.5", **out("longer"))
    gated = kdcompress.gate_calibrate(run=longer.run, max_drop=2.0, out=str(folder / "gated"), **WHERE)
    return Chain(folder, teacher, student, cascade, longer, gated)


def record_of(run: str | None) -> dict[str, Any]:
    return json.loads((Path(str(run)) / RECORD).read_text())


def weights_of(run: str | None) -> dict[str, torch.Tensor]:
    return load_file(Path(str(run)) / WEIGHTS)


def same_weights(one: str | None, other: str | None) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def source_and_data(prep: Any) -> Data:
    return Data(load_source("digits"), prep, TrainingOptions(), CPU.device)


@torch.no_grad()
def logits_on(network: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(source_and_data(network.prep).evaluation(split, 1000))
    return network.model(batches[0][0]), batches[0][1]


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).float().mean())


# --- the pipeline


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
    assert result.by_module is not None
    assert any(entry["module"] == "members.1.conv1" for entry in result.by_module)
    assert kdcompress.profile_flops(model=chain.longer.run).expected_macs is None


def test_a_member_added_to_a_gated_cascade(chain: Chain, tmp_path: Path) -> None:
    """The old gate cannot know the new member: it goes, and the energies go on as a whole series."""
    notes: list[str] = []

    class Told(job_module.Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    result = kdcompress.add_res_student(
        run=chain.gated.run, arch=TINY, out=str(tmp_path / "more"), reporter=Told(), **COMMON
    )
    assert any("gate" in note for note in notes)
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


def test_the_sum_so_far_weighs_what_its_members_cost(chain: Chain, tmp_path: Path) -> None:
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


def test_who_may_know_the_calibration_images_is_told_on(chain: Chain, tmp_path: Path) -> None:
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
        assert may_know_calibration(teacher, data) == seen
    assert distilled("once-more", teacher=foreign.run, from_teacher=False, method="kd").calibration_seen is False
    for student, seen in ((known, False), (foreign, True)):
        name = Path(str(student.run)).name
        cascade = kdcompress.add_res_student(run=student.run, arch=TINY, out=str(tmp_path / f"{name}-r1"), **COMMON)
        heard = Heard()
        given = {"run": cascade.run, "max_drop": 20.0, "confidence_level": 0.9, "reporter": heard, **WHERE}
        gated = kdcompress.gate_calibrate(**given, out=str(tmp_path / f"{name}-gated"))
        assert (cascade.calibration_seen, gated.calibration_seen) == (seen, seen)
        assert any("nothing is promised" in line for line in heard.notes) == seen


def test_a_student_takes_the_normalisation_it_starts_with(chain: Chain, tmp_path: Path) -> None:
    """The teacher's first layer is worth little on images that are scaled otherwise."""
    spec = "resnet8_cifar,mean=0.1,std=0.9"
    teacher = kdcompress.train_teacher(model=spec, data="digits", out=str(tmp_path / "teacher"), **COMMON)
    given = {**COMMON, "teacher": teacher.run, "method": "kd", "from_teacher": True}
    prep = {}
    for student in ("resnet8_cifar", "resnet8_cifar,mean=0.2"):
        run = kdcompress.distill(**given, student=student, out=str(tmp_path / student)).run
        prep[student] = load_network(str(run)).prep
    assert (prep["resnet8_cifar"].mean, prep["resnet8_cifar"].std) == ((0.1,), (0.9,))
    assert prep["resnet8_cifar,mean=0.2"].mean == (0.2,)


def test_a_student_that_cannot_start_from_the_teacher_is_told(chain: Chain, tmp_path: Path) -> None:
    """Who asked for it would take the result for what it is not."""
    heard = Heard()
    given = {**COMMON, "teacher": chain.teacher.run, "method": "kd", "student": TINY}
    result = kdcompress.distill(**given, out=str(tmp_path / "told"), from_teacher=True, reporter=heard)
    assert any("starts at random" in line for line in heard.notes)
    kdcompress.distill(**given, out=str(tmp_path / "plain"))
    told, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("told", "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in told.items())
    again = kdcompress.distill(**given, out=str(tmp_path / "told"), from_teacher=True, resume=True)
    assert again == result


# --- several res-students in one command


def grow(chain: Chain, out: Path, **given: Any) -> TrainResult:
    return kdcompress.distill(
        **{**COMMON, "teacher": chain.teacher.run, "method": "reskd", "student": SMALL, "res_students": 2,
           "arch": (TINY, "lenet5,width=0.5"), "out": str(out), **given},
    )  # fmt: skip


def test_res_students_in_one_command_are_the_chain(chain: Chain, tmp_path: Path) -> None:
    """--res-students is a shorthand: the same weights as one command after another."""
    result = grow(chain, tmp_path / "grown")
    assert result.command == "distill"
    assert result.run == str(tmp_path / "grown")
    assert same_weights(result.run, chain.longer.run)
    assert result.energies == chain.longer.energies
    assert result.members == chain.longer.members


@contextlib.contextmanager
def stopped(task: Any, step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs in it is sent a signal in that step of such a task, and leaves as interrupted."""
    calls: list[int] = []
    genuine = task.forward

    def stopping(self: Any, input: torch.Tensor, target: torch.Tensor, **told: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(number)
        return genuine(self, input, target, **told)

    with monkeypatch.context() as patch:
        patch.setattr(task, "forward", stopping)
        with pytest.raises(Interrupted):
            yield


def test_res_students_resume_in_the_middle(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second of three trainings, it goes on there, and ends with the same weights."""
    with stopped(ResKdTask, 7, signal.SIGTERM, monkeypatch):
        grow(chain, tmp_path / "grown")
    before = (tmp_path / "grown" / "member-0" / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(UserError, match="exists"):
        grow(chain, tmp_path / "grown")
    result = grow(chain, tmp_path / "grown", resume=True)
    assert (tmp_path / "grown" / "member-0" / WEIGHTS).stat().st_mtime_ns == before
    assert same_weights(result.run, chain.longer.run)
    again = grow(chain, tmp_path / "grown", resume=True)
    assert again.command == "distill"
    assert again.top1 == result.top1


@pytest.mark.parametrize(
    ("given", "members", "reason"),
    [
        ({"max_drop": 100.0}, 1, "target"),
        ({"target_macs": None, "min_energy_drop": 0.0}, 2, "macs"),
        ({"target_macs": 50.0, "min_energy_drop": 1.0}, 1, "energy"),
    ],
)
def test_a_cascade_grows_until_it_is_enough(
    chain: Chain, tmp_path: Path, given: dict[str, Any], members: int, reason: str
) -> None:
    """Members would be paid for that nobody asked for, or the target missed while there was room."""
    heard = Heard()
    if reason == "macs":  # room for one
        given = {**given, "target_macs": (chain.cascade.macs_ratio or 0) + 1e-3}
    result = grow(chain, tmp_path / "grown", res_students=0, grow=True, arch=(TINY,), reporter=heard, **given)
    assert result.stopped_by == reason
    assert any(f"has {members} member" in note for note in heard.notes)
    assert len(result.members or ()) == members
    assert same_weights(result.run, chain.student.run if members == 1 else chain.cascade.run)
    assert record_of(result.run)["command"] == "distill"
    again = grow(chain, tmp_path / "grown", res_students=0, grow=True, arch=(TINY,), resume=True, **given)
    assert again.to_dict() == result.to_dict()
    if "target_macs" in given:
        assert result.macs_ratio is not None
        assert result.macs_ratio <= given["target_macs"]
    longer = kdcompress.add_res_student(run=result.run, arch=TINY, out=str(tmp_path / "longer"), **COMMON)
    assert len(longer.members or ()) == members + 1


def test_enough_is_within_so_many_points_of_the_teacher(chain: Chain, tmp_path: Path) -> None:
    """Measured against anything else, the cascade would stop too early or never."""
    teacher = kdcompress.evaluate(run=chain.teacher.run, split="calibration", **WHERE).top1
    drop = teacher - chain.student.top1
    enough = grow(chain, tmp_path / "enough", res_students=0, grow=True, max_drop=max(drop, 0.0) + 0.01)
    assert len(enough.members or ()) == 1
    if drop > 0.02:
        more = grow(chain, tmp_path / "more", res_students=0, grow=True, max_drop=drop - 0.01, min_energy_drop=0.0)
        assert len(more.members or ()) > 1


def test_who_meets_the_target_stays_whatever_its_energy_says(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A res-student that was trained, and is all that was asked for, would be thrown away."""
    options = DistillOptions(teacher="-", grow=True, arch=(TINY,))
    first, limits = dataclasses.replace(chain.student, top1=40.0), Limits(top1=80.0, energy_drop=0.1)
    for top1, wanted in ((50.0, "energy"), (90.0, "target")):
        longer = dataclasses.replace(chain.cascade, top1=top1, energies=[1.0, 2.0])
        monkeypatch.setattr(grow_module, "add_res_student", lambda *_, longer=longer, **__: longer)
        monkeypatch.setattr(grow_module, "_first", lambda *_: first)
        result, reason = grow_module._grown(options, None, limits, tmp_path)
        assert reason == wanted
        assert result is (longer if reason == "target" else first)


def test_a_teacher_that_nothing_is_known_of_may_have_seen_the_images(chain: Chain, tmp_path: Path) -> None:
    """The bar would be an accuracy that was learned by heart, and growing end somewhere else without a word."""
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes((Path(chain.teacher.run) / WEIGHTS).read_bytes())
    given: dict[str, Any] = {"max_drop": 100.0, "grow": True, "res_students": 0, "data": "digits"}
    for known in (True, False):
        heard = Heard()
        of = {} if known else {"teacher": str(foreign), "teacher_arch": chain.teacher.architecture}
        grow(chain, tmp_path / f"known-{known}", reporter=heard, **given, **of)
        assert any("may have learned from" in note for note in heard.notes) != known


def test_a_student_that_is_too_large_is_refused_before_it_is_trained(chain: Chain, tmp_path: Path) -> None:
    """Hours later the user would learn that the target was out of reach from the start."""
    with pytest.raises(UserError, match=r"alone costs 0\.\d+ of the teacher"):
        grow(chain, tmp_path / "grown", res_students=0, grow=True, target_macs=0.01)
    assert not (tmp_path / "grown").exists()


def test_a_refusal_leaves_another_run_as_it_was(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished run could not be gone on with any more, for a folder that was mistaken for a cascade's."""
    given = {**COMMON, "teacher": chain.teacher.run, "student": SMALL, "out": str(tmp_path / "run")}
    with stopped(KdTask, 2, signal.SIGTERM, monkeypatch):
        kdcompress.distill(**given)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError, match="sdg"):
        grow(chain, tmp_path / "run", opt="sdg", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_target_that_is_just_met_is_met() -> None:
    """80.1 % of images are within 0.1 of 80.2 %, which no floats are: a res-student would be trained for nothing."""
    result = TrainResult.__new__(TrainResult)
    result.top1, result.members = 80.1, None
    assert 80.2 - 0.1 > 80.1, "in floats"
    assert Limits(top1=80.2 - 0.1).reached(result, TINY) == "target"


# --- resuming a single run


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
    other = kdcompress.train_teacher(model=SMALL, out=str(tmp_path / "other"), **COMMON)
    code = "from kdcompress.data import load_source\n\nclass Set(list):\n    classes = [str(k) for k in range(10)]\n\n"
    code += "def make():\n    source = load_source('digits').train\n"
    code += "    items = [(source.image(i), int(source.labels[i])) for i in range(400)]\n    return Set(items), None\n"
    (tmp_path / "other_data.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    genuine, calls = KdTask.forward, []

    def stopping(self: Any, input: torch.Tensor, target: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return genuine(self, input, target)

    given = {**COMMON, "student": TINY, "out": str(tmp_path / "run"), "batch_size": 32}
    with monkeypatch.context() as patch:
        patch.setattr(KdTask, "forward", stopping)
        with pytest.raises(Interrupted):
            kdcompress.distill(teacher=chain.teacher.run, **given)
    now = {"teacher": other.run} if changed == "teacher" else {"data": "py:other_data:make"}
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


# --- methods


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


def test_wrong_combinations_are_told_before_anything_is_done(chain: Chain, tmp_path: Path) -> None:
    """Each ends in a line and a remedy, and leaves no folder behind."""
    run, teacher = str(chain.student.run), str(chain.teacher.run)
    cases = [
        (lambda out: kdcompress.distill(method="ce", teacher=teacher, out=out), "takes no teacher"),
        (lambda out: kdcompress.distill(method="kd", out=out), "needs a TEACHER"),
        (
            lambda out: kdcompress.distill(
                teacher=teacher, data="synth-digits:2", logit_loss="standardized-kl", out=out, **COMMON
            ),
            "three classes",
        ),
        (lambda out: kdcompress.distill(teacher=teacher, res_students=1, out=out), "--res-students"),
        (lambda out: kdcompress.add_res_student(run=run, out=out), "--arch"),
        (lambda out: kdcompress.add_res_student(run=run, arch="resnt8_cifar", out=out, **COMMON), "resnt8_cifar"),
        (lambda out: kdcompress.add_res_student(run=teacher, arch=TINY, out=out, **COMMON), "no teacher on record"),
        (lambda out: kdcompress.gate_calibrate(run=teacher, max_drop=1.0, out=out, **WHERE), "single network"),
        (lambda out: kdcompress.gate_calibrate(run=run, max_drop=1.0, out=out, **WHERE), "single member"),
        (lambda out: kdcompress.gate_calibrate(run=run, out=out, **WHERE), "exactly one target"),
        (lambda out: kdcompress.train_teacher(model="resnt8_cifar", out=out, **COMMON), "resnt8_cifar"),
        (lambda out: kdcompress.train_teacher(modle="resnet8_cifar", out=out), "modle"),
    ]
    for number, (call, words) in enumerate(cases):
        out = tmp_path / str(number)
        with pytest.raises(UserError, match=words) as caught:
            call(str(out))
        assert caught.value.remedy
        assert not out.exists()


# --- teacher and student that want other inputs


def pair(student: str, teacher: str, size: tuple[int, int] = (8, 8)) -> tuple[Any, Any, Any]:
    """A student for 8x8 and a teacher, frozen as the API freezes it, and the batches' preprocessing."""
    ours = new_network(ModelSpec.parse(student), num_classes=10, channels=1, size=(8, 8), seed=0)
    theirs = new_network(ModelSpec.parse(teacher), num_classes=10, channels=1, size=size, seed=1)
    with torch.no_grad():
        theirs.model.train()(torch.randn(64, 1, *size))
    theirs.model.eval()
    prep = prepare.shared(ours.prep, theirs.prep, load_source("digits"))
    frozen = Teacher(theirs, {}).freeze(prepare.adapter(prep, theirs.prep))
    return ours, (theirs, frozen), prep


@torch.no_grad()
def test_other_normalisation_is_translated_exactly() -> None:
    """A teacher that sees wrongly normalised images teaches nonsense with great confidence."""
    student, (teacher, frozen), prep = pair(f"{TINY},mean=0.1,std=0.3", "resnet8_cifar,width=0.5,mean=0.6,std=0.15")
    assert prep == student.prep
    direct, _ = logits_on(teacher, "test")
    batches = source_and_data(prep).evaluation("test", 1000)
    adapted = frozen(next(iter(batches))[0])
    torch.testing.assert_close(adapted, direct, rtol=1e-3, atol=1e-4)
    assert direct.std() > 0.01


@torch.no_grad()
def test_other_size_and_family_are_translated_closely() -> None:
    """LeNet-5 at 28x28 as the teacher of a ResNet at 8x8; resizing rounds to whole grey levels, no more."""
    _student, (teacher, frozen), prep = pair(TINY, "lenet5,mean=0.13,std=0.3", (28, 28))
    direct, _ = logits_on(teacher, "test")
    adapted = frozen(next(iter(source_and_data(prep).evaluation("test", 1000)))[0])
    assert (adapted - direct).abs().max() < 0.02 * (direct.max() - direct.min())
    assert (adapted.argmax(1) == direct.argmax(1)).float().mean() > 0.98


@torch.no_grad()
def test_the_student_keeps_its_own_images() -> None:
    """Enlarged for the teacher and shrunk again, 8x8 digits arrive blurred: other images than those of eval."""
    student, _, prep = pair(TINY, "lenet5", (28, 28))
    adapter = prepare.adapter(prep, student.prep)
    x = next(iter(source_and_data(prep).evaluation("test", 1000)))[0]
    own = next(iter(source_and_data(student.prep).evaluation("test", 1000)))[0]
    torch.testing.assert_close(x if adapter is None else adapter(x), own, rtol=1e-3, atol=1e-4)


def test_a_teacher_of_another_family_size_and_normalisation(tmp_path: Path) -> None:
    """End to end: what training reports is what eval then finds, at the student's own size."""
    teacher = kdcompress.train_teacher(
        model="lenet5,mean=0.13,std=0.3", input_size="28", out=str(tmp_path / "teacher"), **COMMON
    )
    assert teacher.input_size == (1, 28, 28)
    for method in ("kd", "reskd"):
        out = str(tmp_path / method)
        student = kdcompress.distill(teacher=teacher.run, method=method, student=TINY, out=out, **COMMON)
        assert student.input_size == (1, 8, 8)
        found = kdcompress.evaluate(run=student.run, split="calibration", **WHERE)
        assert found.top1 == pytest.approx(student.top1, abs=1e-3)
        assert found.loss == pytest.approx(student.loss, abs=1e-4)


def test_a_checkpoint_as_teacher_is_found_again(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """add-res-student finds the teacher on record, bare file or not, from any folder."""
    weights = {f"module.{key}": value for key, value in weights_of(chain.teacher.run).items()}
    torch.save({"state_dict": weights}, tmp_path / "teacher.pth")
    monkeypatch.chdir(tmp_path)
    student = kdcompress.distill(
        teacher="teacher.pth", teacher_arch="resnet8_cifar,input_size=1x8x8", method="reskd", student=SMALL,
        data="digits", input_size="1x8x8", out="student", **COMMON,
    )  # fmt: skip
    assert student.teacher_macs == chain.teacher.macs
    assert student.energies == pytest.approx(chain.student.energies, rel=1e-3)
    monkeypatch.chdir("/")
    result = kdcompress.add_res_student(run=student.run, arch=TINY, out=str(tmp_path / "cascade"), **COMMON)
    assert result.teacher_macs == chain.teacher.macs


def test_classes_and_channels_must_agree(chain: Chain, tmp_path: Path) -> None:
    """A teacher of other classes gives soft targets for the wrong things."""
    from kdcompress.models.saving import model_config, save_network
    from kdcompress.runs import RunFolder

    def folder(name: str, classes: int, names: tuple[str, ...] | None, channels: int = 1) -> str:
        network = new_network(ModelSpec.parse(TINY), num_classes=classes, channels=channels, size=(8, 8), seed=0)
        (tmp_path / name).mkdir()
        config = model_config(network.model, network.architecture, network.model_args, names)
        save_network(RunFolder(tmp_path / name), network.model, config)
        return str(tmp_path / name)

    digits = tuple("0123456789")
    cases = [
        (folder("seven", 7, None), "has 7 classes.*10"),
        (folder("order", 10, digits[::-1]), "another order"),
        (folder("names", 10, (*digits[:9], "ten")), "9, ten"),
        (folder("colour", 10, digits, 3), "3 channels"),
    ]
    for teacher, words in cases:
        with pytest.raises(UserError, match=words):
            kdcompress.distill(teacher=teacher, student=TINY, out=str(tmp_path / "run"), **COMMON)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "teacher", "images", "expected"),
    [
        ((32, 32), (32, 32), (32, 32), (32, 32)),
        ((32, 32), (224, 224), (32, 32), (32, 32)),  # the teacher enlarges: nothing is lost, and 49 times less moved
        ((16, 16), (224, 224), (32, 32), (32, 32)),
        ((16, 16), (24, 24), (32, 32), (24, 24)),
        ((32, 32), (16, 16), (32, 32), (32, 32)),
        ((64, 64), (32, 32), (8, 8), (64, 64)),
        ((128, 128), (224, 224), None, (224, 224)),  # photographs of any size
    ],
)
def test_batches_are_no_larger_than_the_images(student: Any, teacher: Any, images: Any, expected: Any) -> None:
    """CIFAR enlarged to an ImageNet teacher's size would not fit in memory, and blur the student's input."""
    source = load_source("digits")
    source.size = images
    prep = Preprocess(student, 1, (0.1,), (0.2,))
    found = prepare.shared(prep, Preprocess(teacher, 1, (0.5,), (0.5,)), source)
    assert found == dataclasses.replace(prep, size=expected)


# --- a student and its assistant


@pytest.fixture(scope="module")
def assisted(chain: Chain) -> TrainResult:
    return assist(chain, chain.folder / "assisted")


def assist(chain: Chain, out: Path, **given: Any) -> TrainResult:
    more = {**COMMON, "method": "rkd-assistant", "student": SMALL, "assistant_share": 0.2, "ema_decay": 0.9}
    more |= {"scheme": "progressive", "epochs": 3, **given}
    return kdcompress.distill(teacher=chain.teacher.run, out=str(out), **more)


def test_an_assisted_student_costs_what_the_undivided_does(chain: Chain, assisted: TrainResult, tmp_path: Path) -> None:
    """All four figures are in the result, and the control is one flag away."""
    control = assist(chain, tmp_path / "control", undivided=True, assistant_share=0.1, scheme="end-to-end")
    assert control.architecture == SMALL
    assert assisted.architecture == "student_assistant"
    assert assisted.undivided_macs == control.macs
    parts = (assisted.student_macs, assisted.assistant_macs, assisted.integration_macs)
    assert sum(part or 0 for part in parts) == assisted.macs
    assert 0.97 <= assisted.macs / control.macs <= 1
    assert control.student_macs is None
    assert assisted.matched_stages == control.matched_stages == [[1, 1], [2, 2], [4, 4]]
    profile = kdcompress.profile_flops(model=assisted.run, by_module=True)
    assert (profile.macs, profile.params) == (assisted.macs, assisted.params)
    model = load_network(str(assisted.run)).model
    rows = {row["module"]: row for row in profile.by_module or []}
    top = [row for name, row in rows.items() if "." not in name]
    assert {row["module"] for row in top} == {name for name, _ in model.named_children()}
    for count in ("params", "macs"):
        assert sum(row[count] for row in top) == getattr(profile, count)
        assert sum(member[count] for member in profile.members or []) == getattr(profile, count)
    assert all(sum(p.numel() for p in model.get_submodule(name).parameters()) == rows[name]["params"] for name in rows)


def test_a_wide_teacher_takes_nothing_from_a_student(chain: Chain, assisted: TrainResult, tmp_path: Path) -> None:
    """Its features would be those of S and A too: what brings narrow networks to them cost more than the networks."""
    told = json.loads(Path(str(assisted.run), "config.json").read_text())["model_args"]
    teachers = json.loads(Path(str(chain.teacher.run), "config.json").read_text())["num_features"]
    assert told["features"] == teachers / 2
    heard = Heard()
    larger = assist(
        chain,
        tmp_path / "larger",
        assistant_share=0.8,
        scheme="end-to-end",
        epochs=1,
        reporter=heard,
        reuse_teacher_classifier=True,
    )
    told = json.loads(Path(str(larger.run), "config.json").read_text())["model_args"]
    assert told["features"] == teachers
    assert any("smaller than its assistant" in note for note in heard.notes)


def test_what_is_saved_is_scored_again(assisted: TrainResult) -> None:
    """Connectors left out, widths and classifier rebuilt from config.json alone: the same predictions."""
    again = kdcompress.evaluate(run=assisted.run, split="calibration", **WHERE)
    assert again.top1 == assisted.top1
    assert again.loss == pytest.approx(assisted.loss, rel=1e-4)
    assert again.stage_top1 is not None
    assert again.stage_top1[-1] == again.top1
    assert len(again.stage_top1) == 2
    assert not any("connector" in key for key in weights_of(assisted.run))


def test_phases_follow_each_other_in_the_metrics(assisted: TrainResult) -> None:
    """Three phases, each with its own losses, in one table."""
    with open(Path(str(assisted.run)) / METRICS) as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["train_transfer_loss"]) for row in rows] == [True, False, False]
    assert [bool(row["train_residual_loss"]) for row in rows] == [False, True, False]


@pytest.mark.parametrize("step", [5, 50, 95])
def test_a_run_of_phases_resumes_in_any_of_them(
    chain: Chain, assisted: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed while the student, the assistant or the classifier learns: the same weights in the end."""
    with stopped(RkdAssistantTask, step, signal.SIGTERM, monkeypatch):
        assist(chain, tmp_path / "run")
    assert same_weights(assist(chain, tmp_path / "run", resume=True).run, assisted.run)


def test_views_are_told_by_a_run_that_was_cut_off_in_its_last_phase(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier's phase asks nobody; the result would say that every epoch had a view of its own."""
    kept = {"target_views": "1", "cache_dir": str(tmp_path / "cache")}
    with stopped(RkdAssistantTask, 95, signal.SIGTERM, monkeypatch):
        assist(chain, tmp_path / "run", **kept)
    assert assist(chain, tmp_path / "run", resume=True, **kept).target_views == 1


def test_an_assistant_is_gated_and_built_upon(assisted: TrainResult, tmp_path: Path) -> None:
    """S answers first, A where S is unsure; and the two are a first member like any other."""
    gated = kdcompress.gate_calibrate(run=assisted.run, threshold=(0.3,), out=str(tmp_path / "gated"), **WHERE)
    result = kdcompress.evaluate(run=gated.run, **WHERE)
    assert result.exit_rates is not None
    assert 0 < result.exit_rates[0] < 1
    assert result.expected_macs is not None
    assert result.expected_macs < result.macs
    again = kdcompress.evaluate(run=assisted.run, **WHERE)
    assert result.full_top1 == again.top1
    cascade = kdcompress.add_res_student(run=gated.run, arch=TINY, out=str(tmp_path / "cascade"), **COMMON)
    widths = json.loads(Path(str(assisted.run), "config.json").read_text())["model_args"]["widths"]
    pair = f"{SMALL} x {widths[0]:g} + {widths[1]:g}"
    assert [member["architecture"] for member in cascade.members or []] == [pair, TINY]
    assert kdcompress.evaluate(run=cascade.run, **WHERE).stage_top1 is not None


def test_the_teachers_classifier_is_reused(chain: Chain, tmp_path: Path) -> None:
    """--freeze-classifier keeps it to the bit, in every phase."""
    result = assist(chain, tmp_path / "run", reuse_teacher_classifier=True, freeze_classifier=True)
    own, theirs = weights_of(result.run), weights_of(chain.teacher.run)
    assert all(torch.equal(own[f"fc.{key}"], theirs[f"fc.{key}"]) for key in ("weight", "bias"))


def test_teacher_and_student_of_other_families_and_sizes(chain: Chain, tmp_path: Path) -> None:
    """Any pair of convolutional networks: here timm's EfficientNet at 16 x 16 learns from ours at 8 x 8."""
    given = {"student": "test_efficientnet", "input_size": "16", "transfer": "at", "scheme": "end-to-end"}
    heard = Heard()
    result = assist(chain, tmp_path / "run", logit_weight=0.5, reporter=heard, **given)
    assert result.input_size == (1, 16, 16)
    assert result.matched_stages == [[4, 32]]
    assert any("only the last maps are matched" in note for note in heard.notes)
    assert kdcompress.evaluate(run=result.run, **WHERE).n == TEST


def test_a_promised_gate_says_how_it_was_tested(chain: Chain, tmp_path: Path) -> None:
    """The promise would be a figure without a ground, or the gate another than the one that was tested."""
    given = {"run": chain.longer.run, "max_drop": 20.0, "confidence_level": 0.9, "measure": "auto", **WHERE}
    found = kdcompress.gate_calibrate(**given, out=str(tmp_path / "promised"))
    assert found.promise is not None
    assert found.promise["images"] == found.n - found.n // 2
    assert found.promise["p_value"] <= 0.1
    assert (found.promise["max_drop"], found.promise["confidence_level"]) == (20.0, 0.9)
    assert found.measure in MEASURES
    assert found.curve
    again = kdcompress.gate_calibrate(**given, out=str(tmp_path / "again"))
    assert again.thresholds == found.thresholds
    plain = kdcompress.gate_calibrate(**{**given, "confidence_level": None}, out=str(tmp_path / "plain"))
    assert plain.promise is None
    assert plain.expected_macs is not None
    assert found.expected_macs is not None
    assert plain.expected_macs <= found.expected_macs
    scored = kdcompress.evaluate(run=found.run, split="calibration", **WHERE)
    assert scored.exit_rates == found.exit_rates


def test_another_loss_on_logits_reaches_the_training(chain: Chain, tmp_path: Path) -> None:
    """The option would be written into the record and change nothing."""
    given = {**COMMON, "teacher": chain.teacher.run, "student": SMALL, "epochs": 2}
    losses = {
        name: kdcompress.distill(**given, logit_loss=name, out=str(tmp_path / name)).loss for name in LOGIT_LOSSES
    }
    assert len(set(losses.values())) == len(LOGIT_LOSSES)
    more = {**COMMON, "run": chain.student.run, "arch": TINY, "epochs": 2}
    sums = {
        name: kdcompress.add_res_student(**more, logit_loss=name, out=str(tmp_path / f"sum-{name}")).loss
        for name in LOGIT_LOSSES
    }
    assert len(set(sums.values())) == len(LOGIT_LOSSES)
    assert max(sums.values()) < 2 * chain.student.loss, "no loss may blow up a network that has just begun"


def test_the_students_share_of_the_labels_reaches_an_assistant(chain: Chain, tmp_path: Path) -> None:
    """--student-weight would be taken, recorded, and without effect."""
    given: dict[str, Any] = {"scheme": "end-to-end", "epochs": 1}
    first, second = (assist(chain, tmp_path / str(weight), student_weight=weight, **given) for weight in (0.0, 1.0))
    assert not same_weights(first.run, second.run)


def test_another_loss_on_logits_reaches_an_assistant(chain: Chain, tmp_path: Path) -> None:
    """The same for the methods in which it is one of several losses."""
    assisted = {name: assist(chain, tmp_path / name, logit_weight=1.0, logit_loss=name).loss for name in ("kl", "dist")}
    assert assisted["kl"] != assisted["dist"]


def test_the_commands_draw_what_they_found(chain: Chain, tmp_path: Path) -> None:
    """--plot would be taken, and no picture made; also by a run that is finished already."""
    given = {"run": chain.cascade.run, "threshold": (0.5,), "out": str(tmp_path / "gated"), **WHERE}
    for number, resume in enumerate((False, True)):
        kdcompress.gate_calibrate(**given, resume=resume, plot=str(tmp_path / f"gate-{number}.svg"))
    kdcompress.evaluate(run=str(tmp_path / "gated"), plot=str(tmp_path / "eval.svg"), **WHERE)
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["eval.svg", "gate-0.svg", "gate-1.svg"]


def test_a_gated_run_finds_its_data_from_any_folder(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command of a script that stands elsewhere would look for the images there."""
    monkeypatch.chdir(tmp_path)
    given = {"run": chain.cascade.run, "threshold": (0.5,), "data_dir": "images", **WHERE}
    result = kdcompress.gate_calibrate(**given, out="gated")
    assert record_of(result.run)["options"]["data_dir"] == str(tmp_path / "images")
