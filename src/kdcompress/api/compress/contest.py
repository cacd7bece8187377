"""Candidates against each other: short trainings of all, then long ones of those that may still win.

The rules are our choice. Everything is decided on the calibration split.
"""

from __future__ import annotations

import bisect
import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from kdcompress.api.compress.candidates import Student, Students
from kdcompress.api.compress.commands import Commands
from kdcompress.api.compress.plan import (
    CALIBRATION,
    FIRST,
    HANDOVER,
    LOOK,
    MOST_EPOCHS,
    PAIR,
    SINGLE,
    TRIAL_OF,
    Costs,
    Plan,
    pair,
    usable,
)
from kdcompress.errors import USAGE, Diverged, UserError, first_line

T = TypeVar("T")

HOPELESS = 5.0  # points below the best student alone, after a look
MAY_WIN = 2.0  # points below the best after the trials: ranks change in longer trainings, in favour of cascades

Limit = Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """A trained answer to the budget.

    Attributes:
        form: ``single``, ``pair`` or ``handover``.
        run: Path of the run folder.
        networks: Its members, for tables.
        epochs: Of its members together.
        top1: On the calibration split, of a cascade with its gate.
    """

    form: str
    run: str
    networks: str
    epochs: int
    top1: float


@dataclass
class Contest:
    """The trainings of one ``compress``.

    Attributes:
        teacher: Its reference, as options of ``distill``.
        epochs: Of each member, without a time budget.
        costs: As planned; replaced by what was measured.
        seconds: Time budget, infinity for none.
        before: Seconds that earlier, interrupted attempts took.
        within: Limit of a gate in the trials.
        dropped: What the trials left behind.
        tried: Epochs of the trials, by the names of their runs.
        alone: Students that were trained to answer alone, by the names of their runs.
        failure: The error of the last training that failed.
        planned: Seconds of an epoch of each student, as planned.
        measured: Names of the students whose seconds were measured since.
        cached: Views of the images for which a training has cached the teacher's outputs; all see the same views.
        limit: That of the result: from the top-1 of a cascade with all members to options of ``gate-calibrate``.
    """

    commands: Commands
    students: Students
    plan: Plan
    teacher: dict[str, Any]
    epochs: int
    costs: Costs
    seconds: float
    before: float
    within: Limit
    limit: Limit
    began: float = field(default_factory=time.perf_counter)
    dropped: list[Contender] = field(default_factory=list)
    cached: int = 0
    tried: dict[str, int] = field(default_factory=dict)
    alone: dict[str, Contender] = field(default_factory=dict)
    failure: Exception | None = None

    def __post_init__(self) -> None:
        self.planned = dict(self.costs.training)
        self.measured: set[str] = set()

    def run(self) -> list[Contender]:
        """Trials, then trainings of what may win; what may not is in ``dropped``.

        Raises:
            Diverged, torch.OutOfMemoryError: No student can be trained.
        """
        single, first, second = self.plan.singles[0], self.plan.first, self.plan.second
        forms = {SINGLE}
        looked = self._looked_at() if self.plan.has_trials else []
        if len(looked) == 1 and first is None:  # there is nothing left to choose
            single = looked[0][0]
        elif looked:
            short = self.plan.trial_epochs(self.epochs)
            singles = self._singles(TRIAL_OF, looked)
            kind = max(singles, key=lambda kind: singles[kind].top1)
            single = next(each for each in self.plan.singles if each.kind == kind)
            tried = [singles[kind]]
            if first is not None:
                first, second = pair(self.students, kind, self.plan.most, self.plan.handover, self.plan.focuses)
            if first is not None:
                tried += self._cascades(TRIAL_OF, first, second, short, self.within, {PAIR, HANDOVER})
            best = max(each.top1 for each in tried)
            forms = {each.form for each in tried if each.top1 >= best - MAY_WIN}
            ahead = any(each.form == PAIR and each.top1 > tried[0].top1 for each in tried) and PAIR in forms
            # a gate for MACs, once found, is found again: only then the student alone is not needed in any case; and a
            # handover has a trained member from the start, so it never drives one out
            sure = self.commands.options.target_macs is not None
            forms = forms - {SINGLE} if sure and ahead else forms | {SINGLE}
            others = [other for name, other in singles.items() if name != kind]
            self.dropped += [*others, *(each for each in tried if each.form not in forms)]
            scores = ", ".join(f"{each.form} {each.top1:.2f} % ({each.epochs} epochs)" for each in tried)
            self.commands.reporter.note(f"After the trials: {scores}. Going on: {', '.join(sorted(forms))}")
        return self._finals(single, first, second, forms)

    def _looked_at(self) -> list[tuple[Student, int]]:
        """Students alone, with the epochs of their trials; where there is time, a look drops the hopeless ones."""
        look, singles = self.plan.look_epochs(self.epochs), self.plan.singles
        kept = singles
        if look:
            seen = self._singles(LOOK, [(each, look) for each in singles])
            order = sorted((each for each in singles if each.kind in seen), key=lambda each: -seen[each.kind].top1)
            best = seen[order[0].kind].top1
            kept = [each for each in order[: math.ceil(len(order) / 2)] if seen[each.kind].top1 >= best - HOPELESS]
            self.dropped = [seen[each.kind] for each in order[len(kept) :]]
            scores = ", ".join(f"{each.kind} {seen[each.kind].top1:.2f} %" for each in order)
            going = ", ".join(each.kind for each in kept)
            self.commands.reporter.note(f"After {look} epoch(s): {scores}. Going on: {going}")
        # both members of a pair are still to be measured: of what was planned alone, the ratio is right
        planned = dataclasses.replace(self.costs, training=self.planned)
        trials = [(each, self.plan.single_trial_epochs(each, self.epochs, planned)) for each in kept]
        settled = len(kept) == 1 and self.plan.first is None
        known = {} if settled else {f"{TRIAL_OF}{each.kind}": (each.key, own) for each, own in trials}
        self.commands.course.replace([f"{TRIAL_OF}{each.kind}" for each in singles], known)
        return trials

    def _singles(self, stem: str, students: Sequence[tuple[Student, int]]) -> dict[str, Contender]:
        """Students alone, each trained for its epochs, by kind; those that cannot be trained are left out.

        Raises:
            Diverged, torch.OutOfMemoryError: None of them can.
        """
        made = {each.kind: self._single(f"{stem}{each.kind}", each, epochs) for each, epochs in students}
        if not any(made.values()) and self.failure is not None:
            raise self.failure
        return {kind: each for kind, each in made.items() if each is not None}

    def _finals(
        self, single: Student, first: Student | None, second: Student | None, forms: set[str]
    ) -> list[Contender]:
        """What is left of the time, in equal parts for the cascades and for the student alone, if both may win."""
        cascades, made, members = forms & {PAIR, HANDOVER}, list[Contender](), dict[str, Student]()
        if cascades and first is not None:
            members[FIRST] = first
        if PAIR in cascades and second is not None:
            members[PAIR] = second
        each = sum(self.costs.training[student.key] for student in members.values())
        own = self.costs.training[single.key]
        # without a time budget, a student alone is trained for as long as a pair takes
        pairs = sum(self.costs.training[student.key] for student in (first, second) if student is not None)
        rival = max(self.epochs, round(pairs * self.epochs / own))
        # of an attempt that goes on, the parts are those of the whole
        whole = self._left + sum(self.commands.spent(name) for name in (FIRST, PAIR, SINGLE))
        part = whole / 2 if SINGLE in forms else whole
        epochs = self._fitting(each, part, self.epochs) if members else self.epochs
        # with less time than planned, trials are better than what is still possible; but what has begun is gone on with
        tried, short = self.tried.get(f"{TRIAL_OF}{FIRST}", 0), self.tried.get(f"{TRIAL_OF}{single.kind}", 0)
        are_tried = tried >= epochs and not self.commands.has_begun(FIRST)
        ahead = {} if are_tried else {name: (student.key, epochs) for name, student in members.items()}
        if SINGLE in forms:
            ahead[SINGLE] = single.key, self._fitting(own, whole - epochs * each, rival)
        self.commands.course.replace((FIRST, PAIR, SINGLE), ahead)
        self.commands.course.fills = False
        if members and first is not None:
            if are_tried:
                made += self._cascades(TRIAL_OF, first, second, tried, self.limit, cascades, gated="gated-last")
            else:
                made += self._cascades("", first, second, epochs, self.limit, cascades, part)
        if SINGLE in forms or not made:  # no gate may be within the budget
            alone = self._fitting(own, self._left + self.commands.spent(SINGLE), rival)
            is_tried = short >= alone and not self.commands.has_begun(SINGLE)
            name = f"{TRIAL_OF}{single.kind}" if is_tried else SINGLE
            if is_tried:
                self.commands.course.pass_by(SINGLE)
            last = self._single(name, single, short if is_tried else alone)
            shorter = (self.alone.get(f"{stem}{single.kind}") for stem in (TRIAL_OF, LOOK))
            made += [each for each in (last, *shorter) if each is not None][:1]
        if not made and self.failure is not None:
            raise self.failure
        answers = {each.run for each in made}
        self.dropped = [each for each in self.dropped if each.run not in answers]
        return made

    @property
    def _left(self) -> float:
        """Seconds of the time budget for trainings to come."""
        return usable(self.seconds) - self.costs.after - self.before - (time.perf_counter() - self.began)

    def _fitting(self, cost: float, left: float, otherwise: int = MOST_EPOCHS) -> int:
        """Epochs of ``cost`` seconds that fit into the time that is left; without a budget ``otherwise``.

        The first training that is longer than those before caches more views of the teacher's outputs.
        """
        if math.isinf(left):
            return otherwise

        def seconds(epochs: int) -> float:
            return epochs * cost + self.costs.teacher * max(min(epochs, self.commands.views or 0) - self.cached, 0)

        return bisect.bisect_right(range(2, MOST_EPOCHS + 1), left, key=seconds) + 1

    def _single(self, name: str, student: Student, epochs: int) -> Contender | None:
        """A student alone; None if it cannot be trained."""
        result = self._trained(student, lambda: self.commands.single(name, self.teacher, student.options, epochs))
        if result is None:
            return None
        self.tried[name] = result.epochs
        self._measure(student, name)
        self.alone[name] = Contender(SINGLE, str(result.run), student.name, result.epochs, result.top1)
        return self.alone[name]

    def _trained(self, student: Student, train: Callable[[], T]) -> T | None:
        """What a training makes; None if its loss is not finite, or the device runs out of memory."""
        try:
            return train()
        except (Diverged, torch.OutOfMemoryError) as error:
            self.failure = error.with_traceback(None)  # whose frames would keep the network, and its memory
            error.__context__ = None
            self.commands.reporter.note(f"Notice: {student.name} cannot be trained: {first_line(error)}")
        gc.collect()
        return None

    def _cascades(
        self,
        prefix: str,
        first: Student,
        second: Student | None,
        epochs: int,
        limit: Limit,
        forms: set[str],
        seconds: float = math.inf,
        gated: str = "gated",
    ) -> list[Contender]:
        """Train the members, and give each form of cascade a gate; those whose members cannot be trained are left out.

        Args:
            epochs: Of each member; of the second what is left of ``seconds``, where those are finite.
            gated: How the names of runs with a gate end.
        """
        own = self._trained(first, lambda: self.commands.first(f"{prefix}{FIRST}", self.teacher, first.options, epochs))
        if own is None:
            return []
        self.tried[f"{prefix}{FIRST}"] = own.epochs
        self._measure(first, f"{prefix}{FIRST}")
        wholes: list[Contender] = []
        if PAIR in forms and second is not None:
            more = epochs
            if not math.isinf(seconds):
                left = seconds - self.commands.spent(FIRST) - self.plan.focus_seconds(self.costs)
                more = self._fitting(self.costs.training[second.key], left)
            base, options = str(own.run), second.options
            whole = self._trained(second, lambda: self.commands.res_student(f"{prefix}{PAIR}", base, options, more))
            if whole is not None:
                self._measure(second, f"{prefix}{PAIR}")
                names = f"{first.name} + {second.name}"
                wholes.append(Contender(PAIR, str(whole.run), names, own.epochs + whole.epochs, whole.top1))
        if HANDOVER in forms and self.plan.handover:
            arch = self.teacher.get("teacher_arch")
            joined = self.commands.cascade(
                f"{prefix}{HANDOVER}", [str(own.run), self.teacher["teacher"]], [arch] if arch else []
            )
            assert joined.top1 is not None
            names = f"{first.name}, then the teacher"
            wholes.append(Contender(HANDOVER, str(joined.run), names, own.epochs, joined.top1))
        found = [self._gated(f"{prefix}{each.form}-{gated}", each, limit) for each in wholes]
        return [each for each in found if each is not None]

    def _gated(self, name: str, whole: Contender, limit: Limit) -> Contender | None:
        """A cascade with a gate; None where no gate is within the budget."""
        full = whole.top1
        if self.commands.options.max_drop is not None and limit is self.limit:  # trainings may be in lower precision
            full = self.commands.score(whole.run, "calibration", score_teacher=False).top1
        try:
            gate = self.commands.gate(name, whole.run, limit(full))
        except UserError as error:
            if error.exit_code != USAGE:  # a full disk, say
                raise
            self.commands.reporter.note(f"Notice: no gate for the {whole.form}. {error.problem}")
            return None
        assert gate.gated_top1 is not None
        return Contender(whole.form, str(gate.run), whole.networks, whole.epochs, gate.gated_top1)

    def _measure(self, student: Student, name: str) -> None:
        """Learn from a training what an epoch takes, without the targets that it cached."""
        if seconds := self.commands.seconds_of_epochs(name):
            own = (1 + CALIBRATION[self.plan.caches]) * statistics.median(seconds)
            self.measured.add(student.key)
            if len(self.measured) == 1 and student.key in self.planned:  # the others were planned as well, or as badly
                known = own / self.planned[student.key]
                self.costs.training.update({each: known * cost for each, cost in self.planned.items()})
            self.costs.training[student.key] = own
            self.cached = max(self.cached, min(len(seconds), self.commands.views or 0))
