"""Architecture search for a res-student: many candidates are trained briefly, and the best one in full.

Finding res-students by architecture search is ResKD's idea (arXiv 2006.04719). The families, successive halving
(Optuna's, arXiv 1810.05934) and the score are our choice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from pathlib import Path

from kdcompress.api.claimed import claimed
from kdcompress.api.cost import macs_of
from kdcompress.api.job import Job
from kdcompress.api.recipes.residual import Residual
from kdcompress.api.short_training import ShortTrainings
from kdcompress.api.trials import Trials, rungs
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError, usage_error
from kdcompress.models.assemble import new_member
from kdcompress.models.build import ModelSpec
from kdcompress.models.candidates import Candidate, affordable, cheapest, series_for, with_weights
from kdcompress.options import AddResStudentOptions
from kdcompress.results import SearchResult, TrainResult
from kdcompress.runs import RunFolder, file_hash


def check_alone(place: Place) -> None:
    """Refuse several processes.

    Raises:
        UserError: There are several.
    """
    if place.world > 1:
        remedy = "Start it without torchrun; add-res-student --search-storage lets machines share its trials."
        raise usage_error("--search runs in one process only.", remedy)


def search(residual: Residual, job: Job[AddResStudentOptions]) -> TrainResult | SearchResult:
    """Find a res-student and train it in full.

    Trials are trained for an 18th, a sixth and half of ``--epochs`` (at least one), each time from scratch, since a
    learning rate that has fallen to zero cannot be continued. Of each length the best third so far goes on to the next,
    ranked by whole standard errors above the members so far, so that noise excludes nobody. A killed search resumes
    where it stopped, and draws the same candidates as an uninterrupted one.

    With ``--search-storage`` several processes share the trials, and all choose the same winner. Those with ``--out``
    train it there; the others return the trials.

    Raises:
        UserError: No candidate is cheap enough, several processes, a search that began with other inputs, or a storage
            that is damaged or cannot be reached.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    check_alone(job.place)
    space = _space_of(residual, job)
    stem = f"{job.command}-{job.method}-search-{Path(residual.data.source.spec).name}"
    with claimed(job.options, stem, job.place, job.reporter) as run:
        trials = _trials(residual, job, space, run)
        try:
            with trials.storage.reached():
                winner, rows = trials.winner(), trials.rows()
            if trials.trains:
                return residual.train(dataclasses.replace(job, options=trials.options), winner, search=rows)
        except KeyboardInterrupt as interrupt:
            again = "" if trials.trains else "The trials are saved: run the same command with --resume"
            raise Interrupted(run.path, again) from interrupt
    seconds = round(time.perf_counter() - job.began, 3)
    return SearchResult(command=job.command, run=str(run.path), seconds=seconds, arch=winner, search=rows)


def _trials(
    residual: Residual, job: Job[AddResStudentOptions], space: list[Candidate], run: RunFolder
) -> Trials[AddResStudentOptions]:
    share = job.options.max_macs
    assert share is not None  # see check_search
    budget, longest = share * residual.teacher.entry["macs"], rungs(job.options.epochs)[-1]
    return Trials.of(
        run,
        job.options,
        lambda options, folder: ShortTrainings(residual, job, options, budget, longest, folder),
        command=job.command,
        space=space,
        limit=f"--max-macs {share:g}",
        data=residual.data,
        teacher=residual.teacher,
        reporter=job.reporter,
        origin={"run": file_hash(residual.base.path)},
        search_storage=job.options.search_storage,
    )


def _space_of(residual: Residual, job: Job[AddResStudentOptions]) -> list[Candidate]:
    """All candidates within ``--max-macs``.

    Raises:
        UserError: There are none, or with ``--pretrained`` none with weights.
    """
    share = job.options.max_macs
    assert share is not None  # see check_search
    teacher, size = residual.teacher.entry["macs"], residual.base.prep.size
    counted = functools.cache(
        lambda spec: macs_of(new_member(ModelSpec.parse(spec), residual.base, job.options.seed).model)
    )
    series = with_weights(size) if job.options.pretrained else series_for(size)
    if not series:
        side = "x".join(map(str, size))
        problem = f"--pretrained: no architecture of the search for images of {side} pixels has pretrained weights."
        raise usage_error(problem, "Leave out --pretrained, or give a larger --input-size to distill.")
    candidates = affordable(series, counted, share * teacher)
    if not candidates:
        least = cheapest(series, counted)
        raise nothing_affordable(least, counted(least), share, teacher)
    return candidates


def nothing_affordable(spec: str, macs: int, max_macs: float, teacher: int) -> UserError:
    """The error if even the cheapest architecture exceeds the budget."""
    ratio = math.ceil(1e4 * macs / teacher) / 1e4
    problem = f"No architecture is within --max-macs {max_macs:g} of the teacher's {teacher:,} MACs."
    return usage_error(problem, f"The cheapest, {spec}, needs --max-macs {ratio:g}.")
