"""Architecture search for a res-student: many candidates are trained briefly, and the best one in full.

Finding res-students by architecture search is ResKD's idea (arXiv 2006.04719). The families, successive halving
(Optuna's, arXiv 1810.05934) and the score are our choice.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from kdcompress.api.claimed import claimed
from kdcompress.api.job import Job
from kdcompress.api.recipes.residual import Residual
from kdcompress.api.trials import Trials, space_of
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import usage_error
from kdcompress.options import AddResStudentOptions
from kdcompress.results import SearchResult, TrainResult


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
    space = space_of(residual, job)
    stem = f"{job.command}-{job.method}-search-{Path(residual.data.source.spec).name}"
    with claimed(job.options, stem, job.place, job.reporter) as run:
        trials = Trials.of(residual, job, space, run)
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
