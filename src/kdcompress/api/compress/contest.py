"""Candidates against each other: short trainings of all, then long ones of those that may still win.

The rules are our choice. Everything is decided on the calibration split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdcompress.api.compress.candidates import Student, Students
from kdcompress.api.compress.commands import Commands
from kdcompress.api.compress.plan import RESERVE, Costs, Plan, pair
from kdcompress.errors import UserError

SINGLE, PAIR, HANDOVER = "single", "pair", "handover"
MAY_WIN = 2.0  # points below the best after the trials: ranks change in longer trainings
MOST_EPOCHS = 400

Limit = Callable[[float], dict[str, Any] | None]


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
        limit: That of the result: from the top-1 of a cascade with all members to options of ``gate-calibrate``; None
            if that is not enough.
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

    def run(self) -> list[Contender]:
        """Trials, then trainings of what may win; what may not is in ``dropped``."""
        single, first, second = self.plan.singles[0], self.plan.first, self.plan.second
        forms = {SINGLE}
        if self.plan.has_trials:
            short = self.plan.trial_epochs(self.epochs)
            singles = {each.kind: self._single(f"trial-{each.kind}", each, short) for each in self._looked_at(short)}
            kind = max(singles, key=lambda kind: singles[kind].top1)
            single = next(each for each in self.plan.singles if each.kind == kind)
            tried = [singles[kind]]
            if first is not None:
                first, second = pair(self.students, kind, self.plan.most, self.plan.handover)
            if first is not None:
                tried += self._cascades("trial-", first, second, short, self.within, {PAIR, HANDOVER})
            best = max(each.top1 for each in tried)
            forms = {each.form for each in tried if each.top1 >= best - MAY_WIN}
            if not any(each.form == PAIR and each.top1 > tried[0].top1 + MAY_WIN for each in tried):
                forms.add(SINGLE)  # a handover has a trained member from the start: no student loses to it in a trial
            others = [other for name, other in singles.items() if name != kind]
            self.dropped += [*others, *(each for each in tried if each.form not in forms)]
            scores = ", ".join(f"{each.form} {each.top1:.2f} %" for each in tried)
            self.commands.reporter.note(f"After {short} epoch(s): {scores}. Going on: {', '.join(sorted(forms))}")
        return self._finals(single, first, second, forms)

    def _looked_at(self, short: int) -> list[Student]:
        """The students alone that have a trial; where there is time for it, half of them are dropped after a look."""
        look = self.plan.look_epochs(self.epochs)
        if not look:
            return self.plan.singles
        seen = {each.kind: self._single(f"look-{each.kind}", each, look) for each in self.plan.singles}
        order = sorted(self.plan.singles, key=lambda each: -seen[each.kind].top1)
        kept = order[: self.plan.tried_singles]
        self.dropped = [seen[each.kind] for each in order[len(kept) :]]
        scores = ", ".join(f"{each.kind} {seen[each.kind].top1:.2f} %" for each in order)
        going = ", ".join(each.kind for each in kept)
        self.commands.reporter.note(f"After {look} epoch(s): {scores}. Going on: {going}")
        self.commands.course.replace_trials(kept, short)
        return kept

    def _finals(
        self, single: Student, first: Student | None, second: Student | None, forms: set[str]
    ) -> list[Contender]:
        """What is left of the time, in equal parts for the cascades and for the student alone, if both may win."""
        cascades, made, members = forms & {PAIR, HANDOVER}, list[Contender](), dict[str, Student]()
        if cascades and first is not None:
            members["first"] = first
        if PAIR in cascades and second is not None:
            members["pair"] = second
        each = sum(self.costs.training[student.name] for student in members.values())
        own = self.costs.training[single.name]
        # without a time budget, a student alone is trained for as long as a pair takes
        pairs = sum(self.costs.training[student.name] for student in (first, second) if student is not None)
        rival = max(self.epochs, round(pairs * self.epochs / own))
        share = 2 if SINGLE in forms else 1
        epochs = self.epochs if math.isinf(self.seconds) or not members else self._fitting(each, self._left / share)
        ahead = {name: (student.name, epochs) for name, student in members.items()}
        if SINGLE in forms:
            ahead[SINGLE] = single.name, self._fitting(own, self._left - epochs * each, rival)
        self.commands.course.replace_finals(ahead)
        if members and first is not None:
            made += self._cascades("", first, second, epochs, self.limit, cascades)
        if SINGLE in forms or not made:  # no gate may be within the budget
            made.append(self._single(SINGLE, single, self._fitting(own, self._left, rival)))
        return made

    @property
    def _left(self) -> float:
        """Seconds of the time budget for trainings to come."""
        return (1 - RESERVE) * self.seconds - self.before - (time.perf_counter() - self.began)

    def _fitting(self, cost: float, left: float, otherwise: int = MOST_EPOCHS) -> int:
        """Epochs of ``cost`` seconds each that fit into the time that is left; without a budget ``otherwise``."""
        return max(1, min(otherwise if math.isinf(left) else int(left / cost), MOST_EPOCHS))

    def _single(self, name: str, student: Student, epochs: int) -> Contender:
        result = self.commands.single(name, self.teacher, student.options, epochs)
        self._measure(student, name)
        return Contender(SINGLE, str(result.run), student.name, result.epochs, result.top1)

    def _cascades(
        self, prefix: str, first: Student, second: Student | None, epochs: int, limit: Limit, forms: set[str]
    ) -> list[Contender]:
        """Train the members, and give each form of cascade a gate."""
        began = time.perf_counter()
        own = self.commands.first(f"{prefix}first", self.teacher, first.options, epochs)
        wholes: list[Contender] = []
        if PAIR in forms and second is not None:
            more = epochs
            if not prefix and not math.isinf(self.seconds):  # what the first member took more, or less, than planned
                cost = self.costs.training[second.name]
                late = time.perf_counter() - began - epochs * self.costs.training[first.name]
                more = self._fitting(cost, epochs * cost - late)
            whole = self.commands.res_student(f"{prefix}{PAIR}", str(own.run), second.options, more)
            self._measure(second, f"{prefix}{PAIR}")
            names = f"{first.name} + {second.name}"
            wholes.append(Contender(PAIR, str(whole.run), names, own.epochs + whole.epochs, whole.top1))
        self._measure(first, f"{prefix}first")
        if HANDOVER in forms and self.plan.handover:
            arch = self.teacher.get("teacher_arch")
            joined = self.commands.cascade(
                f"{prefix}{HANDOVER}", [str(own.run), self.teacher["teacher"]], [arch] if arch else []
            )
            assert joined.top1 is not None
            names = f"{first.name}, then the teacher"
            wholes.append(Contender(HANDOVER, str(joined.run), names, own.epochs, joined.top1))
        gated = [self._gated(f"{prefix}{each.form}-gated", each, limit) for each in wholes]
        return [each for each in gated if each is not None]

    def _gated(self, name: str, whole: Contender, limit: Limit) -> Contender | None:
        """A cascade with a gate; None where no gate is within the budget."""
        wanted = limit(whole.top1)
        if wanted is None:
            return None
        try:
            gate = self.commands.gate(name, whole.run, wanted)
        except UserError as error:
            self.commands.reporter.note(f"Notice: no gate for the {whole.form}. {error.problem}")
            return None
        assert gate.gated_top1 is not None
        return Contender(whole.form, str(gate.run), whole.networks, whole.epochs, gate.gated_top1)

    def _measure(self, student: Student, name: str) -> None:
        if (seconds := self.commands.seconds_per_epoch(name)) is not None:
            self.costs.training[student.name] = seconds
