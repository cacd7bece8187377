"""Who gets the time of a ``compress``, and what its bar says is left; nothing is trained here."""

from __future__ import annotations

import dataclasses
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from heard import Steps
from kdcompress.api.compress.candidates import Student
from kdcompress.api.compress.contest import Contest
from kdcompress.api.compress.course import Course
from kdcompress.api.compress.plan import CALIBRATION, RESERVE, Costs, Plan
from kdcompress.engine.progress import Silent
from kdcompress.errors import Diverged, UserError, usage_error
from kdcompress.options import CompressOptions

KINDS = ("layers", "resized", "scratch")
EPOCHS, STEPS = 24, 200  # a trial is 3 epochs, a look is 1


class Scripted:
    """Stands for commands: a training takes no time, and its accuracy is known."""

    def __init__(self, scores: dict[str, float], course: Course, budget: dict[str, float]) -> None:
        self.scores, self.course, self.reporter = scores, course, Silent()
        self.trained: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.measured: dict[str, list[float]] = {}
        self.options = CompressOptions(teacher="teacher", **budget)
        self.views = 8
        self.exact = 91.0  # in full precision
        self.begun: set[str] = set()
        self.failing: set[str] = set()

    def _made(self, name: str, epochs: int) -> Any:
        self.course.begin(name)
        if name in self.failing:
            raise Diverged("The loss is not finite.")
        self.trained[name] = epochs
        return SimpleNamespace(run=name, epochs=epochs, top1=self.scores.get(name, 80.0))

    def single(self, name: str, teacher: Any, student: Any, epochs: int) -> Any:
        return self._made(name, epochs)

    first = single

    def res_student(self, name: str, run: str, student: Any, epochs: int) -> Any:
        return self._made(name, epochs)

    def cascade(self, name: str, members: Any, archs: Any) -> Any:
        return SimpleNamespace(run=name, top1=90.0)

    def gate(self, name: str, run: str, limit: Any) -> Any:
        if name not in self.scores:
            raise usage_error("No gate is within it.")
        return SimpleNamespace(run=name, gated_top1=self.scores[name])

    def score(self, run: str, split: str, **_: Any) -> Any:
        return SimpleNamespace(top1=self.exact)

    def has_begun(self, name: str) -> bool:
        return name in self.begun

    def seconds_of_epochs(self, name: str) -> list[float]:
        return self.measured.get(name, [])

    def spent(self, name: str) -> float:
        return self.seconds.get(name, 0.0)


class Fixed:
    """Stands for students to choose from."""

    macs = 1000

    def of_kind(self, kind: str, most: float, *, resized: bool = True) -> Student:
        return Student(kind, "first" if most < 500 else "second", int(most))


def contest(
    scores: dict[str, float],
    *,
    handover: bool = False,
    seconds: float = math.inf,
    kinds: tuple[str, ...] = KINDS,
    **budget: float,
) -> tuple[Contest, Scripted, Steps]:
    singles = [Student(kind, kind, 400) for kind in kinds]
    first, second = Student("layers", "first", 240), Student("layers", "second", 680)
    plan = Plan(400.0, singles, first, second, handover=handover, fine_tunes=False, steps=STEPS)
    costs = Costs({**dict.fromkeys(kinds, 10.0), "first": 6.0, "second": 14.0}, teacher=1.0)
    shown = Steps()
    commands: Any = Scripted(scores, Course.of(shown, plan, EPOCHS, costs, math.inf), budget or {"target_macs": 0.4})
    known: Any = Fixed()
    made = Contest(
        commands, known, plan, {"teacher": "teacher"}, EPOCHS, costs, seconds, 0.0, lambda _: {}, lambda _: {}
    )
    return made, commands, shown


def test_hopeless_students_alone_are_dropped_after_a_look() -> None:
    """Those that learn nothing in an epoch took a quarter of an hour's budget."""
    made, commands, _ = contest({"look-resized": 50.0, "look-scratch": 76.0, "trial-scratch": 85.0})
    contenders = made.run()
    assert [name for name in commands.trained if name.startswith("look-")] == [f"look-{kind}" for kind in KINDS]
    assert {name for name in commands.trained if name.startswith("trial-")} == {
        "trial-layers", "trial-scratch", "trial-first", "trial-pair"
    }  # fmt: skip
    assert commands.trained["look-resized"] == 1
    assert commands.trained["trial-first"] == commands.trained["trial-pair"] == 3
    assert commands.trained["trial-scratch"] == 6, "in the time of both members"
    assert {each.run for each in made.dropped} == {"look-resized", "trial-layers"}, "all that was tried is shown"
    assert [(each.form, each.networks) for each in contenders] == [("single", "scratch")]
    made, commands, _ = contest({"look-resized": 50.0, "look-scratch": 74.0})
    made.run()
    assert "trial-scratch" not in commands.trained, "six points behind"


