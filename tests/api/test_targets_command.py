"""Targets computed once, as the commands use them: when, for how many views, and with the same result either way."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdcompress
from chains import TINY
from heard import Heard
from kdcompress.api.targets import VIEWS, check_precision, choose_views
from kdcompress.data import Data, TrainBatches, load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Silent
from kdcompress.engine.targets import Targets
from kdcompress.errors import UserError
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import DistillOptions
from kdcompress.results import TrainResult

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 3, "student": TINY, "target_views": 2}
COMMON |= {"batch_size": 256}  # few steps, where only what is the same counts
SAME = ("top1", "loss", "energies", "target_views")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("made") / "teacher")
    kdcompress.train_teacher(model="resnet8_cifar,width=0.5", epochs=1, out=out, device="cpu", precision="fp32")
    return out


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[str, ...]]]:
    """Which views were computed, of which networks."""
    found: list[tuple[int, tuple[str, ...]]] = []
    former = Targets._compute

    def noted(self: Targets, view: int, arrays: Any, stopped: Any) -> bool:
        found.append((view, tuple(sorted(arrays))))
        return former(self, view, arrays, stopped)

    monkeypatch.setattr(Targets, "_compute", noted)
    return found


def same(one: TrainResult, other: TrainResult) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in SAME)


def test_later_runs_use_cached_targets(tmp_path: Path, teacher: str, computed: list[Any]) -> None:
    """Another student, another seed and the next res-student would each pay for the teacher again."""
    common = {**COMMON, "teacher": teacher, "cache_dir": tmp_path / "cache"}
    first = kdcompress.distill(**common, method="reskd", out=tmp_path / "first")
    assert first.target_views == 2
    assert computed == [(0, ("teacher_logits",)), (1, ("teacher_logits",))]
    computed.clear()
    kdcompress.distill(**{**common, "student": "resnet14_cifar,width=0.25", "seed": 5}, out=tmp_path / "other")
    assert computed == []
    more = {key: value for key, value in COMMON.items() if key != "student"}
    kdcompress.add_res_student(run=first.run, arch=TINY, cache_dir=tmp_path / "cache", **more, out=tmp_path / "grown")
    assert {names for _, names in computed} == {("member_logits",)}
    assert len(computed) == 3, "two views, and the calibration split"
    listed = kdcompress.manage_cache(cache_dir=tmp_path / "cache")
    assert sorted(entry["views"] for entry in listed.entries) == [1, 2, 2]
    cleared = kdcompress.manage_cache(cache_dir=tmp_path / "cache", clear=True)
    assert cleared.freed == listed.bytes
    assert (cleared.entries, cleared.bytes) == ([], 0)


@pytest.mark.parametrize("command", ["kd", "reskd", "rkd-assistant"])
def test_the_result_depends_on_no_cache(tmp_path: Path, teacher: str, command: str) -> None:
    """A run could not be repeated: on an empty cache, a full one, or where there is none, it would end elsewhere."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    heard = Heard()
    results = []
    if command == "reskd":
        base = str(kdcompress.distill(**{**COMMON, "epochs": 1}, teacher=teacher, out=tmp_path / "base").run)
    for number, folder in enumerate((tmp_path / "cache", tmp_path / "cache", blocked)):
        more = {**COMMON, "cache_dir": folder, "out": tmp_path / f"run{number}"}
        if command == "reskd":
            more.pop("student")
            results.append(kdcompress.add_res_student(**more, run=base, arch=TINY, reporter=heard))
        else:
            scheme = {"scheme": "progressive"} if command == "rkd-assistant" else {}
            results.append(kdcompress.distill(**more, **scheme, method=command, teacher=teacher, reporter=heard))
    assert same(results[0], results[1])
    assert same(results[0], results[2])
    warnings = [note for note in heard.notes if note.startswith("Warning")]
    assert len(warnings) == 1
    assert str(blocked) in warnings[0]


def test_live_targets_give_nearly_the_same_result(tmp_path: Path, teacher: str) -> None:
    """With as many views as epochs only the rounding and the seed of the views differ."""
    given = {**COMMON, "teacher": teacher, "batch_size": 32}
    kept = kdcompress.distill(**{**given, "target_views": 3}, out=tmp_path / "kept")
    live = kdcompress.distill(**{**given, "target_views": 0}, out=tmp_path / "live")
    assert live.target_views is None
    assert kept.loss == pytest.approx(live.loss, rel=0.15)


def test_feature_maps_are_cached_only_on_request(tmp_path: Path, teacher: str, computed: list[Any]) -> None:
    """They are thousands of times the size of logits: a disk would fill by itself, or a promise would not be kept."""
    more = {**COMMON, "method": "rkd-assistant", "teacher": teacher, "undivided": True, "cache_dir": tmp_path / "cache"}
    more["epochs"] = 2
    heard = Heard()
    left = kdcompress.distill(**{**more, "target_views": None}, out=tmp_path / "left", reporter=heard)
    assert left.target_views is None
    assert computed == []
    assert any("--target-views" in note and "GiB" in note for note in heard.notes)
    chosen = kdcompress.distill(**more, out=tmp_path / "chosen")
    assert chosen.target_views == 2
    assert computed == [(0, ("teacher_rows",)), (1, ("teacher_rows",))]
    computed.clear()
    again = kdcompress.distill(**{**more, "undivided": False}, out=tmp_path / "again")
    assert again.target_views == 2
    assert computed == [], "the control and the divided network have one teacher"


