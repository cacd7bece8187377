"""Who works on the trials of a search: one process, or several that never see each other but in Optuna's storage.

No trial is run twice: of two that drew the same architecture the one of the lower number runs it (as in Lamport's
bakery: who comes later waits until those before have said what they drew). A process is taken for dead when it has
given no sign for a while, by the clock of whoever looks; its trial is then run by another. All this is our choice.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompress.runs import atomic_file

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

SIGN, DEAD, LOOK = 15.0, 120.0, 2.0  # seconds between two signs of life, without one, between two looks at the others
ABANDONED, BEAT, CLOSED, DRAWN, WORKER = "abandoned", "beat", "closed", "drawn", "worker"


class Alone:
    """The only process on a study."""

    closed = False

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    def left(self) -> FrozenTrial | None:
        """A trial that this run has begun, and not ended."""
        running = self._running()
        return running[0] if running else None

    def enough(self, done: int, wanted: int) -> bool:
        """Whether no other trial need begin, since others are at work on what is missing."""
        return False

    def begin(self) -> optuna.Trial:
        return self.study.ask()

    def propose(self, parameters: Mapping[str, Any], scores: Any = None) -> None:
        """Let the next trial of this run have these parameters, and what it has scored already."""
        self.study.enqueue_trial(dict(parameters))

    @contextlib.contextmanager
    def at_work(self, trial: optuna.Trial, spec: str) -> Iterator[list[str]]:
        """While a trial runs; gives the specs of others that run and come before it."""
        yield []

    def close(self) -> None:
        """Let no trial begin any more, and wait for those that run."""

    def wait(self) -> None:
        """Until there may be something to do."""

    def is_done(self, trial: FrozenTrial) -> bool:
        """Whether a trial counts: it has ended, with an architecture of its own."""
        return trial.state.is_finished() and "spec" in trial.user_attrs

    def is_ours(self, trial: FrozenTrial) -> bool:
        """Whether this run, or an earlier process of it, has run a trial."""
        return True

    def _running(self) -> list[FrozenTrial]:
        import optuna

        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))


class Crew(Alone):
    """One of several processes on a study.

    Args:
        name: Of this run, the same when it is resumed.
        note: Told of waiting, and of others that died.
    """

    def __init__(self, study: optuna.Study, name: str, note: Callable[[str], None]) -> None:
        super().__init__(study)
        self.name, self.note = name, note
        self.seen: dict[int, tuple[Any, float]] = {}  # trial -> its last sign, and when that was first seen

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return bool(self.study.user_attrs.get(CLOSED))

    def left(self) -> FrozenTrial | None:
        return next(filter(self.is_ours, self._running()), None)

    def enough(self, done: int, wanted: int) -> bool:
        living, dead = self._others()
        if done + len(living) >= wanted:
            return True
        if dead:
            self._take_over(dead[0])
        return False

    def begin(self) -> optuna.Trial:
        import optuna

        return optuna.Trial(self.study, self._new({}, {}))

    def propose(self, parameters: Mapping[str, Any], scores: Any = None) -> None:
        # at once this run's own: a trial that waits for whoever comes may be taken by two, where a database locks badly
        self._new({"fixed_params": dict(parameters)}, {"scores": scores} if scores else {})

    @contextlib.contextmanager
    def at_work(self, trial: optuna.Trial, spec: str) -> Iterator[list[str]]:
        trial.set_user_attr(BEAT, time.time())
        trial.set_user_attr(DRAWN, spec)
        ended = threading.Event()
        thread = threading.Thread(target=self._live, args=(trial._trial_id, ended), daemon=True)
        thread.start()
        try:
            yield self._before(trial)
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        if not self.closed:
            self.study.set_user_attr(CLOSED, True)
        if (left := self.left()) is not None:  # the others would wait for it
            self._end(left)
        told = False
        while (found := self._others())[0]:
            if not told:
                self.note(f"Waiting for {len(found[0])} trial(s) of other processes.")
                told = True
            self.wait()
        for trial in found[1]:  # whatever becomes of them, they count no more
            self._end(trial)

    def wait(self) -> None:
        time.sleep(LOOK)

    def is_done(self, trial: FrozenTrial) -> bool:
        failed = trial.state.name == "FAIL"
        return super().is_done(trial) and not (failed and trial.user_attrs.get(ABANDONED))

    def is_ours(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get(WORKER) == self.name)

    def _new(self, system: dict[str, Any], user: dict[str, Any]) -> int:
        import optuna

        attributes = {**user, WORKER: self.name, BEAT: time.time()}
        made = optuna.create_trial(
            state=optuna.trial.TrialState.RUNNING, system_attrs=system, user_attrs=attributes
        )  # fmt: skip
        return self.study._storage.create_new_trial(self.study._study_id, made)

    def _before(self, trial: optuna.Trial) -> list[str]:
        """What living trials of a lower number have drawn; waits until each has."""
        while True:
            before = [other.user_attrs.get(DRAWN) for other in self._others()[0] if other.number < trial.number]
            if all(before):
                return list(map(str, before))
            time.sleep(LOOK / 10)

    def _others(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Running trials of other processes: of the living, and of the dead."""
        now = time.monotonic()
        living: list[FrozenTrial] = []
        dead: list[FrozenTrial] = []
        for trial in self._running():
            if self.is_ours(trial):
                continue
            sign, first = self.seen.get(trial._trial_id, (None, now))
            if sign != trial.user_attrs.get(BEAT):
                first = now
            self.seen[trial._trial_id] = trial.user_attrs.get(BEAT), first
            (living if now - first < DEAD else dead).append(trial)
        return living, dead

    def _take_over(self, trial: FrozenTrial) -> None:
        if self._end(trial):
            spec = trial.user_attrs.get(DRAWN, "a trial")
            self.note(f"Notice: the process at work on {spec} gave no sign for {DEAD:.0f} s; its trial is taken over.")
            if trial.params:
                self.propose(trial.params, trial.user_attrs.get("scores"))

    def _end(self, trial: FrozenTrial) -> bool:
        """Let a trial be none; False if that came too late."""
        import optuna

        try:
            self.study._storage.set_trial_user_attr(trial._trial_id, ABANDONED, True)
            return self.study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _live(self, trial: int, ended: threading.Event) -> None:
        while not ended.wait(SIGN):
            with contextlib.suppress(Exception):  # where it lasts, the trial itself meets it
                self.study._storage.set_trial_user_attr(trial, BEAT, time.time())


def name_of(folder: Path, storage: str) -> str:
    """Of the run that searches in a folder, whatever machine it is on; kept there beside the name of its storage."""
    path = folder / WORKER
    if not path.exists():
        with atomic_file(path) as file:
            file.write(f"{uuid.uuid4().hex}\n{storage}\n".encode())
    return path.read_text().split("\n")[0]
