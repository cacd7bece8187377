"""Parts of a task, made from options: networks shaped for the data, and batches that suit teacher and student."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

from kdcompress.api.agreement import check_agreement
from kdcompress.api.check import check_enough_classes
from kdcompress.api.fitting import check_channels, check_classes, open_data
from kdcompress.api.job import Job, JobOptions
from kdcompress.api.reference import inherit
from kdcompress.api.starting import check_seen, check_single_start, started
from kdcompress.api.teacher import Teacher, as_teacher, load_teacher
from kdcompress.data import (
    Data,
    DataSource,
    InputAdapter,
    Preprocess,
    choose_channels,
    choose_size,
    unlabelled_images,
)
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.loading import Network
from kdcompress.options import METHODS, DistillOptions, LogitOptions, TrainingOptions
from kdcompress.options.methods import Method

SMALL = 224  # pixels: larger photos are reduced by every network, which goes without saying
TINY = 64  # pixels: networks made for images of up to this side are not made for photos


def learner(
    job: Job[JobOptions], source: DataSource, channels: int, *, flag: str = "--student", like: Preprocess | None = None
) -> Network:
    """The network that a command trains, shaped for these data: with fresh weights, timm's, or those of a reference.

    Args:
        flag: The option that names it.
        like: Gives mean and std, unless the spec does.

    Raises:
        UserError: As :func:`~kdcompress.api.starting.started`; two sources of weights.
    """
    options: TrainingOptions = job.options
    reference = options.learner
    assert reference is not None
    check_single_start(reference, options, flag)
    if reference.has_weights:
        key = getattr(options, "weights_key", None) if flag == "--model" else None
        arch_flag = "--arch" if flag == "--model" else "--student-arch"
        return started(reference, source, options, channels, job.reporter.note, key, arch_flag)
    if os.path.isdir(reference.text):
        job.reporter.note(f"Notice: {reference.text} is the architecture; ./{reference.text} would be the folder.")
    pretrained = getattr(options, "pretrained", False)
    network = fresh(reference.text, source, options, channels, pretrained, like)
    if pretrained:
        check_seen(network, ModelSpec.parse(reference.text), job.reporter.note)
    _note_reduced(network, source, job, flag)
    return network


def _note_reduced(network: Network, source: DataSource, job: Job[JobOptions], flag: str) -> None:
    """Say that small images are made smaller still, or photos tiny: another size, or network, may be more accurate."""
    own, size = source.size, network.prep.size
    if job.options.input_size is not None or source.is_raw:
        return
    if max(size) <= TINY < source.side and (own is None or max(own) > SMALL):
        job.reporter.note(
            f"Notice: photos are reduced to {size[0]}x{size[1]} pixels, the default of {network.architecture}. "
            f"One of timm's networks for photos: {flag} resnet18 --pretrained"
        )
    if own is None or max(own) > SMALL or math.prod(size) >= math.prod(own):
        return
    job.reporter.note(
        f"Notice: images of {own[0]}x{own[1]} pixels are reduced to {size[0]}x{size[1]}, the default of "
        f"{network.architecture}. To keep their size: --input-size {own[0]}x{own[1]}"
    )


def fresh(
    text: str,
    source: DataSource,
    options: TrainingOptions,
    channels: int,
    pretrained: bool,
    like: Preprocess | None = None,
) -> Network:
    """A new network of a model spec, shaped for the data, with random or timm's weights.

    Args:
        like: Gives mean and std, unless the spec does.
    """
    spec = ModelSpec.parse(text)
    if like is not None:
        spec = dataclasses.replace(spec, preprocessing={"mean": like.mean, "std": like.std, **spec.preprocessing})
    config = {} if spec.is_code else default_config(spec.name)
    own = spec.preprocessing.get("input_size") or config.get("input_size", (3, 224, 224))
    fixed = "input_size" in spec.preprocessing or bool(config.get("fixed_input_size"))
    size = choose_size(source, options, tuple(own[1:]), fixed)
    if source.is_raw:
        as_is = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
        spec = dataclasses.replace(spec, preprocessing={**spec.preprocessing, **as_is})
    return new_network(
        spec, num_classes=source.num_classes, channels=channels, size=size, seed=options.seed, pretrained=pretrained
    )


def batches_for(source: DataSource, prep: Preprocess, job: Job[JobOptions]) -> Data:
    """The data of a job, preprocessed by ``prep``; with ``--unlabelled`` its images, too.

    Raises:
        UserError: As for :func:`~kdcompress.data.unlabelled_images`.
    """
    place, note = job.place, job.reporter.note
    folder = getattr(job.options, "unlabelled", None)
    unlabelled = None if folder is None else unlabelled_images(folder, source)
    data = Data(source, prep, job.options, place.device, place.rank, place.world, note, unlabelled=unlabelled)
    if unlabelled is not None:
        for each in unlabelled.notes:
            note(each)
        more = len(unlabelled.images.labels)
        note(
            f"Training on {data.fit_size() - more:,} labelled images, and on {more:,} of {folder} by the teacher alone"
        )
    return data


def shared(student: Preprocess, teacher: Preprocess, source: DataSource) -> Preprocess:
    """Preprocessing of batches for both: the student's, at the larger input size if the images have as many pixels.

    Images enlarged for the teacher and shrunk again would reach the student blurred; so the teacher enlarges its own.
    """
    sizes = [teacher.size] if source.size is None else [teacher.size, source.size]
    return dataclasses.replace(student, size=max(student.size, min(sizes, key=math.prod), key=math.prod))


def adapter(made_for: Preprocess, wanted: Preprocess) -> InputAdapter | None:
    """What converts batches from one preprocessing to another; None if they are the same."""
    adapter = InputAdapter.between(made_for, wanted)
    return None if adapter.same and adapter.size is None else adapter


def logit_weights(options: LogitOptions, method: Method | None = None, *, agreement: bool = False) -> dict[str, Any]:
    """Arguments of the logit loss: the user's, else the method's defaults; those left out are the loss's own.

    Args:
        agreement: Whether labels are the teacher's answers, which count for nothing beside its logits.
    """
    other = None if options.logit_loss == "kl" else options.logit_loss
    own = {"alpha": method and method.alpha, "temperature": method and method.temperature}
    values = {**own, **{key: value for key in own if (value := getattr(options, key)) is not None}, "logit_loss": other}
    values |= {"alpha": 1.0} if agreement else {}
    return {key: value for key, value in values.items() if value is not None}


def smoothing(options: DistillOptions) -> float:
    """Label smoothing that the user set, else the method's default."""
    given = options.label_smoothing
    return METHODS[options.method].label_smoothing if given is None else given


def opened(job: Job[DistillOptions]) -> tuple[Teacher | None, DataSource, int]:
    """The teacher, the data, and the number of image channels that the student gets.

    Data options that the user left open are set to those of the teacher's run in ``job.options``.

    Raises:
        UserError: No such teacher or data, or networks and data that do not fit together.
    """
    options = job.options
    network = None
    if options.teacher is not None:
        network = load_teacher(options.teacher, options.teacher_arch, options.weights_key, job.reporter)
    options = job.options = inherit(options, network.record if network else {})
    source = open_data(options, network, is_teacher=True)
    check_agreement(source, options)
    check_enough_classes(options, source.num_classes)
    channels = choose_channels(source, options)
    if network is None:
        return None, source, channels
    check_classes(network, source, "teacher")
    if options.input_size is None and network.record.get("data_fingerprint") == source.fingerprint:
        channels = network.prep.channels
    check_channels(network, channels, "teacher", source.size)
    return as_teacher(network, source, options, job.reporter), source, channels
