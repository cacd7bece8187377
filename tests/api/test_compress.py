"""From a budget to a network: what competes, how long it takes, who wins, and what a kill costs."""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kdcompress
from chains import CPU, record_of, same_weights, stopped
from heard import Heard
from kdcompress import options as sets
from kdcompress.api.compress import candidates, probe, prospect, verdict
from kdcompress.api.compress.candidates import Student, Students
from kdcompress.api.compress.commands import Commands
from kdcompress.api.compress.contest import Contender
from kdcompress.api.compress.course import Course
from kdcompress.api.compress.plan import RESERVE, Costs, Plan, pair, usable
from kdcompress.api.compress.prospect import Prospect
from kdcompress.api.compress.verdict import judge
from kdcompress.api.fitting import has_other_classes
from kdcompress.api.teacher import SEEN, as_teacher, load_teacher
from kdcompress.cli import COMMANDS
from kdcompress.cli.params import with_options
from kdcompress.data import load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Silent
from kdcompress.errors import UserError
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.candidates import Series
from kdcompress.options import CompressOptions, DataOptions
from kdcompress.results import CompressResult, EvalResult, PlanResult
from kdcompress.runs import RunFolder

FAST: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 2}


@pytest.fixture(autouse=True)
def _short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine is does not matter here."""
    monkeypatch.setattr(probe, "MOST", 0.0)
    monkeypatch.setattr(Commands, "seconds_of_epochs", lambda *_: [])

    def seconds(model: nn.Module, *_: Any, **more: Any) -> float:
        return 1e-9 * sum(each.numel() for each in model.parameters())

    monkeypatch.setattr(prospect, "training_seconds", seconds)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deep") / "teacher"
    kdcompress.train_teacher(model="resnet20_cifar", out=path, **{**FAST, "epochs": 3})
    return path


def students(reference: str | Path, arch: str | None = None) -> Students:
    source = load_source("digits")
    network = load_teacher(str(reference), arch, None, Silent())
    made = as_teacher(network, source, DataOptions(), Silent())
    return Students(made, source.num_classes, 1, (8, 8), lambda _: None)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.35, 0.7])
def test_candidates_are_within_the_budget(teacher: Path, share: float) -> None:
    """A student over the budget could never be shipped, however long it trained."""
    known = students(teacher)
    found = known.within(share * known.macs)
    assert found
    assert all(0 < each.macs <= share * known.macs for each in found)
    assert len({each.kind for each in found}) == len(found)
    assert known.cheapest() <= min(each.macs for each in found)


def test_a_shallower_network_of_the_family_starts_from_the_teacher(teacher: Path) -> None:
    """The best student that there is for such a teacher would not compete."""
    known = students(teacher)
    best = known.within(0.7 * known.macs)[0]
    assert (best.kind, best.spec, best.options["from_teacher"]) == ("layers", "resnet14_cifar", True)


def test_students_see_images_of_the_size_that_is_asked_for(teacher: Path) -> None:
    """--input-size would be shown in the help, and do nothing, or something else in each command."""
    options = CompressOptions(teacher=str(teacher), target_macs=0.5, input_size="1x6x6")
    planned = Prospect.of(options, CPU, Silent())
    sizes = {each.kind: each.options["input_size"] for each in planned.plan.students()}
    assert sizes
    assert {size for kind, size in sizes.items() if kind != "resized"} == {"1x6x6"}
    assert planned.students.macs == students(teacher).macs, "the teacher keeps its own"


def test_a_budget_below_every_network_says_what_the_cheapest_needs(teacher: Path) -> None:
    """A user would try one number after the other."""
    known = students(teacher)
    with pytest.raises(UserError, match="No network is within") as caught:
        Plan.of(known, 0.001 * known.macs, handover=True, fine_tunes=False, steps=41)
    needed = float(caught.value.remedy.split()[-1].rstrip("."))
    assert Plan.of(known, needed * known.macs, handover=True, fine_tunes=False, steps=41).singles


def test_max_drop_of_a_small_teacher_looks_above_half_of_its_macs(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told to give another budget, although nothing said that --max-drop has one of its own."""
    macs = students(teacher).macs
    least = int(0.7 * macs)
    monkeypatch.setattr(
        Students, "within", lambda _, most: [Student("layers", "lenet5", least)] if most >= least else []
    )
    planned = Prospect.of(CompressOptions(teacher=str(teacher), max_drop=50.0), CPU, Silent())
    assert planned.plan.singles
    assert least <= planned.plan.most < least + 2e-4 * macs


