"""``distill --method lwkd``: a lightweight teacher made in seconds, a bank of what it says, and the training."""

from __future__ import annotations

import contextlib
import csv
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import quadratic_assignment
from torch import Tensor

from kdcompress.api.job import EVAL_BATCH, Job, Phase
from kdcompress.api.prepare import batches_for, logit_weights
from kdcompress.api.reference import Teacher
from kdcompress.cache import TEACHERS, cache_dir
from kdcompress.data import Data, DataSource, load_source
from kdcompress.engine.distributed import from_main
from kdcompress.engine.evaluate import collect
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import Frozen
from kdcompress.methods.lwkd import LwKdTask, SoftTargetBank
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.loading import Network, load_network
from kdcompress.options import DistillOptions, TrainTeacherOptions
from kdcompress.results import TrainResult
from kdcompress.runs import METRICS, WEIGHTS
from kdcompress.trust import check_trusted

TEACHER: dict[str, Any] = {"model": "lenet5", "opt": "adamw", "lr": 4e-3, "augment": "none"}
TEACHER_EPOCHS = 20  # at most: it stops as soon as it is good enough
USUAL_BANK, MAX_BANK = 512 * 2**20, 4 * 2**30  # bytes
MOST_PER_CLASS = 128
WARMUP_EPOCHS = 1
ACCURACY = "train_discriminator_accuracy"  # a column of metrics.csv

Train = Callable[[TrainTeacherOptions], TrainResult]


def train_lwkd(job: Job, options: DistillOptions, source: DataSource, student: Network, train: Train) -> TrainResult:
    """Train a student on its labels and on what a lightweight teacher says of synthesized images of the same classes.

    Args:
        train: ``train-teacher``; used where no teacher is given and none is in the cache.

    Raises:
        UserError: A teacher with another number of classes, or of whose classes there are no images; a bank that is
            too large.
    """
    images = _bank_images(source.num_classes, options.bank_size)
    if options.teacher is not None:
        teacher = load_network(options.teacher, options.teacher_arch)
    else:
        teacher = _made(source.num_classes, options, train)
    if teacher.num_classes != source.num_classes:
        problem = f"The teacher {teacher.reference} has {teacher.num_classes} classes, the data {source.num_classes}."
        raise UserError(problem, "Leave TEACHER out: one of the right size takes seconds.")
    bank = SoftTargetBank(soft_targets(teacher, images, options, job))
    entry: dict[str, Any] = {"reference": teacher.reference, "arch": teacher.arch, "fingerprint": teacher.fingerprint()}
    entry |= {"seconds": teacher.record.get("result", {}).get("seconds"), "entropy": round(bank.entropy(), 6)}
    data = batches_for(source, student.prep, job)
    fresh = {key: value.clone() for key, value in student.model.state_dict().items()}
    generator = torch.Generator().manual_seed(options.seed)
    if options.class_map == "random":
        bank.classes = torch.randperm(source.num_classes, generator=generator)

    def distil() -> LwKdTask:
        if options.class_map == "similar":
            bank.classes = similar_classes(_confusion(student, data, job), bank)
        student.model.load_state_dict(fresh)
        torch.manual_seed(options.seed)
        return LwKdTask(
            student.model,
            bank,
            None,
            options.label_smoothing or 0.0,
            adversarial_weight=options.adversarial_weight,
            adversarial_warmup=options.adversarial_warmup,
            **logit_weights(options),
        )

    phases = [Phase(distil)]
    if options.class_map == "similar":
        phases = [Phase(lambda: SupervisedTask(student.model), WARMUP_EPOCHS, "(warm-up)"), *phases]
    result = job.train(phases, student, data, Teacher(teacher, entry))
    if options.adversarial_weight:
        _report_collapse(Path(str(result.run)), job)
    return result


def soft_targets(teacher: Network, images: int, options: DistillOptions, job: Job) -> Tensor:
    """Logits [K, M, K] of a teacher on the first M images of each class of its own data, in half precision.

    Raises:
        UserError: The teacher's run does not say what it was trained on, or a class has no image there.
    """
    spec = teacher.record.get("options", {}).get("data")
    if spec is None:
        remedy = "Give the run of a train-teacher, or leave TEACHER out."
        raise UserError(f"What {teacher.reference} was trained on is not known.", remedy)
    check_trusted(spec, f"The run {teacher.reference}")
    source = load_source(spec, data_dir=teacher.record["options"].get("data_dir"))
    data = Data(source, teacher.prep, options, job.place.device)
    model = Frozen(teacher.model.to(job.place.device))
    found, labels = collect(model, data.evaluation("test" if source.test else "fit", EVAL_BATCH, images), job.place)
    counts = torch.bincount(labels, minlength=source.num_classes)
    if not counts.all():
        raise UserError(f"The data {spec} have no image of class {int(counts.argmin())}.", "Leave TEACHER out.")
    order = labels.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    rows = starts[:, None] + torch.arange(int(counts.min()))
    return found.half()[order[rows]]


