"""`--method rkd-assistant` through the Python API."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcompress
from chains import (
    COMMON,
    CPU,
    SMALL,
    TEST,
    TINY,
    WHERE,
    Chain,
    record_of,
    same_weights,
    stopped,
    weights_of,
)
from heard import Heard
from kdcompress.api.claimed import claimed
from kdcompress.api.recipes import rkd_assistant
from kdcompress.data import load_source, sources
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Silent
from kdcompress.gating import MEASURES
from kdcompress.methods.losses import LOGIT_LOSSES
from kdcompress.methods.rkd_assistant import RkdAssistantTask
from kdcompress.models.loading import load_network
from kdcompress.options import DistillOptions, TrainTeacherOptions
from kdcompress.results import TrainResult
from kdcompress.runs import CHECKPOINT, METRICS


@pytest.fixture(scope="module")
def assisted(chain: Chain) -> TrainResult:
    return assist(chain, chain.folder / "assisted")


def assist(chain: Chain, out: Path, **given: Any) -> TrainResult:
    more = {**COMMON, "method": "rkd-assistant", "student": SMALL, "assistant_share": 0.2, "ema_decay": 0.9}
    more |= {"scheme": "progressive", "epochs": 3, "batch_size": 256, **given}
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
    assert [phase["epochs"] for phase in record_of(assisted.run)["recipe"].values()] == [1, 1, 1]
    assert "temperature" not in record_of(control.run)["recipe"]["0"]  # without --logit-weight it softens nothing
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


def test_a_wide_teacher_does_not_narrow_the_student(chain: Chain, assisted: TrainResult, tmp_path: Path) -> None:
    """S and A would have as many features as it: projecting narrow networks to them cost more than the networks."""
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


def test_the_student_gets_most_of_the_epochs() -> None:
    """A can only add to what S has learned."""
    options = DistillOptions(method="rkd-assistant", scheme="progressive", epochs=20)
    assert rkd_assistant._phases(options) == [("student", 16), ("assistant", 3), ("classifier", 1)]
    assert [epochs for _, epochs in rkd_assistant._phases(dataclasses.replace(options, epochs=4))] == [2, 1, 1]


def test_phases_follow_each_other_in_the_metrics(assisted: TrainResult) -> None:
    """Three phases, each with its own losses, in one table."""
    with open(Path(str(assisted.run)) / METRICS) as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["train_transfer_loss"]) for row in rows] == [True, False, False]
    assert [bool(row["train_residual_loss"]) for row in rows] == [False, True, False]


@pytest.mark.parametrize("step", [4, 10, 17])  # of six in each phase
def test_a_run_of_phases_resumes_in_any_of_them(
    chain: Chain, assisted: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed while the student, the assistant or the classifier learns: the same weights in the end."""
    with stopped(RkdAssistantTask, step, signal.SIGTERM, monkeypatch):
        assist(chain, tmp_path / "run")
    assert same_weights(assist(chain, tmp_path / "run", resume=True).run, assisted.run)


def test_a_run_interrupted_in_its_last_phase_reports_its_views(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classifier's phase asks nobody; the result would say that every epoch had a view of its own."""
    kept = {"target_views": "1", "cache_dir": str(tmp_path / "cache")}
    with stopped(RkdAssistantTask, 17, signal.SIGTERM, monkeypatch):
        assist(chain, tmp_path / "run", **kept)
    assert assist(chain, tmp_path / "run", resume=True, **kept).target_views == 1


def test_an_assistant_is_gated_and_built_upon(assisted: TrainResult, tmp_path: Path) -> None:
    """S answers first, A where S is unsure; and the two are a first member like any other."""
    half = ((assisted.student_macs or 0) + assisted.macs) / 2 / (assisted.teacher_macs or 1)  # half of the images stop
    gated = kdcompress.gate_calibrate(run=assisted.run, target_macs=half, out=str(tmp_path / "gated"), **WHERE)
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


def test_a_guaranteed_gate_records_its_test(chain: Chain, tmp_path: Path) -> None:
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
    given = {**COMMON, "teacher": chain.teacher.run, "student": SMALL}
    losses = {
        name: kdcompress.distill(**given, logit_loss=name, out=str(tmp_path / name)).loss for name in LOGIT_LOSSES
    }
    assert len(set(losses.values())) == len(LOGIT_LOSSES)
    more = {**COMMON, "run": chain.student.run, "arch": TINY}
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
    given: dict[str, Any] = {"scheme": "end-to-end", "epochs": 1, "logit_weight": 1.0}
    assisted = {name: assist(chain, tmp_path / name, logit_loss=name, **given).loss for name in ("kl", "dist")}
    assert assisted["kl"] != assisted["dist"]


def test_commands_plot_their_results(chain: Chain, tmp_path: Path) -> None:
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


def test_a_finished_gate_is_known_by_any_name_of_its_run(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command from another folder, or with ``local-dir:``, was refused as another, or as changed."""
    monkeypatch.chdir(chain.folder)
    name = Path(str(chain.cascade.run)).name
    given = {"threshold": (0.5,), "out": str(tmp_path / "gated"), **WHERE}
    first = kdcompress.gate_calibrate(run=name, **given)
    assert kdcompress.gate_calibrate(run=f"local-dir:{name}", **given, resume=True) == first
    monkeypatch.chdir(tmp_path)
    assert kdcompress.gate_calibrate(run=str(chain.cascade.run), **given, resume=True) == first


def test_a_stop_after_the_last_epoch_names_the_run(tmp_path: Path) -> None:
    """Without --out, nobody knew where the training lay, nor that nothing was lost."""
    options = TrainTeacherOptions(out=str(tmp_path / "run"))

    def stopped_late() -> None:
        with claimed(options, "run", CPU, Silent()) as run:
            (run.path / CHECKPOINT).touch()
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        stopped_late()
    assert caught.value.path == tmp_path / "run"


def test_named_data_are_found_from_any_folder(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --data-dir they lie in ./data, which is another folder for the next command."""
    monkeypatch.chdir(tmp_path)
    digits = load_source("digits")
    monkeypatch.setattr(sources, "_from_timm", lambda spec, *_: dataclasses.replace(digits, spec=spec))
    given = {"run": chain.cascade.run, "threshold": (0.5,), "data": "torch/digits", **WHERE}
    result = kdcompress.gate_calibrate(**given, out="gated")
    assert record_of(result.run)["options"]["data_dir"] == str(tmp_path / "data")