def test_a_teacher_that_nothing_is_cheaper_than(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy was a budget above 1, which is out of range."""
    monkeypatch.setattr(Students, "within", lambda _, most: [])
    for budget in ({"max_drop": 1.0}, {"target_macs": 0.9}):
        with pytest.raises(UserError, match="No network is cheaper than the teacher") as caught:
            Prospect.of(CompressOptions(teacher=str(teacher), **budget), CPU, Silent())
        assert "export" in caught.value.remedy


def plan_of(*macs: int, steps: int = 100) -> tuple[Plan, Costs]:
    single, first, second = (Student("scratch", f"net{number}", number, options={}) for number in macs)
    plan = Plan(macs[0], [single], first, second, handover=True, fine_tunes=False, steps=steps)
    return plan, Costs({each.name: each.macs / 10 for each in plan.students()}, teacher=5.0)


@pytest.mark.parametrize("seconds", [400, 3600, 18_000])
def test_epochs_fill_the_time_budget(seconds: int) -> None:
    """A run that was to end by lunch would go on till the evening, or waste what it was given."""
    plan, costs = plan_of(100, 50, 170)
    epochs = plan.epochs_within(seconds, costs)
    assert plan.seconds(epochs, costs) <= (1 - RESERVE) * seconds < plan.seconds(epochs + 1, costs)


def test_a_short_budget_keeps_time_for_the_report() -> None:
    """Three minutes took three and a half."""
    assert [usable(seconds) for seconds in (60, 180, 3600)] == [54, 165, 3420]
    assert usable(math.inf) == math.inf


def test_too_little_time_says_how_much_is_needed() -> None:
    """The error would come back with each new guess."""
    plan, costs = plan_of(100, 50, 170)
    with pytest.raises(UserError, match="too short for one epoch") as caught:
        plan.epochs_within(20, costs)
    minutes = int(caught.value.remedy.split()[-1].rstrip("m."))
    assert plan.epochs_within(60 * minutes, costs) >= 1


def test_trials_are_long_enough_to_tell_candidates_apart() -> None:
    """On small data an epoch is a handful of steps, after which every network guesses."""
    plan, _ = plan_of(100, 50, 170, steps=40)
    assert plan.trial_epochs(60) == 8
    assert plan.trial_epochs(30) == 4
    assert plan.trial_epochs(12) == 4
    assert plan.trial_epochs(4) == 2
    assert plan.trial_epochs(1) == 1
    long, _ = plan_of(100, 50, 170, steps=1000)
    assert [long.trial_epochs(epochs) for epochs in (1, 2, 5, 6, 12, 24, 32)] == [1, 1, 2, 3, 3, 3, 4]


class Scored:
    """Stands for commands whose scores are known."""

    reporter = Silent()

    def __init__(self, images: int = 5000, **scores: tuple[float, float]) -> None:
        self.images, self.reporter = images, Heard()
        self.scores = {"early": (50.0, 1000.0), **scores}

    def score(self, run: str, split: str, **more: Any) -> Any:
        assert split == "calibration", "nothing is chosen on test"
        top1, macs = self.scores[run]
        return dataclasses.make_dataclass("Score", ["top1", "macs", "expected_macs", "n"])(
            top1, 1000.0, macs, self.images
        )


TEACHER = {"networks": "teacher", "top1": 90.0, "macs": 100.0}


@pytest.mark.parametrize(
    ("budget", "scores", "chosen", "met"),
    [
        ({"target_macs": 0.3}, {"single": (88.0, 30.0), "pair": (87.0, 29.0)}, "single", True),
        ({"target_macs": 0.3}, {"single": (86.0, 30.0), "pair": (87.0, 29.0)}, "pair", True),
        ({"target_macs": 0.3}, {"single": (87.0, 20.0), "pair": (87.0, 29.0)}, "single", True),
        ({"target_macs": 0.3}, {"single": (80.0, 30.0), "pair": (99.0, 31.0)}, "single", True),
        ({"target_macs": 0.3}, {"single": (80.0, 35.0), "pair": (99.0, 31.0)}, "pair", False),
        ({"max_drop": 2.0}, {"single": (88.5, 50.0), "pair": (88.0, 30.0)}, "pair", True),
        ({"max_drop": 2.0}, {"single": (88.5, 50.0), "pair": (87.9, 30.0)}, "single", True),
        ({"max_drop": 2.0}, {"single": (80.0, 50.0), "pair": (87.0, 30.0)}, "pair", False),
    ],
)
def test_the_verdict(budget: dict[str, float], scores: dict[str, tuple[float, float]], chosen: str, met: bool) -> None:
    """Where a plain student wins it is shipped, and what is over the budget is not."""
    contenders = [Contender(name, name, name, 4, 0.0) for name in scores]
    commands: Any = Scored(**scores)
    early = [Contender("single", "early", "x", 1, 0.0)]
    verdict = judge(contenders, early, commands, CompressOptions(teacher="x", **budget), dict(TEACHER))
    assert verdict.rows[-1]["dropped"], "what was tried for a few epochs is shown"
    assert (verdict.chosen.form, verdict.met) == (chosen, met)
    assert [row["form"] for row in verdict.rows if row.get("chosen")] == [chosen]
    assert verdict.rows[0]["form"] == "teacher"


@pytest.mark.parametrize("budget", [{"target_macs": 0.3}, {"max_drop": 2.0}])
def test_what_was_dropped_is_shipped_where_it_is_best(budget: dict[str, float]) -> None:
    """With few images a trial may look better than what was trained longer, and the table would show a better row."""
    commands: Any = Scored(single=(87.0, 32.0), early=(88.5, 20.0))
    contenders, dropped = [Contender("single", "single", "s", 4, 0.0)], [Contender("pair", "early", "p", 1, 0.0)]
    verdict = judge(contenders, dropped, commands, CompressOptions(teacher="x", **budget), dict(TEACHER))
    assert (verdict.chosen.run, verdict.met) == ("early", True)
    assert [row["networks"] for row in verdict.rows if row["chosen"]] == ["p"]
    assert not any(row.get("dropped") for row in verdict.rows)
    assert not commands.reporter.notes
    few: Any = Scored(images=30, single=(87.0, 20.0))
    judge(contenders, [], few, CompressOptions(teacher="x", **budget), dict(TEACHER))
    assert "on 30 calibration images: differences of up to 12 points may be chance" in few.reporter.notes[-1]


def test_a_verdict_says_who_knows_the_images(tmp_path: Path) -> None:
    """A student from the weights of a teacher that has seen them would win by memory."""
    runs = {name: tmp_path / name for name in ("single", "pair")}
    for name, run in runs.items():
        run.mkdir()
        RunFolder(run).write_record({"status": "unfinished", SEEN: name == "single"}, digests={})
    contenders = [Contender(name, str(run), name, 4, 0.0) for name, run in runs.items()]
    commands: Any = Scored(**{str(runs["single"]): (88.0, 30.0), str(runs["pair"]): (87.0, 29.0)})
    options = CompressOptions(teacher="x", target_macs=0.3)
    rows = judge(contenders, [], commands, options, dict(TEACHER)).rows
    assert [row["calibration_seen"] for row in rows[1:]] == [True, False]
    assert "may know the calibration images" in commands.reporter.notes[0]


def test_milliseconds_are_measured_in_the_precision_of_the_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates for 3 ms in bf16 were judged in fp32: nothing was within the budget."""
    asked: list[Any] = []

    def timed(given: Any, **_: Any) -> Any:
        asked.append(given.precision)
        return SimpleNamespace(networks=[{"gated": True, "mean_ms": 2.5}, {"gated": False, "mean_ms": 4.0}])

    monkeypatch.setattr(verdict, "benchmark", timed)
    options = CompressOptions(teacher="x", target_ms=3.0, precision="bf16")
    assert verdict._milliseconds(["a"], options, Silent()) == [2.5]
    assert asked == ["bf16"]


def test_one_of_several_sets_of_weights_is_timed(teacher: Path, tmp_path: Path) -> None:
    """The key was asked for once more, after it had been given."""
    state = load_file(teacher / "model.safetensors")
    torch.save({"ema": state, "last": {key: 0 * value for key, value in state.items()}}, tmp_path / "two.pt")
    given = {"teacher": tmp_path / "two.pt", "teacher_arch": "resnet20_cifar", "weights_key": "ema", "data": "digits"}
    with pytest.raises(UserError, match="no less than the teacher's"):  # so it was timed
        kdcompress.compress(**given, target_ms=10_000, out=tmp_path / "out", **FAST)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a budget"),
        ({"target_macs": 0.5, "max_drop": 1}, "one budget"),
        ({"target_macs": 0.5, "time_budget": "soon"}, "not a duration"),
        ({"target_macs": 0.5, "engine": "onnxruntime"}, "engine.* has no effect"),
        ({"max_drop": 1, "batch_size": 16}, "batch.size.* has no effect"),
        ({"target_macs": 0.5, "time_budget": "1h", "epochs": 3}, "epochs.* has no effect"),
        ({"target_macs": 0.5, "time_budget": "2s", "epochs": None}, "too short for one epoch"),
        ({"target_ms": 10_000}, "no less than the teacher's"),
    ],
)
def test_budgets_that_cannot_be(teacher: Path, tmp_path: Path, given: dict[str, Any], words: str) -> None:
    """An hour later the user would know that it was a typing error."""
    with pytest.raises(UserError, match=words):
        kdcompress.compress(teacher=teacher, out=tmp_path / "out", **{**FAST, **given})
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_knows_the_calibration_images_gets_no_hand(teacher: Path, tmp_path: Path) -> None:
    """On images that it was trained on, handing over to it looks better than it is."""
    bare = {"teacher": teacher / "model.safetensors", "teacher_arch": "resnet20_cifar", "data": "digits"}
    heard = Heard()
    given = CompressOptions.resolve({**bare, **FAST, "target_macs": 0.35, "dry_run": True})
    plan = kdcompress.compress(given, reporter=heard)
    assert isinstance(plan, PlanResult)
    assert any("does not compete" in note for note in heard.notes)
    assert not any("then the teacher" in note for note in heard.notes)
    with pytest.raises(UserError, match="needs images that the teacher"):
        kdcompress.compress(**bare, **FAST, max_drop=1.0, out=tmp_path / "out")


