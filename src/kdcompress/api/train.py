"""``train-teacher`` and ``distill``: both use the same training loop."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdcompress.api.check import check_distill
from kdcompress.api.grow import grow
from kdcompress.api.job import Job
from kdcompress.api.recipes import RECIPES
from kdcompress.api.recipes.logits import train_on_labels
from kdcompress.api.reference import piped
from kdcompress.engine.distributed import start
from kdcompress.engine.progress import Reporter
from kdcompress.options import DistillOptions, TrainTeacherOptions
from kdcompress.options.methods import PAIR
from kdcompress.references import STDIN, is_checkpoint
from kdcompress.results import TrainResult


def train_teacher(
    options: TrainTeacherOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    """Train, or fine-tune, a network on labels.

    Args:
        options: All options at once; else give them by name (the fields of :class:`TrainTeacherOptions`).
        reporter: Receives progress and notices.

    Raises:
        UserError: Options, data or model that cannot be used.

    Example:
        >>> kdcompress.train_teacher(model="resnet32_cifar", data="digits", epochs=15).top1
    """
    options = options or TrainTeacherOptions.resolve(given)
    job = Job.begin("train-teacher", "ce", options, reporter)
    if (done := job.finished()) is not None:
        return done
    return train_on_labels(job)


def distill(options: DistillOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> TrainResult:
    """Train a student, with a teacher or (see ``method``) without one.

    ``reskd`` makes a cascade of one member, and adds ``res_students`` more if asked for.

    Args:
        options: All options at once; else give them by name (the fields of :class:`DistillOptions`).
        reporter: Receives progress and notices.

    Raises:
        UserError: Options, data or model that cannot be used; a teacher whose classes are not those of the data.

    Example:
        >>> kdcompress.distill(teacher="runs/teacher", method="kd", student="resnet8_cifar,width=0.5").run
    """
    options = _teacher_arch_first(options or DistillOptions.resolve(given))
    check_distill(options)
    if STDIN in (options.teacher, options.student):  # the piped reference may be a checkpoint
        start(options.device, options.precision, options.patience)
    options = _teacher_arch_first(piped(options))
    check_distill(options)
    if options.res_students or options.grow or options.student == PAIR:
        return grow(options, reporter)
    job = Job.begin("distill", options.method, options, reporter)
    if (done := job.finished()) is not None:
        return done
    return RECIPES[options.method](job)


def _teacher_arch_first(options: DistillOptions) -> DistillOptions:
    """``--arch`` names the architecture of a checkpoint that is the teacher, as it does for the other commands."""
    if options.teacher_arch is None and options.arch and is_checkpoint(options.teacher or ""):
        return dataclasses.replace(options, teacher_arch=options.arch[0], arch=options.arch[1:])
    return options