@pytest.mark.parametrize(
    "lost", ["look-layers", "trial-layers", "trial-pair", "trial-first", "single", "first", "pair"]
)
def test_a_training_that_fails_leaves_the_others(lost: str) -> None:
    """One candidate whose loss is not finite ended hours of work, and every resumption again."""
    scores = {"look-resized": 60.0, "trial-layers": 88.0, "trial-pair-gated": 88.5, "pair-gated": 90.0, "single": 89.0}
    made, commands, _ = contest(scores, max_drop=1.0)
    commands.failing = {lost}
    answers = {each.run for each in made.run()}
    assert lost not in {*answers, *(each.run for each in made.dropped)}
    assert answers
    assert made.failure is not None
    assert made.failure.__traceback__ is None, "its frames keep the network that did not fit"
    if lost == "single":
        assert answers == {"pair-gated", "trial-layers"}, "its trial is the best that there is of it"
    if lost in ("first", "pair", "trial-pair", "trial-first"):
        assert answers == {"single"}


def test_a_look_is_better_than_nothing() -> None:
    made, commands, _ = contest({"look-layers": 70.0}, kinds=("layers", "resized"))
    made.plan = dataclasses.replace(made.plan, first=None, second=None)
    commands.failing = {"single"}
    assert [each.run for each in made.run()] == ["look-resized"]


def test_where_nothing_can_be_trained_the_error_is_told() -> None:
    made, commands, _ = contest({})
    commands.failing = {f"look-{kind}" for kind in KINDS}
    with pytest.raises(Diverged):
        made.run()


def test_one_kind_is_not_looked_at() -> None:
    """There is nothing to drop."""
    _, commands, _ = made = contest({}, kinds=("layers",))
    made[0].run()
    assert not any(name.startswith("look-") for name in commands.trained)


BEHIND = {"look-resized": 60.0, "look-scratch": 60.0}


@pytest.mark.parametrize(
    ("scores", "given", "forms"),
    [
        ({"trial-layers": 86.0, "trial-pair-gated": 85.9}, {}, ["pair", "single"]),
        ({"trial-layers": 86.0, "trial-pair-gated": 86.1}, {}, ["pair"]),
        ({"trial-layers": 86.0, "trial-pair-gated": 87.1}, {"max_drop": 1.0}, ["pair", "single"]),
        ({"trial-layers": 86.0, "trial-pair-gated": 83.0}, {}, ["single"]),
        ({"trial-layers": 70.0, "trial-handover-gated": 88.1}, {"handover": True}, ["handover", "single"]),
        ({"trial-layers": 70.0, "trial-handover-gated": 88.0, "trial-pair-gated": 87.0}, {"handover": True},
         ["pair", "handover"]),
        ({"trial-layers": 70.0, "trial-handover-gated": 88.0, "trial-pair-gated": 80.0}, {"handover": True},
         ["handover", "single"]),
    ],
)  # fmt: skip
def test_what_is_far_behind_gets_no_time(scores: dict[str, float], given: dict[str, Any], forms: list[str]) -> None:
    """A handover has a trained member from the start; a pair is compared after the same time."""
    made, commands, _ = contest({**BEHIND, **scores, "pair-gated": 90.0, "handover-gated": 90.0}, **given)
    assert [each.form for each in made.run()] == forms
    assert ("first" in commands.trained) == (forms != ["single"])


def test_a_gate_that_cannot_be_found_is_not_all_there_is() -> None:
    """The trials' gates are for MACs, those of the result for milliseconds: hours would end without any network."""
    made, _, _ = contest({**BEHIND, "trial-layers": 80.0, "trial-pair-gated": 88.0}, target_ms=3.0)
    assert [each.form for each in made.run()] == ["single"]


