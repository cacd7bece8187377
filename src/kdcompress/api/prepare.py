"""From options to what a task is made of: networks shaped for the data, and batches that suit teacher and student."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from kdcompress.api.job import Job
from kdcompress.data import Data, DataSource, InputAdapter, Preprocess, choose_size
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.loading import Network
from kdcompress.options import LogitOptions, TrainingOptions


def fresh(
    text: str,
    source: DataSource,
    options: TrainingOptions,
    channels: int,
    pretrained: bool,
    like: Preprocess | None = None,
) -> Network:
    """A network of a spec, shaped for these data.

    Args:
        like: Images are normalised as here, unless the spec says how.
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


def batches_for(source: DataSource, prep: Preprocess, job: Job) -> Data:
    return Data(source, prep, job.options, job.place.device, job.place.rank, job.place.world, job.reporter.note)


def shared(student: Preprocess, teacher: Preprocess, source: DataSource) -> Preprocess:
    """Batches are made for the student, at the larger size of the two where the images have so many pixels.

    Images enlarged for the teacher and shrunk again would reach the student blurred; so the teacher enlarges its own.
    """
    sizes = [teacher.size] if source.size is None else [teacher.size, source.size]
    return dataclasses.replace(student, size=max(student.size, min(sizes, key=math.prod), key=math.prod))


def adapter(made_for: Preprocess, wanted: Preprocess) -> InputAdapter | None:
    adapter = InputAdapter(made_for, wanted)
    return None if adapter.same and adapter.size is None else adapter


def logit_weights(options: LogitOptions) -> dict[str, Any]:
    """What the user set of the loss on logits; the tasks know their own defaults."""
    other = None if options.logit_loss == "kl" else options.logit_loss
    values = {"alpha": options.alpha, "temperature": options.temperature, "logit_loss": other}
    return {key: value for key, value in values.items() if value is not None}
