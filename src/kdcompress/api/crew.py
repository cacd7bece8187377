"""Sharing the trials of a search: one process, or several that communicate through Optuna's storage alone.

No trial is run twice: of two that drew the same architecture, the one with the lower number runs it (as in Lamport's
bakery algorithm, a trial waits until all earlier ones have published what they drew). A process without a heartbeat
for a while, by the clock of the observer, counts as dead; its trial is run by another one. All this is our choice.
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

HEARTBEAT, DEAD, POLL = 15.0, 120.0, 2.0  # seconds: between heartbeats, without one, between polls of the others
ABANDONED, BEAT, CLOSED, DRAWN, WORKER = "abandoned", "beat", "closed", "drawn", "worker"


class Alone:
    """The only process on a study."""

    closed = False

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    def left(self) -> FrozenTrial | None:
        """A trial that this run began and has not finished."""
        running = self._running()
        return running[0] if running else None

    def enough(self, done: int, wanted: int) -> bool:
        """Whether other processes are already running all trials that are missing."""
        return False

    def begin(self) -> optuna.Trial:
        """Start a new trial."""
        return self.study.ask()

    def propose(self, parameters: Mapping[str, Any], scores: Any = None) -> None:
        """Give the next trial of this run these parameters, and the scores that it has already."""
        self.study.enqueue_trial(dict(parameters))

    @contextlib.contextmanager
    def at_work(self, trial: optuna.Trial, spec: str) -> Iterator[list[str]]:
        """Context in which a trial runs; yields the specs of running trials with lower numbers."""
        yield []

    def close(self) -> None:
        """Start no more trials, and wait for those that run."""

    def wait(self) -> None:
        """Sleep until there may be something to do."""

    def is_done(self, trial: FrozenTrial) -> bool:
        """Whether a trial counts: it has finished, with an architecture of its own."""
        return trial.state.is_finished() and "spec" in trial.user_attrs

    def is_ours(self, trial: FrozenTrial) -> bool:
        """Whether this run, or an earlier process of it, ran a trial."""
        return True

    def _running(self) -> list[FrozenTrial]:
        import optuna

        return self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))


class Crew(Alone):
    """One of several processes on a study.

    Args:
        name: Name of this run, the same when it is resumed.
        note: Receives notices, of waiting and of processes that died.
    """

    def __init__(self, study: optuna.Study, name: str, note: Callable[[str], None]) -> None:
        super().__init__(study)
        self.name, self.note = name, note
        self.seen: dict[int, tuple[Any, float]] = {}  # trial -> its last heartbeat, and when this process first saw it

    @property
    def closed(self) -> bool:  # type: ignore[override]
        return bool(self.study.user_attrs.get(CLOSED))

    def left(self) -> FrozenTrial | None:
        return next(filter(self.is_ours, self._running()), None)

    def enough(self, done: int, wanted: int) -> bool:
        live, dead = self._others()
        if done + len(live) >= wanted:
            return True
        if dead:
            self._take_over(dead[0])
        return False

    def begin(self) -> optuna.Trial:
        import optuna

        return optuna.Trial(self.study, self._new({}, {}))

    def propose(self, parameters: Mapping[str, Any], scores: Any = None) -> None:
        # assigned to this run at once: with a database that locks badly, two processes may take a queued trial
        self._new({"fixed_params": dict(parameters)}, {"scores": scores} if scores else {})

    @contextlib.contextmanager
    def at_work(self, trial: optuna.Trial, spec: str) -> Iterator[list[str]]:
        trial.set_user_attr(BEAT, time.time())
        trial.set_user_attr(DRAWN, spec)
        ended = threading.Event()
        thread = threading.Thread(target=self._heartbeats, args=(trial._trial_id, ended), daemon=True)
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
        announced = False
        while (others := self._others())[0]:
            if not announced:
                self.note(f"Waiting for {len(others[0])} trial(s) of other processes.")
                announced = True
            self.wait()
        for trial in others[1]:  # even if they finish after all, they no longer count
            self._end(trial)

    def wait(self) -> None:
        time.sleep(POLL)

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
        """Architectures drawn by live trials with lower numbers; waits until each has drawn one."""
        while True:
            before = [other.user_attrs.get(DRAWN) for other in self._others()[0] if other.number < trial.number]
            if all(before):
                return list(map(str, before))
            time.sleep(POLL / 10)

    def _others(self) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """Running trials of other processes: of live ones, and of dead ones."""
        now = time.monotonic()
        live: list[FrozenTrial] = []
        dead: list[FrozenTrial] = []
        for trial in self._running():
            if self.is_ours(trial):
                continue
            beat, first = self.seen.get(trial._trial_id, (None, now))
            if beat != trial.user_attrs.get(BEAT):
                first = now
            self.seen[trial._trial_id] = trial.user_attrs.get(BEAT), first
            (live if now - first < DEAD else dead).append(trial)
        return live, dead

    def _take_over(self, trial: FrozenTrial) -> None:
        if self._end(trial):
            spec = trial.user_attrs.get(DRAWN, "a trial")
            self.note(
                f"Notice: the process training {spec} has not responded for {DEAD:.0f} s; its trial is taken over."
            )
            if trial.params:
                self.propose(trial.params, trial.user_attrs.get("scores"))

    def _end(self, trial: FrozenTrial) -> bool:
        """Mark a trial as abandoned; False if it had finished already."""
        import optuna

        try:
            self.study._storage.set_trial_user_attr(trial._trial_id, ABANDONED, True)
            return self.study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _heartbeats(self, trial: int, ended: threading.Event) -> None:
        """Show that this process is alive until a trial has ended."""
        while not ended.wait(HEARTBEAT):
            with contextlib.suppress(Exception):  # a lasting failure reaches the trial itself
                self.study._storage.set_trial_user_attr(trial, BEAT, time.time())


def name_of(folder: Path, storage: str) -> str:
    """Name of the run that searches in a folder, on any machine; stored there with the name of its storage."""
    path = folder / WORKER
    if not path.exists():
        with atomic_file(path) as file:
            file.write(f"{uuid.uuid4().hex}\n{storage}\n".encode())
    return path.read_text().split("\n")[0]
