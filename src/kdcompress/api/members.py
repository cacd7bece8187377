"""The trainings of a cascade that ``distill`` makes by itself: of S0, and options for each member after it."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

from kdcompress.api.job import Job
from kdcompress.api.recipes import RECIPES
from kdcompress.engine.progress import Reporter
from kdcompress.options import (
    AddResStudentOptions,
    DistillOptions,
    GrowOptions,
    LogitOptions,
    ResidualOptions,
    SearchOptions,
)
from kdcompress.references import Reference, unpaired
from kdcompress.results import TrainResult


def train_first(options: DistillOptions, reporter: Reporter | None, out: Path) -> TrainResult:
    """Train S0, or go on where its training stopped."""
    defaults = {**vars(GrowOptions()), **vars(SearchOptions()), **vars(ResidualOptions())}
    own = {name: value for name, value in defaults.items() if name not in vars(LogitOptions())}
    job = Job.begin("distill", options.method, replace(options, out=str(out), resume=True, **own), reporter)
    return job.finished() or RECIPES[options.method](job)


def next_options(
    options: DistillOptions, arch: Reference | None, before: TrainResult, out: Path, left: float = math.inf
) -> AddResStudentOptions:
    """Options of ``add-res-student`` for the next member, from those of ``distill``.

    Args:
        arch: None: it is searched for.
        before: Result of the cascade so far.
        left: MACs that the next member may have.
    """
    own = {"run", "teacher", "teacher_arch", "weights_key", "search_storage", "pretrained"}  # the last: S0's own
    names = {field.name for field in fields(AddResStudentOptions)} - own
    given = {name: getattr(options, name) for name in names}
    if arch is None:
        assert before.teacher_macs is not None
        given["max_macs"] = min(options.max_macs or 1.0, left / before.teacher_macs, 1.0)
    if options.residual_loss == "mse":  # with it the logit options apply to S0 alone
        given.update(alpha=None, temperature=None, logit_loss="kl")
    given.update(run=str(before.run), out=str(out), resume=True, arch=() if arch is None else unpaired(arch))
    return AddResStudentOptions(**given)
