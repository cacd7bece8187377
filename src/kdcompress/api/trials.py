"""The trials of a search for a res-student, kept in its run folder: Optuna draws, short trainings answer."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdcompress.api.cost import macs_of
from kdcompress.api.job import ORIGINS, Job
from kdcompress.api.residual import Residual
from kdcompress.api.short_training import SCORES, ShortTrainings
from kdcompress.errors import Diverged, UserError, first_line, usage_error
from kdcompress.models.candidates import Candidate, affordable, cheapest, draw, parameters, series_for
from kdcompress.option_set import shown
from kdcompress.options import FREE_OPTIONS, AddResStudentOptions
from kdcompress.ranking import with_front
from kdcompress.runs import RECORD, RunFolder, claim, file_hash

if TYPE_CHECKING:
    import optuna

FACTOR = 3  # of those that were trained so long, the best of so many go on, for so many times as long
RUNGS = (18, 6, 2)  # parts of a full training
TRIALS = 20
FOLDER, JOURNAL = "search", "journal.log"


@dataclasses.dataclass
class Trials:
    """A search in a run folder.

    Attributes:
        run: Of the whole command; a search keeps to the folder ``search`` in it.
        options: Of the winner's training.
        rungs: Epochs, ascending.
        short: The trainings by which candidates are compared.
        space: What trials draw from.
        study: Optuna's, kept in a journal.
    """

    residual: Residual
    job: Job
    run: RunFolder
    options: AddResStudentOptions
    rungs: list[int]
    short: ShortTrainings
    space: list[Candidate]
    study: optuna.Study

    @classmethod
    def of(cls, residual: Residual, job: Job) -> Trials:
        budget = job.options.max_macs * residual.teacher.entry["macs"]
        space = _space(residual, job, budget)
        stem = f"{job.command}-{job.method}-search-{Path(residual.data.source.spec).name}"
        run = claim(job.options.out, stem, resume=job.options.resume)
        folder = run.path / FOLDER
        if "options" in run.record() and not folder.exists():
            raise usage_error(f"The run {run.path} was not begun by a search.", "Choose another folder.")
        if not (run.path / RECORD).exists():
            run.write_record({"command": job.command, "status": "unfinished"})
        folder.mkdir(exist_ok=True)
        options = dataclasses.replace(job.options, out=str(run.path), resume=True)
        rungs = sorted({max(1, options.epochs // parts) for parts in RUNGS})
        short = ShortTrainings(residual, job, options, budget, rungs[-1], folder)
        found = cls(residual, job, run, options, rungs, short, space, _study(folder))
        found.check_origin()
        return found

    def check_origin(self) -> None:
        """Scores can only be compared where all else is equal.

        Raises:
            UserError: The search was begun with other options, data or networks.
        """
        given = {key: value for key, value in self.options.to_dict().items() if key not in FREE_OPTIONS}
        given.pop("trials", None)
        now = {
            **given,
            "data": self.residual.data.source.fingerprint,
            "teacher": self.residual.teacher.entry["fingerprint"],
            "run": file_hash(self.residual.base.path),
        }
        then = self.study.user_attrs.get("origin")
        if then is None:
            self.study.set_user_attr("origin", now)
            return
        changed = self.options.differing(then, now)
        if changed:
            remedy = "Resume with the same, or choose another folder."
            name = changed[0]
            detail = f"another {name}" if name in ORIGINS else shown(name, then.get(name))
            raise usage_error(f"The search in {self.run.path} began with {detail}.", remedy)

    def winner(self) -> str:
        """Run the trials that are left, and choose.

        Raises:
            UserError: No trial could be trained.
        """
        if "winner" in self.study.user_attrs:  # its training may have begun
            return self.study.user_attrs["winner"]
        wanted = min(self.options.trials or TRIALS, len(self.space))
        self.job.reporter.note(
            f"Search: {wanted} of {len(self.space)} architectures within --max-macs {self.options.max_macs:g} are "
            f"trained for up to {self.rungs[-1]} epoch(s)"
        )
        began, spent = time.perf_counter(), self._spent()
        while len(done := self._done()) < wanted:
            if done and spent + time.perf_counter() - began >= self.options.time_limit:
                self.job.reporter.note(
                    f"Notice: --time-budget {self.options.time_budget} is spent after {len(done)} trial(s)."
                )
                break
            self._run(self._next(), wanted)
        best = self.rows()[0]
        if best["top1"] is None:
            raise UserError(
                "No candidate could be trained: " + self._done()[0].user_attrs["problem"], "Try a lower --lr."
            )
        if not self.short.level(best):
            self.job.reporter.note(
                f"Notice: after {best['epochs']} epoch(s) no candidate betters the members so far by more than chance. "
                "More --epochs would tell them apart."
            )
        self.study.set_user_attr("winner", best["spec"])
        self.job.reporter.note(f"Search: {best['spec']} is the best; it is trained in full")
        return best["spec"]

    def rows(self) -> list[dict[str, Any]]:
        """The trials that are done, as :class:`~kdcompress.results.TrainResult` tells them."""
        macs = {candidate.spec: candidate.macs for candidate in self.space}
        teacher = self.residual.teacher.entry["macs"]
        rows = []
        for trial in self._done():
            spec, scores = trial.user_attrs["spec"], trial.user_attrs.get("scores", {})
            epochs = max(map(int, scores), default=0)
            row = {"spec": spec, "macs_ratio": round(macs[spec] / teacher, 6), "epochs": epochs}
            rows.append({**row, **scores.get(str(epochs), dict.fromkeys(SCORES))})
        return with_front(rows)

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.study.trials if trial.state.is_finished() and "spec" in trial.user_attrs]

    def _spent(self) -> float:
        """Seconds of earlier processes on this search, but for the trials that they left unfinished."""
        return sum(trial.user_attrs.get("seconds", 0.0) for trial in self._done())

    def _next(self) -> optuna.Trial:
        """The trial that was cut off, else a new one; a function of the seed and the trials so far."""
        import optuna

        left = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        number = left[0].number if left else len(self.study.trials)
        self.study.sampler = optuna.samplers.TPESampler(seed=_seed(self.options.seed, number))
        return optuna.Trial(self.study, left[0]._trial_id) if left else self.study.ask()

    def _run(self, trial: optuna.Trial, wanted: int) -> None:
        import optuna

        began, pruned = time.perf_counter(), optuna.trial.TrialState.PRUNED
        candidate = draw(trial, self.space)
        tried = {done.user_attrs["spec"] for done in self._done()}
        if candidate.spec in tried:  # its score is known: another one takes its place
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            untried = [other for other in self.space if other.spec not in tried]
            chosen = random.Random(_seed(self.options.seed, trial.number)).choice(untried)
            self.study.enqueue_trial(parameters(chosen, self.space))
            return
        trial.set_user_attr("spec", candidate.spec)
        try:
            state, scores = None, dict(trial.user_attrs.get("scores", {}))
            for rung, epochs in enumerate(self.rungs):
                if str(epochs) not in scores:
                    scores[str(epochs)] = self.short.score(candidate, epochs)
                    trial.set_user_attr("scores", scores)
                    self.short.drop(candidate, epochs)
                trial.report(self.short.level(scores[str(epochs)]), FACTOR**rung)
                if epochs < self.rungs[-1] and trial.should_prune():
                    state = pruned
                    break
        except (Diverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr("problem", first_line(error))
            self.job.reporter.note(f"Notice: {candidate.spec} cannot be trained: {first_line(error)}")
            state = optuna.trial.TrialState.FAIL
        trial.set_user_attr("seconds", time.perf_counter() - began)
        self.study.tell(trial, None if state else scores[str(epochs)]["top1"], state=state)
        self._tell(candidate, scores, wanted)

    def _tell(self, candidate: Candidate, scores: dict[str, Any], wanted: int) -> None:
        for epochs, score in list(scores.items())[-1:]:
            self.job.reporter.note(
                f"trial {len(self._done())}/{wanted}  {candidate.spec}  gated {score['top1']:.2f} % "
                f"at {score['expected_macs_ratio']:.3f} of the teacher's MACs, after {epochs} epoch(s)"
            )


def _seed(seed: int, number: int) -> int:
    return (1_000_003 * seed + number) % 2**32


def _space(residual: Residual, job: Job, budget: float) -> list[Candidate]:
    """All candidates within the budget.

    Raises:
        UserError: There is none.
    """
    teacher, size = residual.teacher.entry["macs"], residual.base.prep.size
    counted = functools.cache(lambda spec: macs_of(residual.member(spec, job.options.seed).model))
    series = series_for(size)
    found = affordable(series, counted, budget)
    if not found:
        least = cheapest(series, counted)
        raise nothing_affordable(least, counted(least), job.options.max_macs, teacher)
    return found


def nothing_affordable(spec: str, macs: int, max_macs: float, teacher: int) -> UserError:
    """The error where even the cheapest architecture is too dear."""
    ratio = math.ceil(1e4 * macs / teacher) / 1e4
    problem = f"No architecture is within --max-macs {max_macs:g} of the teacher's {teacher:,} MACs."
    return usage_error(problem, f"The cheapest, {spec}, needs --max-macs {ratio:g}.")


def _study(folder: Path) -> optuna.Study:
    """A new one, or that of the journal.

    Raises:
        UserError: The journal is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = folder / JOURNAL
    if path.exists():  # a line that a kill cut off would spoil the next one
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    try:
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name="res-student",
            direction="maximize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
            load_if_exists=True,
        )
    except Exception as error:  # what reads it takes its lines for granted
        raise UserError(
            f"{path} cannot be read: {first_line(error)}", "Choose another folder to search anew."
        ) from error
