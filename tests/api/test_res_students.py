"""`--res-students`: several members in one command, and when a cascade stops growing."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from chains import (
    COMMON,
    FIT,
    SMALL,
    TINY,
    WHERE,
    Chain,
    record_of,
    same_weights,
    stopped,
)
from heard import Heard, Steps
from kdcompress.api import grow as grow_module
from kdcompress.api.grow import Limits
from kdcompress.api.recipes import residual
from kdcompress.engine.progress import Silent
from kdcompress.errors import UserError
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.options import DistillOptions
from kdcompress.results import TrainResult
from kdcompress.runs import IMAGES, WEIGHTS


def grow(chain: Chain, out: Path, **given: Any) -> TrainResult:
    return kdcompress.distill(
        **{**COMMON, "teacher": chain.teacher.run, "method": "reskd", "student": SMALL, "res_students": 2,
           "arch": (TINY, "lenet5,width=0.5"), "out": str(out), **given},
    )  # fmt: skip


@pytest.fixture(scope="module")
def last(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The chain's last member, trained with the options that every member has in one command."""
    out = tmp_path_factory.mktemp("one-by-one") / "longer"
    return kdcompress.add_res_student(run=chain.cascade.run, arch="lenet5,width=0.5", **{**COMMON, "out": str(out)})


def test_res_students_in_one_command_equal_the_chain_of_commands(
    chain: Chain, last: TrainResult, tmp_path: Path
) -> None:
    """--res-students is a shorthand: the same weights as one command after another."""
    steps = Steps()
    result = grow(chain, tmp_path / "grown", reporter=steps)
    assert [each[:2] for each in steps.shown] == [(2, 3), (3, 3)], "before S0 is trained, nothing is known of the time"
    assert all(left is not None and left > 0 for _, _, left in steps.shown)
    assert steps.over == 1
    assert result.command == "distill"
    assert result.run == str(tmp_path / "grown")
    assert same_weights(result.run, last.run)
    assert result.energies == last.energies
    assert result.members == last.members


def test_res_students_resume_in_the_middle(
    chain: Chain, last: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second of three trainings, it goes on there, and ends with the same weights."""
    with stopped(ResKdTask, 7, signal.SIGTERM, monkeypatch):
        grow(chain, tmp_path / "grown")
    before = (tmp_path / "grown" / "member-0" / WEIGHTS).stat().st_mtime_ns
    with pytest.raises(UserError, match="exists"):
        grow(chain, tmp_path / "grown")
    result = grow(chain, tmp_path / "grown", resume=True)
    assert (tmp_path / "grown" / "member-0" / WEIGHTS).stat().st_mtime_ns == before
    assert same_weights(result.run, last.run)
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
def test_a_cascade_grows_until_a_limit_is_reached(
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


def test_max_drop_is_counted_from_the_teacher(chain: Chain, tmp_path: Path) -> None:
    """Measured against anything else, the cascade would stop too early or never."""
    teacher = kdcompress.evaluate(run=chain.teacher.run, split="calibration", **WHERE).top1
    drop = teacher - chain.student.top1
    enough = grow(chain, tmp_path / "enough", res_students=0, grow=True, max_drop=max(drop, 0.0) + 0.01)
    assert len(enough.members or ()) == 1
    if drop > 0.02:
        more = grow(chain, tmp_path / "more", res_students=0, grow=True, max_drop=drop - 0.01, min_energy_drop=0.0)
        assert len(more.members or ()) > 1


def test_a_member_that_meets_the_target_is_kept_whatever_its_energy(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A res-student that was trained, and is all that was asked for, would be thrown away."""
    options = DistillOptions(teacher="-", grow=True, arch=(TINY,))
    first, limits = dataclasses.replace(chain.student, top1=40.0), Limits(top1=80.0, energy_drop=0.1)
    for top1, wanted in ((50.0, "energy"), (90.0, "target")):
        longer = dataclasses.replace(chain.cascade, top1=top1, energies=[1.0, 2.0])
        monkeypatch.setattr(grow_module, "add_res_student", lambda *_, longer=longer, **__: longer)
        monkeypatch.setattr(grow_module, "train_first", lambda *_: first)
        result, reason = grow_module._grown(options, Silent(), limits, tmp_path)
        assert reason == wanted
        assert result is (longer if reason == "target" else first)


def test_an_unknown_teacher_may_have_seen_the_images(chain: Chain, tmp_path: Path) -> None:
    """The bar would be an accuracy that was learned by heart, and growing end somewhere else without a word."""
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes((Path(chain.teacher.run) / WEIGHTS).read_bytes())
    given: dict[str, Any] = {"max_drop": 100.0, "grow": True, "res_students": 0, "data": "digits"}
    for known in (True, False):
        heard = Heard()
        of = {} if known else {"teacher": str(foreign), "teacher_arch": chain.teacher.architecture}
        grow(chain, tmp_path / f"known-{known}", reporter=heard, **given, **of)
        assert any("may have been trained on" in note for note in heard.notes) != known


def test_a_student_that_is_too_large_is_refused_before_it_is_trained(chain: Chain, tmp_path: Path) -> None:
    """Hours later the user would learn that the target was out of reach from the start."""
    with pytest.raises(UserError, match=r"alone has 0\.\d+ of the teacher"):
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


def test_a_member_is_trained_on_what_it_will_get(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --focus it takes fewer steps, on the same images after a kill."""
    heard = Heard()
    given = {**COMMON, "run": chain.student.run, "arch": TINY, "focus": 0.25, "epochs": 2}
    whole = kdcompress.add_res_student(**given, out=str(tmp_path / "whole"), reporter=heard)
    count = round(0.25 * FIT) + round(0.1 * (FIT - round(0.25 * FIT)))
    assert any(f"{count:,} of {FIT:,} images" in note for note in heard.notes)
    assert record_of(whole.run)["options"]["focus"] == 0.25
    with stopped(ResKdTask, count // 16 + 3, signal.SIGTERM, monkeypatch):
        kdcompress.add_res_student(**given, out=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:  # by other arithmetic, other images would be chosen
        patch.setattr(residual, "least_sure", lambda *_: pytest.fail("the images are chosen again"))
        resumed = kdcompress.add_res_student(**given, out=str(tmp_path / "killed"), resume=True)
    assert same_weights(resumed.run, whole.run)
    assert resumed.energies == whole.energies is not None
    assert not (tmp_path / "killed" / IMAGES).exists()
    everything = kdcompress.add_res_student(**{**given, "focus": None}, out=str(tmp_path / "all"))
    assert not same_weights(everything.run, whole.run)


def test_one_command_hands_the_focus_on(chain: Chain, tmp_path: Path) -> None:
    made = grow(chain, tmp_path / "grown", res_students=1, arch=(TINY,), focus=0.5)
    alone = kdcompress.add_res_student(
        **COMMON, run=chain.student.run, arch=TINY, focus=0.5, out=str(tmp_path / "alone")
    )
    assert same_weights(made.run, alone.run)


@pytest.mark.parametrize("focus", [0.0, 1.5, -0.1])
def test_a_share_outside_its_range_is_refused(chain: Chain, tmp_path: Path, focus: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        kdcompress.add_res_student(**COMMON, run=chain.student.run, arch=TINY, focus=focus, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
