"""Which res-student: many are trained for a short while, and the best one in full.

That res-students are found by architecture search is ResKD's (arXiv 2006.04719). The families, successive halving
(Optuna's, arXiv 1810.05934) and the score are our choice.
"""

from __future__ import annotations

import dataclasses

from kdcompress.api.job import Job
from kdcompress.api.residual import Residual
from kdcompress.api.trials import Trials
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import usage_error
from kdcompress.results import TrainResult


def check_alone(place: Place) -> None:
    """Refuse several processes.

    Raises:
        UserError: There are.
    """
    if place.world > 1:
        raise usage_error("--search runs in one process only.", "Start it without torchrun.")


def search(residual: Residual, job: Job) -> TrainResult:
    """Find a res-student and train it in full.

    Trials are trained for an 18th, a sixth and half of ``--epochs`` (no less than one), each time anew, since a
    learning rate that falls to zero cannot go on. Of each length the best third so far goes on to the next one, told
    apart by whole standard errors above the members so far: by chance nobody is shut out. A killed search goes on
    where it was, and draws the candidates that it would have drawn.

    Raises:
        UserError: No candidate is cheap enough, several processes, or a search that began otherwise.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    check_alone(job.place)
    trials = Trials.of(residual, job)
    try:
        winner = trials.winner()
        full = dataclasses.replace(job, options=trials.options)
        return residual.train(full, winner, search=trials.rows())
    except KeyboardInterrupt as interrupt:
        raise Interrupted(trials.run.path) from interrupt
