"""What ``compress`` is going to train, and how long that takes (our choice)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdcompress.api.compress.candidates import LAYERS, Student, Students, focused
from kdcompress.api.targets import VIEWS
from kdcompress.errors import usage_error
from kdcompress.models.candidates import MOST_SECOND

FIRST_SHARE, SECOND_SHARE = 0.6, 1.7  # MACs of the members of a pair, of what an image may cost
FOCUS = 0.5  # of the images, for a res-student that has the teacher's features: as accurate behind a gate, and sooner
FORWARD_SHARE = 1 / 3  # of a training step, that the forward pass takes
FOCUS_STEPS = 200  # of an epoch; of fewer images it gets all
UNTIL_ENOUGH = 0.5  # of the teacher's MACs: where accuracy is the budget, networks of this cost compete
TRIAL = 1 / 8  # of the epochs, for every candidate; the rest is for those that may still win
LEAST_EPOCHS = 3  # of a trial: after one, a pair was 2.7 points behind a student alone that it led by 2 after four
LEAST_STEPS = 160  # of a trial or a look: after fewer, accuracies say little; but never more than half of the epochs
TIMES, LEAST_VIEWS = 2, 4  # that a cached view is seen, at least: with fewer views, less time goes into the teacher
PER_COMMAND = 4.0  # seconds besides training: opening data, scoring, saving
STUDENT, FIRST_MEMBER, RES_STUDENT = "student", "first member", "res-student"
MOST_EPOCHS = 400  # of a training: more gain nothing
# names of the run folders; those of short trainings have a prefix
TEACHER, SINGLE, FIRST, PAIR, HANDOVER = "teacher", "single", "first", "pair", "handover"
LOOK, TRIAL_OF = "look-", "trial-"
CALIBRATION = {True: 0.05, False: 0.12}  # of an epoch: scoring the calibration split, cached or read from the disk
RESERVE = 0.05  # of the time budget, for gates, scores and what the estimate got wrong
LEAST_RESERVE = 15.0  # seconds of a short one, as the report and an exported file take the same in any


def usable(seconds: float) -> float:
    """What trainings may take of a time budget, in seconds."""
    if math.isinf(seconds):
        return seconds
    return seconds - max(RESERVE * seconds, min(LEAST_RESERVE, seconds / 10))


@dataclass(frozen=True)
class Costs:
    """Seconds of an epoch of each student, and of all images through the teacher.

    Attributes:
        training: By the key of the student; with the teacher's part, where its outputs are not cached.
        teacher: Per view.
        fine_tuning: Of the teacher in all, before anything else.
        after: In all, after the last training: the score on the test split and the report.
    """

    training: dict[str, float]
    teacher: float
    fine_tuning: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The candidates of a budget.

    Attributes:
        most: MACs that an image may cost.
        singles: Students that would answer alone, one of each kind.
        first: First member of a pair.
        second: The res-student of that pair, or None.
        handover: Whether the first member may hand over to the teacher itself.
        fine_tunes: Whether the teacher gets new classes first.
        steps: Of an epoch.
        caches: Whether all trainings share the teacher's outputs, which are cached.
        focuses: Whether there are images enough to train a res-student on half of them, if it has the teacher's layers.
    """

    most: float
    singles: list[Student]
    first: Student | None
    second: Student | None
    handover: bool
    fine_tunes: bool
    steps: int
    caches: bool = True
    focuses: bool = False

    @classmethod
    def of(
        cls,
        students: Students,
        most: float,
        *,
        handover: bool,
        fine_tunes: bool,
        steps: int,
        caches: bool = True,
        focuses: bool = False,
        spelled: Callable[[float], str] = "--target-macs {:g}".format,
    ) -> Plan:
        """The plan before anything is known of the candidates.

        Args:
            spelled: The option that would allow a share of the teacher's MACs.

        Raises:
            UserError: Nothing is cheap enough.
        """
        singles = students.within(most)
        if not singles:
            if (least := least_share(students)) > 1:
                remedy = "`kdcompress export TEACHER --precision int8` makes the teacher itself smaller and faster."
                raise usage_error(f"No network is cheaper than the teacher's {students.macs:,} MACs.", remedy)
            share = most / students.macs
            problem = f"No network is within {spelled(share)}, {share:.2%} of the teacher's {students.macs:,} MACs."
            raise usage_error(problem, f"The cheapest needs {spelled(least)}.")
        first, second = pair(students, singles[0].kind, most, handover, focuses)
        return cls(most, singles, first, second, handover, fine_tunes, steps, caches, focuses)

    def trial_epochs(self, epochs: int) -> int:
        """Of every candidate, before most of them are dropped, of a plan for so many ``epochs`` of each member."""
        least = max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / self.steps))
        return max(1, round(TRIAL * epochs), min(least, epochs // 2))

    def single_trial_epochs(self, student: Student, epochs: int, costs: Costs) -> int:
        """Of a student alone: as long as the trials of both members of a pair take, so that they can be compared."""
        short = self.trial_epochs(epochs)
        if self.second is None:
            return short
        return max(short, round(short * self.pair_seconds(costs) / costs.training[student.key]))

    def views(self, epochs: int) -> int:
        """Of the images, for which the teacher's outputs are cached, of a plan for so many ``epochs``; 0: each training
        has its own.
        """
        if not self.caches:
            return 0
        views = max(LEAST_VIEWS, math.ceil(epochs / TIMES))
        return min(VIEWS, epochs, views + views % 2)  # of an odd number, first and last would be mirrored alike

    def is_settled(self, epochs: int) -> bool:
        """Whether a look leaves one student alone, and nothing that it would have to be compared with."""
        return self.look_epochs(epochs) > 0 and self.first is None and len(self.singles) == 2

    def look_epochs(self, epochs: int) -> int:
        """Of every student alone, before those that are hopeless are dropped; 0 for no such look."""
        look = math.ceil(LEAST_STEPS / self.steps)
        return look if len(self.singles) > 1 and 2 * look <= self.trial_epochs(epochs) else 0

    @property
    def has_trials(self) -> bool:
        """Whether there is anything to choose from."""
        return self.first is not None or len(self.singles) > 1

    def students(self) -> Iterator[Student]:
        """All that are trained in the trials."""
        yield from self.singles
        yield from self.members().values()

    def roles(self) -> list[tuple[str, Student]]:
        """What each would be: a student alone, or a member of the pair."""
        members = zip((FIRST_MEMBER, RES_STUDENT), (self.first, self.second), strict=True)
        return [*((STUDENT, each) for each in self.singles), *((role, each) for role, each in members if each)]

    def members(self) -> dict[str, Student]:
        """Those of the pair, by the names of their runs."""
        named = {FIRST: self.first, PAIR: self.second}
        return {name: each for name, each in named.items() if each is not None}

    def pair_seconds(self, costs: Costs) -> float:
        """Of an epoch of each of them."""
        return sum(costs.training[each.key] for each in self.members().values())

    def seconds(self, epochs: int, costs: Costs) -> float:
        """Estimated: trials, after a look of one student alone; then a pair, and a student alone for as long."""
        final = 2 * self.pair_seconds(costs) or costs.training[self.singles[0].key]
        commands = PER_COMMAND * (2 * len(list(self.students())) + 4)
        short = self._trial_seconds(epochs, costs) if self.has_trials else 0.0
        looked = 2 * self.focus_seconds(costs)  # before a trial, and before the last training
        once = costs.fine_tuning + commands + looked + costs.after
        return once + short + epochs * final + self.views(epochs) * costs.teacher

    def focus_seconds(self, costs: Costs) -> float:
        """Estimated: what it takes to see which images the first member is least sure of."""
        if not self.focuses or self.first is None or self.second is None:
            return 0.0
        return costs.training[self.first.key] * (FORWARD_SHARE if self.caches else 1.0)

    def _trial_seconds(self, epochs: int, costs: Costs) -> float:
        look, short = self.look_epochs(epochs), self.trial_epochs(epochs)
        looks = look * sum(costs.training[each.key] for each in self.singles)
        if self.is_settled(epochs):
            return looks
        tried = [self.single_trial_epochs(each, epochs, costs) * costs.training[each.key] for each in self.singles]
        return looks + (max(tried) if look else sum(tried)) + short * self.pair_seconds(costs)

    def epochs_within(self, seconds: float, costs: Costs) -> int:
        """The most epochs of each member that a time budget allows.

        Raises:
            UserError: Not even one.
        """
        within = usable(seconds)
        if (least := self.seconds(1, costs)) > within:
            minutes = next(each for each in itertools.count(math.ceil(least / 60)) if usable(60 * each) >= least)
            problem = f"--time-budget {seconds:.0f}s is too short for one epoch of every candidate."
            raise usage_error(problem, f"Give about {minutes}m.")
        low, high = 1, 2
        while self.seconds(high, costs) <= within and high < MOST_EPOCHS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.seconds(middle, costs) <= within else (low, middle)
        return min(low, MOST_EPOCHS)

    def lines(self, epochs: int, costs: Costs, teacher_macs: int) -> list[str]:
        """The plan as a table."""
        rows = [(f"{role} ({each.kind})" if role == STUDENT else role, each) for role, each in self.roles()]
        width = max(len(each.name) for _, each in rows)
        table = [
            f"  {role:<20} {each.name:<{width}}  {each.macs / 1e6:8.1f} M MACs  {each.macs / teacher_macs:6.1%}"
            for role, each in rows
        ]
        if self.handover and self.first:
            table.append(f"  {'handover':<20} {'the first member, then the teacher':<{width}}")
        look, trial = self.look_epochs(epochs), self.trial_epochs(epochs)
        first = look or trial
        each = f"{first} epoch{'s' * (first != 1)} each{f', {trial} for the best and the pair' if look else ''}"
        told = f"Trials of {each}; what may still win then gets {epochs} epochs per member"
        if not self.has_trials:
            told = f"It gets {epochs} epochs"
        minutes = self.seconds(epochs, costs) / 60
        return [*table, f"  {told}. About {minutes:.0f} min in all."]


def least_share(students: Students) -> float:
    """MACs of the cheapest network as a share of the teacher's, rounded up to four digits; above 1, none is cheaper."""
    return (math.floor(1e4 * students.cheapest() / students.macs) + 1) / 1e4


def pair(
    students: Students, kind: str, most: float, handover: bool, focuses: bool
) -> tuple[Student | None, Student | None]:
    """First member and res-student for an average of ``most`` MACs per image, of this kind where there is one.

    Args:
        handover: Whether the first member is of use without a res-student.
        focuses: Whether the res-student is trained on half of the images; one that still learns its features needs all.
    """
    # members of a residual cascade share their input; the teacher has its own
    first = students.of_kind(kind, FIRST_SHARE * most, resized=False)
    second = students.of_kind(kind, min(SECOND_SHARE * most, MOST_SECOND * students.macs), resized=False)
    if first is not None and second is not None and second.macs > first.macs:
        return first, focused(second, FOCUS) if focuses and second.kind == LAYERS else second
    return (students.of_kind(kind, FIRST_SHARE * most) if handover else None), None
