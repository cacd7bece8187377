"""The trials of an architecture search: Optuna proposes candidates, short trainings score them."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

from kdcompress.api.crew import WORKER, Alone, Crew, name_of
from kdcompress.api.job import ORIGINS
from kdcompress.api.search_storage import FACTOR, SearchStorage
from kdcompress.api.teacher import Teacher
from kdcompress.data import Data
from kdcompress.engine.progress import Reporter
from kdcompress.errors import Diverged, UserError, first_line, usage_error
from kdcompress.models.candidates import Candidate, draw, parameters
from kdcompress.option_set import shown
from kdcompress.options import AddResStudentOptions, DistillOptions
from kdcompress.ranking import with_front
from kdcompress.runs import RECORD, RunFolder

if TYPE_CHECKING:
    import optuna

O = TypeVar("O", AddResStudentOptions, DistillOptions)  # noqa: E741

RUNGS = (18, 6, 2)  # a trial trains for --epochs divided by these
TRIALS = 20
FOLDER, JOURNAL = "search", "journal.log"
SCORES = ("top1", "expected_macs_ratio")
OTHERS = {"candidates": "other candidate architectures", "unlabelled images": "other unlabelled images"}


class Short(Protocol):
    """Short trainings by which candidates are compared."""

    def score(self, candidate: Candidate, epochs: int) -> dict[str, float]:
        """Train a candidate for ``epochs``: ``top1`` and ``expected_macs_ratio`` under its best gate."""

    def level(self, score: dict[str, float]) -> int:
        """By how many whole standard errors a score is above what needs no candidate."""

    def drop(self, candidate: Candidate, epochs: int) -> None:
        """Remove the weights of a candidate that is scored."""


@dataclasses.dataclass
class Trials(Generic[O]):
    """A search in a run folder.

    Attributes:
        run: Run folder of the whole command; the search writes to the folder ``search`` in it.
        options: Those of the winner's training.
        short: The trainings by which candidates are compared.
        space: The candidates.
        limit: Of their cost, as it was given: ``--max-macs 0.1``.
        origin: What the scores depend on besides the options: names to fingerprints.
        teacher_macs: Of the teacher.
        trains: Whether this process trains the winner: of several, those with ``--out``.
        shared: Name of the storage, if several processes share it.
        storage: Where the study is stored.
        crew: The processes that share it.
    """

    run: RunFolder
    options: O
    short: Short
    space: list[Candidate]
    limit: str
    origin: dict[str, Any]
    teacher_macs: int
    reporter: Reporter
    trains: bool
    shared: str | None
    storage: SearchStorage
    study: optuna.Study
    crew: Alone

    @classmethod
    def of(
        cls,
        run: RunFolder,
        options: O,
        short: Callable[[O, Path], Short],
        *,
        command: str,
        space: list[Candidate],
        limit: str,
        data: Data,
        teacher: Teacher,
        reporter: Reporter,
        origin: Mapping[str, str | None] | None = None,
        search_storage: str | None = None,
    ) -> Trials[O]:
        """Open the search in a run folder, or begin one.

        Args:
            options: As they were given.
            short: From the options of the winner's training, and a folder for its own.
            origin: What the scores depend on besides options, data and teacher.
            search_storage: What ``--search-storage`` names.

        Raises:
            UserError: The folder belongs to another run, or its search began with other inputs; or as for
                :class:`SearchStorage`.
        """
        folder = run.path / FOLDER
        if "options" in run.record() and not folder.exists():
            raise usage_error(f"The run {run.path} was not started by a search.", "Choose another folder.")
        if not (run.path / RECORD).exists():
            begun = {"command": command, "status": "unfinished", "threads": torch.get_num_threads()}
            run.write_record(begun)
        folder.mkdir(exist_ok=True)
        storage = _storage(folder, search_storage)
        shared = search_storage and storage.name  # the recorded options contain no password
        masked: dict[str, Any] = {"search_storage": shared} if shared else {}
        full = dataclasses.replace(options, out=str(run.path), resume=True, **masked)
        study = storage.study()
        crew = Crew(study, name_of(folder, storage.name), reporter.note) if shared else Alone(study)
        known = {"data": data.source.fingerprint, "teacher": teacher.entry["fingerprint"], **(origin or {})}
        if data.unlabelled is not None:
            known["unlabelled images"] = data.unlabelled.fingerprint
        trials = cls(
            run=run,
            options=full,
            short=short(full, folder),
            space=space,
            limit=limit,
            origin=known,
            teacher_macs=teacher.entry["macs"],
            reporter=reporter,
            trains=not shared or options.out is not None,
            shared=shared,
            storage=storage,
            study=study,
            crew=crew,
        )
        with storage.reached():
            trials.check_origin()
        return trials

    def check_origin(self) -> None:
        """Refuse to continue a search under other conditions: its scores could not be compared.

        Raises:
            UserError: The search was started with other options, data or networks.
        """
        given = self.options.affecting_result()
        given.pop("trials", None)
        now = {**given, **self.origin}
        if self.shared:  # other versions may have other candidates
            now["candidates"] = " ".join(candidate.spec for candidate in self.space)
        then = self.study.user_attrs.get("origin")
        if then is None:
            self.study.set_user_attr("origin", now)
            return
        if not isinstance(then, dict):
            raise self._damaged(f"an invalid origin: {then!r}")
        changed = self.options.differing(then, now)
        if changed:
            name = changed[0]
            remedy = f"Resume with the same, or choose another {'--search-storage' if self.shared else 'folder'}."
            detail = f"another {name}" if name in ORIGINS else shown(name, then.get(name))
            detail = OTHERS.get(name, detail)
            raise usage_error(f"The search in {self.shared or self.run.path} began with {detail}.", remedy)

    def winner(self) -> str:
        """Run the remaining trials, and choose the best candidate.

        Raises:
            UserError: No trial could be trained.
        """
        if "winner" in self.study.user_attrs:  # its training may have begun
            return self._known(self.study.user_attrs["winner"])
        wanted = min(self.options.trials or TRIALS, len(self.space))
        self.reporter.note(
            f"Search: {wanted} of {len(self.space)} architectures within {self.limit} are trained for up to "
            f"{self.rungs[-1]} epoch(s)"
        )
        try:
            self._try_all(wanted)
        finally:
            self.reporter.plan_over()
        self.crew.close()
        best = self.rows()[0]
        if best["top1"] is None:
            raise UserError(
                "No candidate could be trained: " + str(self._done()[0].user_attrs.get("problem")), "Try a lower --lr."
            )
        if not self.short.level(best):
            self.reporter.note(
                f"Notice: after {best['epochs']} epoch(s) no candidate gains a standard error; "
                "more --epochs would tell the candidates apart."
            )
        self.study.set_user_attr("winner", best["spec"])
        self.reporter.note(f"Search: {best['spec']} is the best{'; it is trained in full' if self.trains else ''}")
        return best["spec"]

    def _try_all(self, wanted: int) -> None:
        """Run so many trials, or as many as there is time for."""
        began, spent = time.perf_counter(), self._spent()
        while len(done := self._done()) < wanted and not self.crew.closed:
            if done and spent + time.perf_counter() - began >= self.options.time_limit:
                self.reporter.note(
                    f"Notice: --time-budget {self.options.time_budget} is used up after {len(done)} trial(s)."
                )
                break
            if (trial := self._next(len(done), wanted)) is None:
                self.crew.wait()
            else:
                self._run(trial, wanted)

    def rows(self) -> list[dict[str, Any]]:
        """The finished trials, as in :class:`~kdcompress.results.TrainResult`."""
        macs = {candidate.spec: candidate.macs for candidate in self.space}
        rows = []
        for trial in self._done():
            spec, scores = self._known(trial.user_attrs["spec"]), self._scores(trial)
            epochs = max(map(int, scores), default=0)
            row = {"spec": spec, "macs_ratio": round(macs[spec] / self.teacher_macs, 6), "epochs": epochs}
            rows.append({**row, **scores.get(str(epochs), dict.fromkeys(SCORES))})
        return with_front(rows)

    @property
    def rungs(self) -> list[int]:
        """Epochs of short trainings, ascending."""
        return rungs(self.options.epochs)

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.study.trials if self.crew.is_done(trial)]

    def _left(self, done: list[optuna.trial.FrozenTrial], wanted: int) -> float | None:
        """Estimated seconds of the trials to come; None before the first is done."""
        seconds = [each.user_attrs["seconds"] for each in done if "seconds" in each.user_attrs]
        if not seconds:
            return None
        return min(
            (wanted - len(done)) * sum(seconds) / len(seconds), max(self.options.time_limit - self._spent(), 0.0)
        )

    def _spent(self) -> float:
        """Seconds that earlier processes of this run spent on finished trials."""
        return sum(trial.user_attrs.get("seconds", 0.0) for trial in self._done() if self.crew.is_ours(trial))

    def _known(self, spec: Any) -> str:
        """A spec from the storage, which must be one of the candidates.

        Raises:
            UserError: It is not: otherwise whoever can write to the storage could have any network built.
        """
        if spec not in [candidate.spec for candidate in self.space]:
            raise self._damaged(f"the architecture {spec!r}, which is not a candidate of this search")
        return str(spec)

    def _scores(self, trial: optuna.trial.FrozenTrial | optuna.Trial) -> dict[str, dict[str, float]]:
        """Scores of a candidate by epochs.

        Raises:
            UserError: The storage holds malformed ones.
        """
        scores = trial.user_attrs.get("scores", {})
        for epochs, score in scores.items() if isinstance(scores, dict) else [("", scores)]:
            numbers = score.values() if isinstance(score, dict) and score.keys() == set(SCORES) else [None]
            good = all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
            if not good or epochs not in map(str, self.rungs):
                raise self._damaged(f"malformed scores: {scores!r:.80}")
        return dict(scores)

    def _damaged(self, what: str) -> UserError:
        return UserError(f"{self.storage.name} holds {what}.", "Start a new search elsewhere.")

    def _next(self, done: int, wanted: int) -> optuna.Trial | None:
        """The trial that was interrupted, else a new one; a function of the seed and the trials so far.

        None: other processes are running all that are missing.
        """
        import optuna

        if self.shared:  # two processes that start at once may each believe to be the first
            self.check_origin()
        left = self.crew.left()
        if left is None and self.crew.enough(done, wanted):
            return None
        left = left or self.crew.left()  # taken over just now
        trial = optuna.Trial(self.study, left._trial_id) if left else self.crew.begin()
        self.study.sampler = optuna.samplers.TPESampler(seed=_seed(self.options.seed, trial.number))
        return trial

    def _run(self, trial: optuna.Trial, wanted: int) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        candidate = draw(trial, self.space)
        try:
            with self.crew.at_work(trial, candidate.spec) as others:
                self._try(trial, candidate, others, wanted)
        except UpdateFinishedTrialError:
            self.reporter.note(
                f"Notice: another process has taken over {candidate.spec}, because this one did not respond."
            )

    def _try(self, trial: optuna.Trial, candidate: Candidate, others: list[str], wanted: int) -> None:
        import optuna

        began, pruned = time.perf_counter(), optuna.trial.TrialState.PRUNED
        tried = {*(self._known(done.user_attrs["spec"]) for done in self._done()), *others}
        surplus = self.crew.closed or len(self._done()) + len(others) >= wanted
        if surplus or candidate.spec in tried:  # already scored: try another candidate instead
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            untried = [other for other in self.space if other.spec not in tried]
            if untried and not surplus:
                chosen = random.Random(_seed(self.options.seed, trial.number)).choice(untried)
                self.crew.propose(parameters(chosen, self.space))
            return
        trial.set_user_attr("spec", candidate.spec)
        done = self._done()
        self.reporter.plan(len(done) + 1, wanted, self._left(done, wanted))
        try:
            state, scores = None, self._scores(trial)
            reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values  # before a resumption
            for rung, epochs in enumerate(self.rungs):
                if str(epochs) not in scores:
                    scores[str(epochs)] = self.short.score(candidate, epochs)
                    trial.set_user_attr("scores", scores)
                    self.short.drop(candidate, epochs)
                if FACTOR**rung not in reported:
                    trial.report(self.short.level(scores[str(epochs)]), FACTOR**rung)
                if epochs < self.rungs[-1] and trial.should_prune():
                    state = pruned
                    break
        except (Diverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr("problem", first_line(error))
            self.reporter.note(f"Notice: {candidate.spec} cannot be trained: {first_line(error)}")
            state = optuna.trial.TrialState.FAIL
        trial.set_user_attr("seconds", time.perf_counter() - began)
        self.study.tell(trial, None if state else scores[str(epochs)]["top1"], state=state)
        self._report(candidate, scores, wanted)

    def _report(self, candidate: Candidate, scores: dict[str, Any], wanted: int) -> None:
        """Print the score after the longest training of a trial."""
        for epochs, score in list(scores.items())[-1:]:
            self.reporter.note(
                f"trial {len(self._done())}/{wanted}  {candidate.spec}  gated {score['top1']:.2f} % "
                f"at {score['expected_macs_ratio']:.3f} of the teacher's MACs, after {epochs} epoch(s)"
            )


def rungs(epochs: int) -> list[int]:
    """Epochs of the short trainings of a search, ascending, where the winner is trained for ``epochs``."""
    return sorted({max(1, epochs // parts) for parts in RUNGS})


def _seed(seed: int, number: int) -> int:
    return (1_000_003 * seed + number) % 2**32


def _storage(folder: Path, shared: str | None) -> SearchStorage:
    """The storage that the user names, or a journal in the folder of the search.

    Raises:
        UserError: As for :meth:`SearchStorage.of`, or the search in this folder began with another storage.
    """
    journal, name = folder / JOURNAL, folder / WORKER
    storage = SearchStorage.of(shared if shared is not None else str(journal))
    began = str(journal) if journal.exists() else name.read_text().split("\n")[1] if name.exists() else storage.name
    if began != storage.name:
        raise usage_error(
            f"The search in {folder.parent} stores its trials in {began}.", "Use the same storage, or another --out."
        )
    return storage