def parts(augment: str = "crop", **given: Any) -> tuple[StudentTask, TrainBatches, DistillOptions]:
    options = DistillOptions(teacher="t", device="cpu", **given)
    student, teacher = (
        new_network(ModelSpec.parse(spec), num_classes=10, channels=1, size=(8, 8), seed=0)
        for spec in (TINY, "resnet14_cifar")
    )
    data = Data(load_source("digits"), student.prep, options, torch.device("cpu"))
    return KdTask(student.model, Frozen(teacher.model)), data.training(32, 0, augment), options


@pytest.mark.parametrize(
    ("given", "epochs", "views"),
    [
        ({}, 30, VIEWS),
        ({}, VIEWS, 0),
        ({"target_views": "12"}, 3, 12),
        ({"target_views": "0"}, 30, 0),
        ({"mixup": 0.2}, 30, 0),
        ({"augment": "none"}, 30, 1),
        ({"cache_size": (VIEWS + 0.9) * 2 * 10 * 1295 / 2**30}, 30, 0),
        ({"cache_size": (VIEWS + 1.1) * 2 * 10 * 1295 / 2**30}, 30, VIEWS),
        ({"loading": "stream"}, 10, 0),
        ({"loading": "stream"}, 100, VIEWS),
        ({"cache_size": 0}, 30, 0),
    ],
)
def test_how_many_views(given: dict[str, Any], epochs: int, views: int) -> None:
    """Time would be spent where none is saved, or none saved where it could be; or fewer views shown than are known to
    do no harm.
    """
    task, batches, options = parts(given.pop("augment", "crop"), **given)
    assert choose_views(task, batches, options, epochs, 10) == views


def test_a_cheap_teacher_is_not_cached() -> None:
    """Fewer views for no time saved would be a bad bargain."""
    task, batches, options = parts()
    small = new_network(ModelSpec.parse("resnet8_cifar,width=0.05"), num_classes=10, channels=1, size=(8, 8), seed=0)
    large = new_network(ModelSpec.parse("resnet14_cifar"), num_classes=10, channels=1, size=(8, 8), seed=0)
    assert choose_views(KdTask(large.model, Frozen(small.model)), batches, options, 30, 10) == 0
    assert choose_views(task, batches, options, 30, 10) == VIEWS


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"target_views": "many"}, "is not a number"),
        ({"target_views": "-1"}, "is not a number"),
        ({"target_views": "2", "mixup": 0.2}, "mixup"),
        ({"target_views": "2", "method": "ce", "teacher": None}, "no effect"),
        ({"target_views": "2", "method": "lwkd", "teacher": None}, "no effect"),
    ],
)
def test_invalid_views_are_refused(tmp_path: Path, teacher: str, given: dict[str, Any], word: str) -> None:
    """The option would be taken and do nothing."""
    out = tmp_path / "run"
    with pytest.raises(UserError, match=word) as caught:
        kdcompress.distill(**{**COMMON, "teacher": teacher, **given, "out": out})
    assert caught.value.remedy
    assert not out.exists()


def test_a_resumed_run_keeps_its_views(tmp_path: Path, teacher: str) -> None:
    """Half of a run would be of other images."""
    common = {**COMMON, "teacher": teacher, "out": tmp_path / "run"}

    class Stops(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kdcompress.distill(**common, reporter=Stops())
    with pytest.raises(UserError, match="target_views 2, now 3"):
        kdcompress.distill(**{**common, "target_views": 3}, resume=True)
    whole = kdcompress.distill(**{**common, "out": tmp_path / "whole"})
    assert same(kdcompress.distill(**common, resume=True), whole)


def test_a_resumed_run_keeps_the_views_that_were_chosen_for_it(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a smaller --cache-size it was refused, for an option that nobody had given."""
    common = {**COMMON, "teacher": teacher, "out": tmp_path / "run", "target_views": "auto"}

    class Stops(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    module = sys.modules["kdcompress.api.targets"]
    monkeypatch.setattr(module, "choose_views", lambda *_: 2)
    with pytest.raises(KeyboardInterrupt):
        kdcompress.distill(**common, reporter=Stops())
    monkeypatch.setattr(module, "choose_views", lambda *_: 0)
    assert kdcompress.distill(**common, resume=True).target_views == 2


class Unsteady(nn.Module):
    """Sure of class 0; in lower precision another class comes so near, or overtakes it."""

    def __init__(self, change: float) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        change = self.change if torch.is_autocast_enabled("cpu") else 0.0
        return torch.tensor([1.0, change, *[0.0] * 8]).expand(len(x), -1)


@pytest.mark.parametrize(("change", "exact"), [(0.04, False), (0.06, True), (math.inf, True), (math.nan, True)])
def test_a_teacher_that_lower_precision_changes_runs_in_fp32(change: float, exact: bool) -> None:
    """bf16 would hand down errors that the teacher does not make."""
    task, batches, _ = parts()
    assert isinstance(task, KdTask)
    task.teacher = Frozen(Unsteady(change))
    place = Place(torch.device("cpu"), "bf16")
    heard = Heard()
    check_precision(task, batches, place, heard)
    assert task.teacher.exact is exact
    assert len(heard.notes) == int(exact)
    with place.autocast():
        assert bool(task.teacher(torch.zeros(300, 1, 8, 8))[:, 1].any()) is not exact
    task.teacher.exact = False
    check_precision(task, batches, dataclasses.replace(place, precision="fp32"), heard)
    assert not task.teacher.exact
    assert isinstance(SupervisedTask(nn.Linear(1, 1)).frozen(), dict)
