"""The lightweight teacher of LW-KD: trained once per number of classes, and its logits on synthesized images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress.api.job import Job
from kdcompress.api.recipes.logits import train_on_labels
from kdcompress.api.recorded_split import recorded_split
from kdcompress.cache import TEACHERS, cache_dir
from kdcompress.data import Data, DataSource, load_source, synth_digits
from kdcompress.data.splits import rank_in_class
from kdcompress.engine.distributed import Place, alone, from_main
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError, usage_error
from kdcompress.locks import Lock
from kdcompress.methods.base import Frozen
from kdcompress.models import lenet
from kdcompress.models.loading import Network, load_network
from kdcompress.options import DistillOptions, TrainTeacherOptions
from kdcompress.runs import RECORD, WEIGHTS, RunFolder

RECIPE: dict[str, Any] = {"model": "lenet5", "opt": "adamw", "lr": 4e-3, "augment": "none"}
FORMAT = 2  # of the cached runs: with digests
MOST_EPOCHS, LEAST_EPOCHS, IMAGES = 20, 5, 600_000  # upper limits: it stops at --teacher-top1
USUAL_BANK, MAX_BANK = 512 * 2**20, 4 * 2**30  # bytes
MOST_PER_CLASS, MOST_IMAGES = 128, 20_000

_temporary: list[Any] = []  # folders that are removed when the process ends


def light_teacher(classes: int, options: DistillOptions, place: Place, reporter: Reporter) -> Network:
    """The lightweight teacher for a number of classes: from the cache, or trained and cached.

    It is trained in a folder of its own, so that an interrupted training is resumed, and a second process waits for it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the next command resumes its training.
    """
    epochs = min(max(IMAGES // synth_digits.SynthDigits.parse(_data(classes)).n, LEAST_EPOCHS), MOST_EPOCHS)
    stop = f"{options.teacher_top1:g}-percent"
    name = f"lenet5-{classes}-classes-{stop}-{_recipe(epochs)}"
    cached = cache_dir(options.cache_dir) / TEACHERS / name

    def made() -> Network:
        with alone():
            return _loaded(cached) or _trained(cached, _data(classes), epochs, options, place, reporter)

    return from_main(made)  # other hosts have other caches, and so small a network trains no faster on several


def _trained(
    cached: Path, data: str, epochs: int, options: DistillOptions, place: Place, reporter: Reporter
) -> Network:
    with contextlib.ExitStack() as stack:
        work = _work_folder(cached, place, stack, reporter)
        if work != cached:

            def make(folder: Path) -> None:
                own = TrainTeacherOptions(
                    **RECIPE,
                    data=data,
                    epochs=epochs,
                    stop_top1=options.teacher_top1,
                    out=str(folder),
                    resume=True,
                    device=options.device,
                    precision=options.precision,
                    workers=options.workers,
                )
                job = Job.begin("train-teacher", "ce", own, reporter)
                if job.finished() is None:
                    train_on_labels(job)

            for is_last in (False, True):
                began = (work / RECORD).exists()
                try:
                    make(work)
                    break
                except Interrupted as interrupted:
                    remedy = "Run the same command again: the lightweight teacher resumes where it stopped."
                    raise Interrupted(interrupted.path, remedy) from interrupted
                except UserError as error:
                    problem = _disk_error(error)
                    if is_last or work.parent != cached.parent or (problem is None and not began):
                        raise
                    shutil.rmtree(work, ignore_errors=True)
                    if problem is None:  # damaged, or begun with other defaults
                        reporter.note(f"Notice: the lightweight teacher is trained anew. {error.problem}")
                    else:
                        work = _not_kept(cached, problem, reporter)
            if work.parent == cached.parent:
                work = _moved(work, cached)
    network = load_network(str(work))
    reached = network.record["result"]["top1"]
    if reached < options.teacher_top1:
        reporter.note(f"Notice: the lightweight teacher reached {reached:.1f} %, not {options.teacher_top1:g} %.")
    return network


def soft_targets(
    teacher: Network, images: int, options: DistillOptions, job: Job[DistillOptions], source: DataSource
) -> Tensor:
    """Logits [K, M, K] of a teacher on M images of each class of its own data, in half precision.

    Synthesized images are drawn anew, so it was trained on none of them. Other images are those of its calibration
    split or, if the student has the same data, of the student's fit split.

    Args:
        images: M; fewer where a class has fewer.
        source: The student's data.

    Raises:
        UserError: The teacher's training data are not on record, or have no image of some class.
    """
    past = teacher.record.get("options", {})
    spec = past.get("data")
    if spec is None:
        remedy = "Give a run of train-teacher, or leave TEACHER out."
        raise UserError(f"The training data of {teacher.reference} are not on record.", remedy)
    if spec.startswith(f"{synth_digits.NAME}:"):
        drawn = synth_digits.SynthDigits.parse(spec)
        # the test split of synthesized data has a fifth of n images
        others = dataclasses.replace(drawn, n=max(5 * images, 2) * drawn.classes, seed=drawn.seed + 1)
        known, split = load_source(str(others)), "test"
    else:
        known = load_source(spec, data_dir=past.get("data_dir"), split=recorded_split(teacher, spec))
        split = "fit" if known.fingerprint == source.fingerprint else "calibration"
    given = dataclasses.replace(options, holdout=past.get("holdout"), skip_bad_images=bool(past.get("skip_bad_images")))
    data = Data(known, teacher.prep, given, job.place.device)
    model = Frozen(teacher.model.to(job.place.device))
    bank = torch.zeros(known.num_classes, images, teacher.num_classes, dtype=torch.float16)
    filled = torch.zeros(known.num_classes, dtype=torch.long)
    with torch.inference_mode(), job.place.autocast():
        for x, y in data.evaluation(split, forward_batch(job.place, data.prep), images):
            labels = y.cpu()
            bank[labels, filled[labels] + torch.from_numpy(rank_in_class(labels.numpy()))] = model(x).half().cpu()
            filled += torch.bincount(labels, minlength=len(filled))
    least = int(filled.min())
    if not least:
        raise UserError(f"The data {spec} have no image of class {int(filled.argmin())}.", "Leave TEACHER out.")
    if least < images:
        job.reporter.note(f"Notice: {spec} has only {least} images of a class for the bank.")
    return bank[:, :least].clone() if least < images else bank


def bank_images(classes: int, wanted: int | None) -> int:
    """M, the number of images of each class in the bank.

    Raises:
        UserError: They would not fit into memory.
    """
    one = 2 * classes * classes
    usual = min(USUAL_BANK // one, MOST_IMAGES // classes, MOST_PER_CLASS)
    images = max(usual, 2) if wanted is None else wanted
    limit = min(MAX_BANK, _memory() // 2)
    if images * one > limit:
        problem = f"A bank of {images} soft targets for each of {classes} classes takes {images * one / 2**30:.1f} GiB."
        most = limit // one
        remedy = f"Give --bank-size {most}." if most else "For so many classes --method kd needs less memory."
        raise usage_error(problem, remedy)
    return images


def _data(classes: int) -> str:
    return f"{synth_digits.NAME}:{classes}"


def _recipe(epochs: int) -> str:
    """Eight hex digits of all that the teacher's weights depend on."""
    digest = hashlib.sha256(json.dumps([RECIPE, epochs, FORMAT]).encode())
    for module in (synth_digits, lenet):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:8]