def test_an_error_that_is_not_about_the_gate_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full would be taken for a budget that nothing meets."""

    def full(*_: Any) -> None:
        raise UserError("No space left on device.")

    monkeypatch.setattr(Scripted, "gate", full)
    made, _, _ = contest({})
    with pytest.raises(UserError, match="No space left"):
        made.run()


def test_the_time_that_is_left_goes_to_what_may_win() -> None:
    """A budget of 4,000 seconds, of which nothing is used up yet: trainings take none here."""
    scores = {**BEHIND, "trial-layers": 80.0, "trial-pair-gated": 88.0, "pair-gated": 89.0}
    made, commands, _ = contest(scores, seconds=4000.0)
    commands.seconds["first"] = 1000.0  # less than was planned: the second gets the rest
    made.run()
    assert commands.trained["first"] == pytest.approx(((1 - RESERVE) * 4000 + 1000) / 20, abs=2)
    assert commands.trained["pair"] == pytest.approx((1 - RESERVE) * 4000 / 14, abs=2)
    made, commands, _ = contest(scores, seconds=4000.0)
    commands.measured = {"trial-first": [3.0, 2.9, 3.0], "trial-pair": [8.0, 8.2, 8.1]}
    made.run()
    assert made.cached == 3
    assert commands.trained["first"] == pytest.approx(
        ((1 - RESERVE) * 4000 - 5) / 11.1 / (1 + CALIBRATION[True]), abs=2
    )
    made, commands, _ = contest({**scores, "trial-layers": 88.5}, seconds=4000.0)
    made.run()
    assert commands.trained["first"] == pytest.approx((1 - RESERVE) * 4000 / 2 / 20, abs=2)


def test_where_no_time_is_left_the_trials_are_the_answer() -> None:
    """Of a plan that took photos to be read at once, the last trainings had one epoch, after trials of fifty."""
    scores = {**BEHIND, "trial-layers": 87.5, "trial-pair-gated": 87.0, "trial-pair-gated-last": 87.0}
    made, commands, _ = contest(scores, seconds=4000.0)
    commands.measured = {"look-layers": [3000.0]}
    found = made.run()
    assert {each.run for each in found} == {"trial-pair-gated-last", "trial-layers"}
    assert "first" not in commands.trained
    assert not any(each.run == "trial-layers" for each in made.dropped), "it competes"
    assert made.costs.training["second"] == pytest.approx(14 * made.costs.training["layers"] / 10), "as badly planned"


def test_what_has_begun_is_gone_on_with() -> None:
    """A kill late in the last training would ship the trial in its place: no time seems to be left."""
    scores = {**BEHIND, "trial-layers": 87.5, "trial-pair-gated": 87.0, "pair-gated": 88.0}
    made, commands, shown = contest(scores, seconds=4000.0)
    commands.measured = {"look-layers": [3000.0]}
    commands.begun = {"first", "single"}
    assert {each.run for each in made.run()} == {"pair-gated", "single"}
    assert not commands.course.ahead
    assert shown.shown[-1][0] == shown.shown[-1][1]


def test_a_look_that_leaves_one_is_enough() -> None:
    """An eighth of the time went into a trial against nobody."""
    made, commands, _ = contest({"look-layers": 60.0, "look-resized": 62.0}, kinds=("layers", "resized"))
    made.plan = dataclasses.replace(made.plan, first=None, second=None)
    assert [each.form for each in made.run()] == ["single"]
    assert list(commands.trained) == ["look-layers", "look-resized", "single"]


def test_what_a_gate_may_lose_is_measured_in_its_own_precision() -> None:
    """A training in bf16 misses an image or two of three hundred, and the gate would be allowed as much less."""
    made, commands, _ = contest({**BEHIND, "trial-pair-gated": 90.0, "pair-gated": 90.0}, max_drop=1.0)
    asked: list[float] = []
    made.limit = lambda top1: {"max_drop": asked.append(top1)}
    made.run()
    assert asked == [commands.exact]


@pytest.mark.parametrize(
    ("left", "epochs"), [(0.0, 1), (19.9, 1), (20.0, 2), (30.9, 2), (31.0, 3), (42.0, 4), (51.9, 4), (52.0, 5)]
)
def test_epochs_that_fit(left: float, epochs: int) -> None:
    """An epoch takes 10 seconds; the teacher's outputs for two of four views are still to be cached, 1 second each."""
    made, commands, _ = contest({})
    made.cached, commands.views = 2, 4
    assert made._fitting(10.0, left) == epochs


def test_the_bar_counts_every_training_and_ends_with_the_last() -> None:
    """A bar that jumps back, or ends at step 7 of 12, is worse than none."""
    made, commands, shown = contest({**BEHIND, "trial-pair-gated": 88.0, "trial-layers": 88.5, "pair-gated": 90.0})
    made.run()
    steps = [step for step, _, _ in shown.shown]
    assert steps == list(range(1, len(commands.trained) + 1))
    assert [whole for _, whole, _ in shown.shown] == [9] * 9
    left = [seconds for _, _, seconds in shown.shown]
    assert left == sorted(left, reverse=True)
    # three looks, the trials of one student and of the pair, then 24 epochs of it and as long a training of the student
    expected = 3 * 10 + 8 * 10 + 4 * 20 + 24 * 20 + 48 * 10
    assert left[0] == pytest.approx(expected, rel=0.1)


def test_a_time_budget_bounds_what_the_bar_says() -> None:
    """The estimate of a busy moment must not exceed what will be kept."""
    costs = Costs({"net": 100.0}, teacher=0.0)
    shown = Steps()
    course = Course(shown, costs, until=math.inf, ahead={"single": ("net", 50)})
    assert course.left() == pytest.approx(5000, rel=0.01)
    course.until = 0.0  # long ago, on that clock
    assert course.left() == 0.0
    course.until, course.fills = time.perf_counter() + 9000, True  # the last trainings get what is left
    assert course.left() == pytest.approx(9000, abs=10)
