"""Which res-student: many are trained for a short while, and the best one in full.

That res-students are found by architecture search is ResKD's (arXiv 2006.04719). The families, successive halving
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
        UserError: There are.
    """
    if place.world > 1:
        remedy = "Start it without torchrun; add-res-student --search-storage lets machines share its trials."
        raise usage_error("--search runs in one process only.", remedy)


def search(residual: Residual, job: Job[AddResStudentOptions]) -> TrainResult | SearchResult:
    """Find a res-student and train it in full.

    Trials are trained for an 18th, a sixth and half of ``--epochs`` (no less than one), each time anew, since a
    learning rate that falls to zero cannot go on. Of each length the best third so far goes on to the next one, told
    apart by whole standard errors above the members so far: by chance nobody is shut out. A killed search goes on
    where it was, and draws the candidates that it would have drawn.

    With ``--search-storage`` several processes share the trials, and all come to the same winner. Those that were given
    ``--out`` train it there; for the others the trials are the result.

    Raises:
        UserError: No candidate is cheap enough, several processes, a search that began otherwise, or a storage that is
            damaged or cannot be reached.
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