def _loaded(folder: Path) -> Network | None:
    """The network of a finished and undamaged run, else None."""
    with contextlib.suppress(UserError):
        if WEIGHTS in RunFolder(folder).digests():
            return load_network(str(folder))
    return None


def _work_folder(cached: Path, place: Place, stack: contextlib.ExitStack, reporter: Reporter) -> Path:
    """Where to train, locked until the stack closes; ``cached`` itself if another process has just trained it."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        note_once = functools.cache(reporter.note)
        waiting = functools.partial(note_once, "Another run trains this lightweight teacher; waiting for it.")
        stack.enter_context(Lock(cached.parent / f".{cached.name}.lock").awaited(waiting))
        if _loaded(cached) is not None:
            return cached
        if cached.exists():
            reporter.note(f"Warning: the lightweight teacher {cached} is altered or damaged; it is trained again.")
            shutil.rmtree(cached, ignore_errors=True)
    except OSError as error:
        return _not_kept(cached, error, reporter)
    return cached.parent / f".{cached.name}-{place.precision}-1"


def _not_kept(cached: Path, problem: OSError, reporter: Reporter) -> Path:
    """A folder to train in that is removed when the process ends."""
    reporter.note(
        f"Warning: the lightweight teacher cannot be cached in {cached.parent}: {problem.strerror or problem}."
    )
    _temporary.append(tempfile.TemporaryDirectory(prefix="kdcompress-", ignore_cleanup_errors=True))
    return Path(_temporary[-1].name) / cached.name


def _disk_error(error: BaseException | None) -> OSError | None:
    """The OSError that caused an error of ours, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _moved(work: Path, cached: Path) -> Path:
    """Move the finished teacher into the cache, and return its folder; where that fails, it is used from ``work``."""
    try:
        return work.rename(cached)
    except OSError:
        return work


def _memory() -> int:
    """Bytes of memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not available on every system
        return 2 * MAX_BANK
