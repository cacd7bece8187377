"""Which res-student: many are trained for a short while, and the best one in full.

That res-students are found by architecture search is ResKD's (arXiv 2006.04719). The families, successive halving
(Optuna's, arXiv 1810.05934) and the score are our choice.
"""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

from kdcompress.api.job import Job
from kdcompress.api.residual import Residual
from kdcompress.api.trials import Trials
from kdcompress.engine.interrupt import Interrupted
from kdcompress.errors import UserError, usage_error
from kdcompress.option_set import flag
from kdcompress.options import AddResStudentOptions, SearchOptions
from kdcompress.results import TrainResult


def check_search(options: AddResStudentOptions) -> None:
    """Refuse what no search can do, before anything is loaded.

    Raises:
        UserError: Options that do not go together, no time, or no Optuna.
    """
    if not options.search:
        for name in vars(SearchOptions()):
            if getattr(options, name) not in (None, False):
                raise usage_error(f"{flag(name)} has no meaning here (no --search).", "Leave it out, or add --search.")
        return
    if options.arch:
        raise usage_error("--search finds the architecture that --arch names.", "Leave one of the two out.")
    if options.max_macs is None:
        remedy = "Say what the res-student may cost of the teacher's MACs: --max-macs 0.1."
        raise usage_error("--search needs a budget.", remedy)
    _ = options.time_limit
    if find_spec("optuna") is None:
        raise UserError("--search needs Optuna.", "pip install 'kdcompress[search]'", exit_code=2)


def search(residual: Residual, job: Job) -> TrainResult:
    """Find a res-student and train it in full.

    Trials are trained for 1, 3 and 9 epochs (as many of these as are at most ``--epochs``), each time anew, since a
    learning rate that falls to zero cannot go on. Of each length the best third so far goes on to the next one. A
    killed search goes on where it was, and draws the candidates that it would have drawn.

    Raises:
        UserError: No candidate is cheap enough, several processes, or a search that began otherwise.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    if job.place.world > 1:
        raise usage_error("--search runs in one process only.", "Start it without torchrun.")
    trials = Trials.of(residual, job)
    try:
        winner = trials.winner()
        full = dataclasses.replace(job, options=trials.options)
        return residual.train(full, winner, search=trials.rows())
    except KeyboardInterrupt as interrupt:
        raise Interrupted(trials.run.path) from interrupt
