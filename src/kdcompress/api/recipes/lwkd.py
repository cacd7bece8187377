"""``distill --method lwkd``: a lightweight teacher trained in seconds, a bank of its logits, and the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcompress.api.check import check_enough_classes
from kdcompress.api.fitting import open_data
from kdcompress.api.job import Job, Phase
from kdcompress.api.recipes.light_teacher import bank_images, light_teacher, soft_targets
from kdcompress.api.recipes.prepare import batches_for, learner, logit_weights, smoothing
from kdcompress.api.teacher import Teacher, load_teacher
from kdcompress.data import Data, choose_channels
from kdcompress.engine.distributed import from_main
from kdcompress.engine.evaluate import collect
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.lwkd import LwKdTask, SoftTargetBank
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.loading import Network
from kdcompress.options import METHODS, DistillOptions
from kdcompress.results import TrainResult
from kdcompress.runs import RunFolder

WARMUP_EPOCHS = 1
MOST_SIMILAR = 2000  # classes: the time of the assignment grows with their cube
ACCURACY = "train_discriminator_accuracy"  # a column of metrics.csv


def train_lwkd(job: Job[DistillOptions]) -> TrainResult:
    """Train a student on labels, and on soft targets of a lightweight teacher for images of its own.

    Raises:
        UserError: A teacher with another number of classes, or without images of a class; a bank that is too large.
    """
    options, method = job.options, METHODS[job.method]
    source = open_data(options)  # the teacher has its own
    check_enough_classes(options, source.num_classes)
    student = learner(job, source, choose_channels(source, options))
    images = bank_images(source.num_classes, options.bank_size)
    if options.class_map == "similar" and source.num_classes > MOST_SIMILAR:
        problem = f"--class-map similar takes up to {MOST_SIMILAR} classes, the data have {source.num_classes}."
        raise usage_error(problem, "Use identity or random.")
    if options.teacher is not None:
        teacher = load_teacher(options.teacher, options.teacher_arch, options.weights_key, job.reporter)
    else:
        teacher = light_teacher(source.num_classes, options, job.place, job.reporter)
    if teacher.num_classes != source.num_classes:
        problem = f"The teacher {teacher.reference} has {teacher.num_classes} classes, the data {source.num_classes}."
        raise UserError(problem, "Leave TEACHER out: one with the right number of classes is trained.")
    bank = SoftTargetBank(soft_targets(teacher, images, options, job, source))
    entry = teacher.entry()
    weights = logit_weights(options, method)
    softened = bank.entropy(weights["temperature"])
    entry |= {"seconds": teacher.record.get("result", {}).get("seconds"), "entropy": round(bank.entropy(), 6)}
    entry["softened_entropy"] = round(softened, 6)
    data = batches_for(source, student.prep, job)
    untrained = {key: value.clone() for key, value in student.model.state_dict().items()}
    generator = torch.Generator().manual_seed(options.seed)
    if options.class_map == "random":
        bank.classes = torch.randperm(source.num_classes, generator=generator)

    def distil() -> LwKdTask:
        if options.class_map == "similar":
            # BatchNorm statistics differ between processes, but the map must be the same
            classes = from_main(lambda: similar_classes(_confusion(student, data, job), bank).tolist())
            bank.classes = torch.tensor(classes)
        student.model.load_state_dict(untrained)
        torch.manual_seed(options.seed)
        return LwKdTask(
            student.model,
            bank,
            None,
            smoothing(options),
            adversarial_weight=options.adversarial_weight,
            adversarial_warmup=options.adversarial_warmup,
            **weights,
        )

    phases = [Phase(distil)]
    if options.class_map == "similar":
        phases = [Phase(lambda: SupervisedTask(student.model), WARMUP_EPOCHS, "(warm-up)"), *phases]
    result = job.train(phases, student, data, Teacher(teacher, entry))
    if options.adversarial_weight and job.place.is_main:
        _report_collapse(Path(str(result.run)), job)
    return result


def similar_classes(confusion: Tensor, bank: SoftTargetBank) -> Tensor:
    """The teacher's class [K] for each class of the data: classes that are confused get classes confused alike.

    A quadratic assignment between the two confusion matrices (our choice), by the FAQ algorithm (Vogelstein et al.
    2015).

    Args:
        confusion: [K, K], mean distribution that the student gives to images of each class.
    """
    from scipy.optimize import quadratic_assignment  # takes a second, which other methods should not pay

    theirs = torch.stack([rows.float().softmax(-1).mean(0) for rows in bank.logits]).numpy()
    ours = confusion.numpy()
    for table in (theirs, ours):
        np.fill_diagonal(table, 0)
    assignment = quadratic_assignment(
        ours + ours.T, theirs + theirs.T, options={"maximize": True, "rng": np.random.default_rng(0)}
    )
    return torch.from_numpy(assignment.col_ind.astype(np.int64))


def _confusion(student: Network, data: Data, job: Job[DistillOptions]) -> Tensor:
    batches = data.alone().evaluation("calibration", forward_batch(job.place, data.prep))
    logits, labels = collect(student.model.to(job.place.device).eval(), batches, job.place)
    sums = torch.zeros(data.source.num_classes, logits.shape[1]).index_add_(0, labels, logits.softmax(1))
    return sums / torch.bincount(labels, minlength=len(sums)).clamp_min(1)[:, None]


def _report_collapse(run: Path, job: Job[DistillOptions]) -> None:
    """Print a notice if the discriminator, after its first epoch, was always right, or never better than chance."""
    accuracies = [row[ACCURACY] for row in RunFolder(run).metrics() if ACCURACY in row][1:]
    consequence = "the adversarial loss had no effect."
    if accuracies and min(accuracies) > 0.99:
        job.reporter.note(f"Notice: the discriminator was never fooled (accuracy 1): {consequence}")
    if accuracies and max(abs(value - 0.5) for value in accuracies) < 0.02:
        job.reporter.note(f"Notice: the discriminator never learned (accuracy 0.5): {consequence}")
