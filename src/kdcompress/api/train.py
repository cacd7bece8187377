"""``train-teacher`` and ``distill``: ways into the one training loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from kdcompress.api.check import check_distill, check_enough_classes
from kdcompress.api.grow import grow
from kdcompress.api.job import Job, Phase
from kdcompress.api.lwkd import train_lwkd
from kdcompress.api.prepare import adapter, batches_for, fresh, logit_weights, shared
from kdcompress.api.reference import (
    Teacher,
    check_channels,
    check_classes,
    inherit,
    load_teacher,
    open_data,
    piped,
    start_from,
)
from kdcompress.api.rkd_assistant import train_rkd_assistant
from kdcompress.data import Preprocess, choose_channels
from kdcompress.engine.distributed import start
from kdcompress.engine.progress import Reporter
from kdcompress.methods.base import StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.supervised import SupervisedTask, TfKdTask
from kdcompress.models.assemble import as_cascade
from kdcompress.models.loading import CHECKPOINT_SUFFIXES, Network
from kdcompress.options import (
    DistillOptions,
    TrainTeacherOptions,
)
from kdcompress.results import TrainResult

LABEL_SMOOTHING = 0.1


def train_teacher(
    options: TrainTeacherOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    """Train, or fine-tune, a network on labels.

    Args:
        options: All options at once; else give them by name (the fields of :class:`TrainTeacherOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: Options, data or model that cannot be used.

    Example:
        >>> kdcompress.train_teacher(model="resnet32_cifar", data="digits", epochs=15).top1
    """
    options = options or TrainTeacherOptions.resolve(given)
    job = Job.begin("train-teacher", "ce", options, reporter)
    if (done := job.finished()) is not None:
        return done
    source = open_data(options)
    network = fresh(options.model, source, options, choose_channels(source, options), options.pretrained)
    task = SupervisedTask(network.model, label_smoothing=options.label_smoothing or 0.0)
    return job.train([Phase(lambda: task)], network, batches_for(source, network.prep, job))


def distill(options: DistillOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> TrainResult:
    """Train a student, by a teacher or (``ce``, ``label-smoothing``, ``tf-kd``) without one.

    ``reskd`` makes a cascade of one member, and adds ``res_students`` more if asked for.

    Args:
        options: All options at once; else give them by name (the fields of :class:`DistillOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: Options, data or model that cannot be used; a teacher whose classes are not those of the data.

    Example:
        >>> kdcompress.distill(teacher="runs/teacher", method="kd", student="resnet8_cifar,width=0.5").run
    """
    options = _teacher_arch_first(options or DistillOptions.resolve(given))
    check_distill(options)
    if options.teacher == "-":  # what comes may be a checkpoint
        start(options.device, options.precision, options.patience)
        options = _teacher_arch_first(piped(options))
        check_distill(options)
    if options.res_students or options.grow:
        return grow(options, reporter, distill)
    job = Job.begin("distill", options.method, options, reporter)
    options = job.options
    if (done := job.finished()) is not None:
        return done
    if options.method == "lwkd":  # its teacher has other data
        return _lwkd(job, options)
    teacher = load_teacher(options.teacher, options.teacher_arch, job.reporter) if options.teacher is not None else None
    options = job.options = inherit(options, teacher.network.record if teacher else {})
    source = open_data(options)
    check_enough_classes(options, source.num_classes)
    channels = choose_channels(source, options)
    if teacher is not None:
        check_classes(teacher.network, source, "teacher")
        if options.input_size is None and teacher.network.record.get("data_fingerprint") == source.fingerprint:
            channels = teacher.network.prep.channels
        check_channels(teacher.network, channels, "teacher")
    if options.method == "rkd-assistant":
        assert teacher is not None
        return train_rkd_assistant(job, options, teacher, source, channels)
    like = teacher.network.prep if teacher is not None and options.from_teacher else None
    student = fresh(options.student, source, options, channels, options.pretrained, like)
    prep = shared(student.prep, teacher.network.prep, source) if teacher else student.prep
    data = batches_for(source, prep, job)
    if teacher is not None and options.from_teacher:
        start_from(teacher, student, data, job.reporter)
    task = _task(options, student, teacher, prep)
    cascade = options.method == "reskd"
    return job.train(
        [Phase(lambda: task)],
        student,
        data,
        teacher,
        assemble=as_cascade if cascade else lambda network: network,
        energies=[] if cascade else None,
    )


def _lwkd(job: Job, options: DistillOptions) -> TrainResult:
    source = open_data(options)
    check_enough_classes(options, source.num_classes)
    student = fresh(options.student, source, options, choose_channels(source, options), options.pretrained)
    return train_lwkd(job, options, source, student, lambda given: train_teacher(given, reporter=job.reporter))


def _teacher_arch_first(options: DistillOptions) -> DistillOptions:
    """``--arch`` names the architecture of a checkpoint that is the teacher, as it does for the other commands."""
    path = Path(options.teacher or "")
    checkpoint = path.suffix in CHECKPOINT_SUFFIXES or path.is_file()
    if options.teacher_arch is None and options.arch and checkpoint:
        return dataclasses.replace(options, teacher_arch=options.arch[0], arch=options.arch[1:])
    return options


def _task(options: DistillOptions, student: Network, teacher: Teacher | None, prep: Preprocess) -> StudentTask:
    """The task of a method, with the method's own defaults."""
    own, smoothing = adapter(prep, student.prep), options.label_smoothing or 0.0
    if options.method == "label-smoothing":
        given = options.label_smoothing
        return SupervisedTask(student.model, own, LABEL_SMOOTHING if given is None else given)
    if options.method == "tf-kd":
        return TfKdTask(student.model, own, smoothing, **logit_weights(options))
    if teacher is None:
        return SupervisedTask(student.model, own, smoothing)
    frozen = teacher.freeze(adapter(prep, teacher.network.prep))
    return KdTask(student.model, frozen, own, smoothing, **logit_weights(options))
