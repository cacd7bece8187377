"""Trainings that start from trained weights: of a run, a model folder, the hub, or a checkpoint file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdcompress.api.fitting import has_other_names
from kdcompress.api.inputs import is_fixed, settle_input
from kdcompress.api.teacher import SEEN, knows_calibration
from kdcompress.data import DataSource, choose_size
from kdcompress.data.prepared import HOLDOUT
from kdcompress.digests import digest_of
from kdcompress.errors import usage_error
from kdcompress.models.build import ModelSpec, config_of, default_config
from kdcompress.models.loading import INPUT_SIZE, Network, Note, load_network
from kdcompress.models.starting import adapted, single
from kdcompress.options import TrainingOptions
from kdcompress.references import Reference
from kdcompress.runs import file_hash


def started(
    reference: Reference,
    source: DataSource,
    options: TrainingOptions,
    channels: int,
    note: Note,
    key: str | None = None,
    flag: str = "--arch",
) -> Network:
    """A network with trained weights, shaped for these data.

    It keeps its normalisation, and its input size unless ``--input-size`` says otherwise; where nothing records that,
    the size is that of the images if they are small and alike. A classifier of another number of classes is replaced.

    Args:
        key: Which of several sets of weights in a checkpoint file.
        flag: That names the architecture of a checkpoint file.

    Raises:
        UserError: Nothing there, several networks, or weights that cannot be used at that size.
    """
    given = single(load_network(reference.text, reference.arch, key=key, note=note, arch_flag=flag, headless=True))
    unknown = INPUT_SIZE in given.assumed
    settle_input(given, source, options, note, flag)
    size = given.prep.size
    if not unknown and (options.input_size is not None or source.is_raw):
        size = choose_size(source, options, size, is_fixed(given))
    network = fitted(given, source.num_classes, channels, size, options.seed, note)
    if source.is_raw:  # such inputs are taken as they are
        config_of(network.model).update(mean=(0.0,) * channels, std=(1.0,) * channels)
    theirs, ours = given.class_names, source.class_names
    same_number = given.has_classifier and given.num_classes == source.num_classes
    if same_number and theirs and ours and theirs != ours:
        note(
            f"Notice: {given.reference} has the classes {_few(theirs)}, the data have {_few(ours)}. Both are "
            f"{len(ours)}, so its classifier is kept."
        )
    alike = same_number and not has_other_names(given, source)
    if alike and knows_calibration(given, source, options.holdout or HOLDOUT):
        has_seen(network, given.reference, note)
    return network


def has_seen(network: Network, reference: str, note: Note) -> None:
    """Say, and record, that a network may know the calibration images from weights that it starts from."""
    network.record = {SEEN: True}
    note(
        f"Notice: {reference} may have been trained on the calibration images; the accuracy on them is then higher "
        "than on new ones."
    )


def check_seen(network: Network, spec: ModelSpec, note: Note) -> None:
    """As :func:`has_seen`, for timm's weights that keep their classifier: the data may be those of the weights."""
    if network.num_classes == default_config(spec.name).get("num_classes"):
        has_seen(network, spec.name, note)


def fitted(given: Network, classes: int, channels: int, size: tuple[int, int], seed: int, note: Note) -> Network:
    """``given`` for other classes, channels or size, with a notice of what had to change.

    Raises:
        UserError: As for :func:`~kdcompress.models.starting.adapted`.
    """
    network = adapted(given, num_classes=classes, channels=channels, size=size, seed=seed)
    if not given.has_classifier:
        note(f"Notice: {given.reference} has no classifier: a new one is made for {classes} classes.")
    elif given.num_classes != classes:
        note(
            f"Notice: {given.reference} has {given.num_classes} classes, the data have {classes}: its classifier is "
            "replaced by a new one."
        )
    if given.prep.channels != channels:
        note(
            f"Notice: {given.reference} takes images of {given.prep.channels} channel(s), these have {channels}: its "
            "first layer is converted."
        )
    network.start = start_entry(given)
    return network


def start_entry(given: Network) -> dict[str, Any]:
    """What ``run.json`` keeps of the weights that a training starts from."""
    return {**given.entry(), "file": file_digest(given.reference)}


def file_digest(reference: str) -> str | None:
    """Of a checkpoint file, or of the weights in a run folder; None of anything that is not on this disk."""
    path = Path(reference)
    if not path.is_file():
        return file_hash(path)
    return digest_of(path)[:16]


def check_single_start(reference: Reference, options: TrainingOptions, flag: str) -> None:
    """Refuse two sources of weights for one network, and an architecture beside a spec.

    Args:
        flag: That names the network: ``--model``.

    Raises:
        UserError: There are both.
    """
    if reference.has_weights:
        if getattr(options, "pretrained", False):
            problem = f"--pretrained takes timm's weights, but {flag} {reference.text} has its own."
            raise usage_error(problem, "Leave out --pretrained.")
        if getattr(options, "from_teacher", False):
            problem = f"--from-teacher takes the teacher's weights, but {flag} {reference.text} has its own."
            raise usage_error(problem, "Leave out --from-teacher.")
    elif reference.arch is not None and flag.removeprefix("--") not in options.changed():
        problem = f"The architecture {reference.arch} was given without a checkpoint file."
        raise usage_error(problem, f"To train one of that kind from scratch: {flag} {reference.arch}")
    elif reference.arch is not None:
        problem = f"The architecture {reference.arch} was given, but {flag} {reference.text} names its own."
        raise usage_error(problem, "Leave it out.")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