def made(teacher: Path, out: Path, **given: Any) -> tuple[CompressResult, list[str]]:
    heard = Heard()
    usual = {"target_macs": 0.35, "report": False, **FAST}
    options = CompressOptions.resolve({"teacher": teacher, "out": out, **usual, **given})
    result = kdcompress.compress(options, reporter=heard)
    assert isinstance(result, CompressResult)
    return result, heard.notes


def test_a_kill_costs_one_epoch_at_most(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After hours the night's work would be lost, or another network come out than without the kill."""
    whole, notes = made(teacher, tmp_path / "whole", report=True)
    with stopped(ResKdTask, 3, signal.SIGINT, monkeypatch):
        made(teacher, tmp_path / "cut")
    assert record_of(tmp_path / "cut")["status"] == "unfinished"
    resumed, _ = made(teacher, tmp_path / "cut", resume=True, report=True)
    assert Path(str(resumed.report)).is_file()
    assert same_weights(whole.run, resumed.run)
    forget = {"run": "", "seconds": 0.0, "report": ""}
    assert dataclasses.replace(whole, **forget) == dataclasses.replace(resumed, **forget)
    _check(whole, notes, teacher)


def test_a_resumed_plan_is_the_one_that_was_begun(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a machine measures differs from minute to minute; the trainings that are there would belong to no plan."""
    with stopped(ResKdTask, 3, signal.SIGINT, monkeypatch):
        made(teacher, tmp_path / "cut")
    record = record_of(tmp_path / "cut")
    assert {key: record["plan"][key] for key in ("share", "epochs")} == {"share": pytest.approx(0.35), "epochs": 2}
    assert record["plan"]["costs"]["training"], "nor is anything measured again"
    with pytest.raises(UserError, match=r"target_macs=0.35|--target-macs 0.35"):
        made(teacher, tmp_path / "cut", resume=True, target_macs=0.3)
    with pytest.raises(UserError, match="began with"):
        made(teacher, tmp_path / "cut", resume=True, epochs=3)


def test_steps_are_probed_as_they_will_be(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few photos a step has sixteen, and the optimiser takes the larger share: plans were four times too long."""
    batches: list[int] = []

    def seconds(model: nn.Module, size: Any, classes: int, place: Any, batch: int, **_: Any) -> float:
        batches.append(batch)
        return 1e-6

    monkeypatch.setattr(prospect, "training_seconds", seconds)
    given = CompressOptions.resolve({"teacher": teacher, "target_macs": 0.35, "dry_run": True, "time_budget": "10m"})
    kdcompress.compress(given)
    assert set(batches) == {32}, "of 1,294 images"
    place = Place(torch.device("cpu"), "bf16")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    assert probe.training_seconds(model, (1, 8, 8), 10, place, 16, may_choose=True) > 0
    assert not torch.equal(before, model[1].weight), "with the optimiser"


class Resized:
    """Stands for students of which the teacher itself, for smaller images, is the best."""

    macs = 1000

    def of_kind(self, kind: str, most: float, *, resized: bool = True) -> Student | None:
        return Student(kind, "the teacher's", int(most), side=8) if resized else None


class Drawn:
    """Stands for students that start from random weights."""

    macs = 1000

    def of_kind(self, kind: str, most: float, *, resized: bool = True) -> Student:
        return Student(kind, f"of {most:g}", int(most))


def test_a_first_member_that_nobody_needs_is_not_trained(teacher: Path) -> None:
    """Half of the time would go into a network that cannot answer."""
    resized: Any = Resized()  # it takes another input than a res-student would
    assert pair(resized, "resized", 500.0, handover=False, focuses=True) == (None, None)
    first, second = pair(resized, "resized", 500.0, handover=True, focuses=True)
    assert first is not None
    assert second is None
    known = students(teacher)
    (_, all_of_them), (_, half) = (pair(known, "layers", 0.35 * known.macs, True, focuses) for focuses in (False, True))
    assert all_of_them is not None
    assert half is not None
    assert (all_of_them.share, half.share) == (1.0, 0.55), "of the images, where there are many"
    assert half.options == {**all_of_them.options, "focus": 0.5}
    assert half.name == all_of_them.name
    drawn: Any = Drawn()  # it still learns its features
    assert [each.share for each in pair(drawn, "scratch", 500.0, handover=False, focuses=True) if each] == [1.0, 1.0]
    alone = Plan.of(known, 0.022 * known.macs, handover=False, fine_tunes=False, steps=41)
    assert (alone.first is None) == (alone.second is None)
    assert len(alone.lines(30, Costs({each.name: 1.0 for each in alone.students()}, 1.0), 1000)) >= 2


def _check(result: CompressResult, notes: list[str], teacher: Path) -> None:
    """What was shipped is what won, within the budget, on the test split."""
    assert result.run is not None
    chosen = next(row for row in result.contenders if row.get("chosen"))
    within = [row for row in result.contenders[1:] if row.get("within")]
    assert chosen["top1"] == max(row["top1"] for row in within) == result.calibration_top1
    cost = result.expected_macs_ratio or result.macs_ratio
    assert cost is not None
    assert cost <= 0.4, "expected MACs differ a little between the splits"
    again = kdcompress.evaluate(run=result.run, device="cpu")
    assert isinstance(again, EvalResult)
    assert (again.top1, again.split) == (result.top1, "test")
    assert result.report is not None
    assert Path(result.report).is_file()
    # every command that was printed is one that a person could type
    typed = [shlex.split(note)[2:] for note in notes if note.startswith("$ kdcompress ")]
    assert {words[0] for words in typed} >= {"distill", "add-res-student", "cascade", "gate-calibrate", "eval"}
    for command, *words in typed:
        assert parsed(command, words).typed() == words


def parsed(command: str, words: list[str]) -> Any:
    """The options that a command line gives."""
    import typer
    from typer.testing import CliRunner

    kind, got = getattr(sets, COMMANDS[command][1]), []
    app = typer.Typer()
    app.command()(with_options(lambda values: got.append(kind.resolve(values)) or 0, kind))  # type: ignore[func-returns-value]
    assert CliRunner().invoke(app, words).exit_code == 0, words
    return got[0]


def test_a_teacher_of_other_classes_is_fine_tuned_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People have a network for ImageNet and photos of their own; they would be told to run another command first."""
    monkeypatch.setattr(prospect, "FINE_TUNING_EPOCHS", 1)
    kdcompress.train_teacher(model="resnet14_cifar", data="synth-digits:3", input_size="1x8x8", out=tmp_path / "three",
                             **{**FAST, "epochs": 1})  # fmt: skip
    result, notes = made(tmp_path / "three", tmp_path / "out", data="digits", target_macs=0.5, epochs=1)
    assert result.num_classes == 10
    assert any(note.startswith("$ kdcompress train-teacher") for note in notes)
    assert record_of(tmp_path / "out" / "teacher")["start"]["reference"] == str(tmp_path / "three")


def test_a_plan_of_two_numbers_is_finite() -> None:
    """The estimate is what a person decides by."""
    plan, costs = plan_of(100, 50, 170)
    assert 0 < plan.seconds(10, costs) < math.inf
    assert any("About" in line for line in plan.lines(10, costs, 1000))


@pytest.mark.parametrize(("reference", "arch"), [("resnet18", None), ("py:mine:network", None), ("a.pth", "resnet18")])
def test_the_teacher_at_a_smaller_size_keeps_its_weights(
    teacher: Path, reference: str, arch: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name alone a student is drawn at random: of timm's teachers, the best candidate was trained from scratch."""
    known = students(teacher)
    fake: Any = SimpleNamespace(reference=reference, arch=arch, prep=SimpleNamespace(size=(224, 224)), model=None)
    known.network, known.channels, known.macs = fake, 3, 224**2
    monkeypatch.setattr(candidates, "is_fixed", lambda _: False)
    monkeypatch.setattr(candidates, "profile", lambda _, size: SimpleNamespace(macs=size[1] * size[2]))
    found = known._resized(known.macs / 2)
    assert found is not None
    expected = {"student": reference, "input_size": "3x128x128"}
    if reference == "resnet18":
        expected["pretrained"] = True
    assert found.options == (expected if arch is None else {**expected, "student_arch": arch})


def test_a_large_budget_has_a_network_with_weights(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a ViT there was one from scratch, though timm has weights of several networks of that cost."""
    known = students(teacher)
    known.channels, known.size = 3, (224, 224)
    costs = {"convnext_small": 8_700, "convnext_tiny": 4_500, "mobilenetv3_large_100": 220}
    monkeypatch.setattr(
        known, "counted", lambda spec: costs.get(spec, 50_000 if "_large" in spec or "_base" in spec else 100)
    )
    monkeypatch.setattr(known, "_has_weights", lambda _: True)
    assert known._pretrained(8_800).spec == "convnext_small"
    monkeypatch.setattr(known, "_layers", lambda _: None)
    monkeypatch.setattr(known, "_resized", lambda _: None)
    monkeypatch.setattr(known, "_scratch", lambda most: Student("scratch", "resnet", most))
    monkeypatch.setattr(candidates, "with_weights", lambda _: [Series("few", "1", ("mobilenetv3_large_100",))])
    assert [each.kind for each in known.within(8_800)] == ["pretrained", "scratch"], "far below, but with weights"


@pytest.mark.parametrize(("reference", "pretrained"), [("resnet18", True), ("runs/teacher", False)])
def test_a_network_of_timm_is_fine_tuned_from_its_weights(
    reference: str, pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bare name it would be trained from scratch, and all students be taught by a network that knows nothing."""
    asked: list[Any] = []
    monkeypatch.setattr(Commands, "_trained", lambda self, name, command, run, kind, own: asked.append(kind(**own)))
    options = CompressOptions(teacher=reference, target_macs=0.5, data="digits")
    Commands(options, tmp_path, Silent(), 10, Course(Silent(), Costs({}, 0.0))).fine_tune("teacher", 3, "3x64x64")
    (given,) = asked
    assert (given.model, given.pretrained, given.input_size) == (reference, pretrained, "3x64x64")


def test_in_short_trainings_less_time_goes_into_the_teacher() -> None:
    """Of an hour on a slow machine a third went into views of the images that were seen once or twice."""
    plan, _ = plan_of(100, 50, 170)
    assert [plan.views(epochs) for epochs in (1, 3, 6, 10, 14, 30)] == [1, 3, 4, 6, 8, 8]


def test_what_has_weights_leaves_scratch_out(teacher: Path) -> None:
    """A part of the hour would go into a network that is 20 points behind after an epoch."""
    known = students(teacher)
    assert [each.kind for each in known.within(0.7 * known.macs)] == ["layers"]
    assert [each.kind for each in known.within(0.1 * known.macs)] == ["scratch"], "no depth is that cheap"


def test_int8_of_the_winner_has_a_row(teacher: Path, tmp_path: Path) -> None:
    """Whoever ships int8 would see the accuracy of another network."""
    pytest.importorskip("onnxruntime")
    result, _ = made(teacher, tmp_path / "out", export="onnx-int8", epochs=1)
    assert record_of(tmp_path / "out")["result"]["contenders"] == result.contenders
    assert made(teacher, tmp_path / "out", export="onnx-int8", epochs=1, resume=True)[0].contenders == result.contenders
    (row,) = (each for each in result.contenders if each["form"] == "int8")
    (own,) = (each for each in result.contenders if each["chosen"])
    assert row["run"] == Path(str(result.exported)).name
    found = kdcompress.evaluate(run=result.exported, split="calibration")
    assert row["top1"] == found.top1
    assert row["macs"] == pytest.approx(found.macs if found.expected_macs is None else found.expected_macs, abs=0.1)
    assert row["points_lost"] == pytest.approx(own["points_lost"] + own["top1"] - row["top1"], abs=1e-3)


def test_int8_may_be_what_keeps_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would not learn that the file that is shipped keeps a budget which the run misses, or the reverse."""
    own = {"form": "single", "top1": 88.0, "macs": 30.0, "ms": 4.0, "chosen": True, "within": False}
    result: Any = SimpleNamespace(run="net", contenders=[{"form": "teacher", **TEACHER}, own])
    scored = SimpleNamespace(top1=87.5, macs=30, expected_macs=None)
    monkeypatch.setattr(verdict, "evaluate_file", lambda *_: scored)
    monkeypatch.setattr(verdict, "load_network", lambda _: None)
    monkeypatch.setattr(verdict, "_milliseconds", lambda *_: [4.0, 2.5])
    for wanted, within in ((3.0, True), (2.0, False)):
        heard = Heard()
        options = CompressOptions(teacher="x", target_ms=wanted)
        rows = verdict.with_int8(result, tmp_path / "model.onnx", options, heard)
        assert [row["form"] for row in rows] == ["teacher", "single", "int8"]
        assert (rows[2]["within"], rows[2]["ms"], rows[2]["points_lost"]) == (within, 2.5, 2.5)
        assert not rows[2]["chosen"]
        assert heard.notes == within * ["Notice: model.onnx is within the budget, the run is not."]


def test_a_report_of_a_result_shows_what_it_won_against(teacher: Path, tmp_path: Path) -> None:
    """`report RUN` would replace the page of `compress` by one that says less."""
    result, _ = made(teacher, tmp_path / "out", epochs=1)
    assert result.report is None
    found = kdcompress.write_report(runs=[result.run], time=False)
    others = {row["run"] for row in result.contenders[1:] if not row["chosen"] and not row.get("dropped")}
    assert others <= {row["network"] for row in found.networks}
    assert len(found.networks) == 2 + len(others), "and the teacher"


@pytest.mark.parametrize(
    ("theirs", "ours", "number", "other"),
    [
        (("cat", "dog"), ("Cat", "Dog"), 2, False),
        (("cat", "dog"), ("dog", "cow"), 2, False),  # which is refused, with the names
        (("cat", "dog"), ("car", "bus"), 2, True),
        (None, ("car", "bus"), 2, False),
        (None, ("car", "bus"), 1000, True),
    ],
)
def test_a_teacher_of_other_names_needs_a_new_head(
    theirs: tuple[str, ...] | None, ours: tuple[str, ...], number: int, other: bool
) -> None:
    """Of cats and dogs it would be asked about cars, and its answers taken for the truth."""
    network: Any = SimpleNamespace(num_classes=number, class_names=theirs)
    source: Any = SimpleNamespace(num_classes=2, class_names=ours)
    assert has_other_classes(network, source) == other


def test_what_every_training_takes_is_handed_on(tmp_path: Path) -> None:
    """The help would show options that do nothing: no log of a night's trainings, no images without labels."""
    given = {"tensorboard": True, "log": "mlflow", "seed": 3, "unlabelled": str(tmp_path), "workers": 1}
    options = CompressOptions(teacher="t", target_macs=0.5, **given)
    commands = Commands(options, tmp_path, Silent(), 10, Course(Silent(), Costs({}, 0.0)))
    for kind, own in ((sets.DistillOptions, {"student": "lenet5"}), (sets.AddResStudentOptions, {"run": "r"})):
        made = commands._options(kind, own)
        assert {name: getattr(made, name) for name in given} == given