def similar_classes(confusion: Tensor, bank: SoftTargetBank) -> Tensor:
    """The teacher's class [K] for each of the target's, such that what is confused here is confused there (our choice).

    A quadratic assignment between both tables of confusion, by the FAQ algorithm (Vogelstein et al. 2015).

    Args:
        confusion: [K, K], mean distribution that the student gives to images of each class.
    """
    theirs = bank.logits.float().softmax(-1).mean(1).numpy()
    ours = confusion.numpy()
    for table in (theirs, ours):
        np.fill_diagonal(table, 0)
    found = quadratic_assignment(
        ours + ours.T, theirs + theirs.T, options={"maximize": True, "rng": np.random.default_rng(0)}
    )
    return torch.from_numpy(found.col_ind.astype(np.int64))


def _confusion(student: Network, data: Data, job: Job) -> Tensor:
    logits, labels = collect(student.model.eval(), data.alone().evaluation("calibration", EVAL_BATCH), job.place)
    sums = torch.zeros(data.source.num_classes, logits.shape[1]).index_add_(0, labels, logits.softmax(1))
    return sums / torch.bincount(labels, minlength=len(sums)).clamp_min(1)[:, None]


def _bank_images(classes: int, wanted: int | None) -> int:
    """M, images of each class in the bank."""
    one = 2 * classes * classes
    images = min(max(USUAL_BANK // one, 2), MOST_PER_CLASS) if wanted is None else wanted
    if images * one > MAX_BANK:
        problem = f"A bank of {images} soft targets for each of {classes} classes takes {images * one / 2**30:.0f} GiB."
        remedy = f"Give --bank-size {MAX_BANK // one}." if one <= MAX_BANK else "LW-KD serves up to 32 000 classes."
        raise usage_error(problem, remedy)
    return images


def _made(classes: int, options: DistillOptions, train: Train) -> Network:
    """The lightweight teacher for so many classes: from the cache, or trained and kept there."""
    stop = f"{options.teacher_top1:g}"
    kept = cache_dir(options.cache_dir) / TEACHERS / f"lenet5-{classes}-classes-{stop}-percent"
    if not from_main((kept / WEIGHTS).is_file):
        spot = Path(from_main(lambda: _work_folder(kept.parent)))
        try:
            train(
                TrainTeacherOptions(
                    **TEACHER,
                    data=f"synth-digits:{classes}",
                    epochs=TEACHER_EPOCHS,
                    stop_top1=options.teacher_top1,
                    out=str(spot / kept.name),
                    device=options.device,
                    precision=options.precision,
                    workers=options.workers,
                )
            )
            kept = Path(from_main(lambda: _keep(spot / kept.name, kept)))
        finally:
            if spot.parent == kept.parent:
                shutil.rmtree(spot, ignore_errors=True)
    return load_network(str(kept))


def _work_folder(beside: Path) -> str:
    """An empty folder in the cache, or elsewhere where that cannot be written to."""
    try:
        beside.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=".", dir=beside)
    except OSError:
        return tempfile.mkdtemp(prefix="kdcompress-")


def _keep(made: Path, kept: Path) -> str:
    """Move a finished run into the cache; if another process was faster, its run serves."""
    if made.parent.parent != kept.parent:
        return str(made)
    with contextlib.suppress(OSError):
        made.rename(kept)
    return str(kept)


def _report_collapse(run: Path, job: Job) -> None:
    """Say so where the discriminator never learned, or never had anything to learn from."""
    with open(run / METRICS) as file:
        said = [float(row[ACCURACY]) for row in csv.DictReader(file) if row.get(ACCURACY)]
    taught = "the adversarial loss taught nothing."
    if said and min(said) > 0.99:
        job.reporter.note(f"Notice: the discriminator was never fooled (accuracy 1): {taught}")
    if said and max(abs(value - 0.5) for value in said) < 0.02:
        job.reporter.note(f"Notice: the discriminator never learned (accuracy 0.5): {taught}")
