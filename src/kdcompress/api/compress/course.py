"""What a ``compress`` still has to train, and how long that takes: what its progress bar shows (our choice)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from kdcompress.api.compress.plan import (
    LOOK,
    MOST_EPOCHS,
    PER_COMMAND,
    SINGLE,
    TEACHER,
    TRIAL_OF,
    Costs,
    Plan,
)
from kdcompress.engine.progress import Reporter


@dataclass
class Course:
    """The trainings ahead.

    Attributes:
        costs: Shared with the contest, which replaces what was planned by what was measured.
        ahead: From names of runs to student and epochs, in the order of their training.
        until: Where there is a time budget, when it is used up: on the clock of ``time.perf_counter``.
        fills: Whether the last trainings get whatever is left until then.
        done: Number of trainings that have begun, in this attempt.
        views: For which the teacher's outputs are still to be cached.
    """

    reporter: Reporter
    costs: Costs
    until: float = math.inf
    fills: bool = False
    ahead: dict[str, tuple[str, int]] = field(default_factory=dict)
    done: int = 0
    views: int = 0

    @classmethod
    def of(cls, reporter: Reporter, plan: Plan, epochs: int, costs: Costs, until: float) -> Course:
        """Everything that a plan may come to.

        Args:
            epochs: Of each member of a cascade.
        """
        made = cls(reporter, costs, until, fills=until < math.inf and epochs < MOST_EPOCHS, views=plan.views(epochs))
        if plan.fine_tunes:
            made.ahead[TEACHER] = TEACHER, 0
        if plan.has_trials:
            look, short = plan.look_epochs(epochs), plan.trial_epochs(epochs)
            made.ahead |= {f"{LOOK}{each.kind}": (each.key, look) for each in plan.singles if look}
            tried = plan.singles[:1] if look else plan.singles
            for each in () if plan.is_settled(epochs) else tried:
                made.ahead[f"{TRIAL_OF}{each.kind}"] = each.key, plan.single_trial_epochs(each, epochs, costs)
            made.ahead |= {f"{TRIAL_OF}{name}": (each.key, short) for name, each in plan.members().items()}
        made.ahead |= {name: (each.key, epochs) for name, each in plan.members().items()}
        single = plan.singles[0].key
        made.ahead[SINGLE] = single, max(epochs, round(epochs * plan.pair_seconds(costs) / costs.training[single]))
        return made

    def replace(self, gone: Iterable[str], known: dict[str, tuple[str, int]]) -> None:
        """Trainings that were expected do not come, and others do."""
        for name in gone:
            self.ahead.pop(name, None)
        self.ahead = {**known, **self.ahead}

    def begin(self, name: str) -> None:
        """A command begins; if it is one of the trainings ahead, the reporter hears of it."""
        if name in self.ahead:
            self.done += 1
            self.reporter.plan(self.done, self.done + len(self.ahead) - 1, self.left())
            self.pass_by(name)
            self.views = self.views if name == TEACHER else 0

    def pass_by(self, name: str) -> None:
        """A training has begun, or had been finished before."""
        self.ahead.pop(name, None)

    def left(self) -> float:
        """Seconds of all that is ahead."""
        training = sum(epochs * self.costs.training.get(student, 0.0) for student, epochs in self.ahead.values())
        tuning = self.costs.fine_tuning if TEACHER in self.ahead else 0.0
        targets = self.costs.teacher * self.views
        budget = max(self.until - time.perf_counter(), 0.0)
        if self.fills:
            return budget
        expected = training + tuning + targets + 2 * PER_COMMAND * (len(self.ahead) + 1)
        return min(expected, budget)
