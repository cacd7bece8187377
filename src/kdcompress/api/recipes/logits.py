"""Students that learn from labels and from logits: one network, one phase, one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kdcompress.api.fitting import open_data
from kdcompress.api.job import Job, Phase
from kdcompress.api.recipes.prepare import adapter, batches_for, learner, logit_weights, opened, shared, smoothing
from kdcompress.api.teacher import start_from
from kdcompress.data import InputAdapter, choose_channels
from kdcompress.methods.base import Frozen, LogitTask, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.supervised import SupervisedTask, TfKdTask
from kdcompress.models.assemble import as_cascade
from kdcompress.options import METHODS, DistillOptions, TrainTeacherOptions
from kdcompress.results import TrainResult

# from the student, the frozen teacher if there is one, and the adapter from batches to the student's input
MakeTask = Callable[[nn.Module, Frozen | None, InputAdapter | None, DistillOptions], StudentTask]


def by_task(make: MakeTask, *, as_first_member: bool = False) -> Callable[[Job[DistillOptions]], TrainResult]:
    """A recipe that trains the student by one task.

    Args:
        make: The task.
        as_first_member: Whether the student becomes a cascade of one member.
    """

    def train(job: Job[DistillOptions]) -> TrainResult:
        teacher, source, channels = opened(job)
        options = job.options
        like = teacher.network.prep if teacher is not None and options.from_teacher else None
        student = learner(job, source, channels, like=like)
        prep = shared(student.prep, teacher.network.prep, source) if teacher else student.prep
        data = batches_for(source, prep, job)
        if teacher is not None and options.from_teacher:
            start_from(teacher, student, data, job.reporter)
        frozen = teacher.freeze(adapter(prep, teacher.network.prep)) if teacher is not None else None
        task = make(student.model, frozen, adapter(prep, student.prep), options)
        if source.agreement and isinstance(task, LogitTask):
            task.alpha = 1.0
        cascade: dict[str, Any] = {"assemble": as_cascade, "residual_of": frozen} if as_first_member else {}
        return job.train([Phase(lambda: task)], student, data, teacher, **cascade)

    return train


def supervised(
    student: nn.Module, teacher: Frozen | None, own: InputAdapter | None, options: DistillOptions
) -> StudentTask:
    """Cross-entropy on the labels, smoothed or not."""
    return SupervisedTask(student, own, smoothing(options))


def tf_kd(student: nn.Module, teacher: Frozen | None, own: InputAdapter | None, options: DistillOptions) -> StudentTask:
    """Teacher-free KD: a fixed distribution as the teacher."""
    return TfKdTask(student, own, smoothing(options), **logit_weights(options, METHODS[options.method]))


def kd(student: nn.Module, teacher: Frozen | None, own: InputAdapter | None, options: DistillOptions) -> StudentTask:
    """KD on the teacher's logits."""
    assert teacher is not None
    weights = logit_weights(options, METHODS[options.method])
    return KdTask(student, teacher, own, smoothing(options), **weights, partly_labelled=options.unlabelled is not None)


def train_on_labels(job: Job[TrainTeacherOptions]) -> TrainResult:
    """Train, or fine-tune, a teacher."""
    options = job.options
    source = open_data(options)
    network = learner(job, source, choose_channels(source, options), flag="--model")
    task = SupervisedTask(network.model, label_smoothing=options.label_smoothing or 0.0)
    return job.train([Phase(lambda: task)], network, batches_for(source, network.prep, job))
