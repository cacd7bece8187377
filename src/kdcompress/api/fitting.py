"""Checks that networks and data fit together."""

from __future__ import annotations

import shlex
from typing import Any, Protocol

from kdcompress.api.agreement import agreement_source
from kdcompress.api.recorded_split import recorded_split, split_of_resumed
from kdcompress.data import DataSource, Preprocess, choose_channels, load_source, parse_size
from kdcompress.errors import UserError, usage_error
from kdcompress.models.build import config_of
from kdcompress.models.loading import INPUT_SIZE, Network
from kdcompress.models.outputs import return_logits
from kdcompress.options import DataOptions
from kdcompress.references import UNLABELLED, is_of_timm


class Described(Protocol):
    """A network in PyTorch or in an exported file."""

    @property
    def reference(self) -> str:
        """How messages name it."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in logit order, where known."""

    @property
    def prep(self) -> Preprocess:
        """How its images are resized and normalised."""

    @property
    def record(self) -> dict[str, Any]:
        """The ``run.json`` that it came with; empty if none."""


def check_unchanged(network: Described, source: DataSource) -> None:
    """Refuse data that have changed: images that a network was trained on could end up in its calibration split.

    Raises:
        UserError: The data have changed since the network was trained, and with them their split.
    """
    then = network.record.get("options", {}).get("data")
    if then == source.spec and network.record.get("data_fingerprint") not in (
        None,
        source.fingerprint,
        source.former,
    ):
        remedy = "Train again, or put the images back as they were."
        raise UserError(
            f"The data {source.spec} have changed since {network.reference} was trained: its calibration images may be "
            "among those that it was trained on.",
            remedy,
        )


def resize_input(network: Network, options: DataOptions) -> None:
    """Set the input size of a network to ``--input-size``, if given."""
    if options.input_size is not None:
        _, height, width = parse_size(options.input_size)
        config_of(network.model)["input_size"] = (network.prep.channels, height, width)


def open_data(
    options: DataOptions,
    network: Network | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    is_teacher: bool = False,
) -> DataSource:
    """The data set of ``--data``.

    Args:
        network: The one that the command builds on: a folder or manifest without splits is divided as its run recorded
            it.
        is_teacher: Whether ``network`` is to answer where the data have no labels.
        classes: Names that labels of a manifest are matched with, where they are not those of ``network``.

    Raises:
        UserError: The data cannot be found or read, the recorded division was altered, or a run names no data.
    """
    if options.data is None and network is not None and network.record:
        raise usage_error(f"{network.reference} names no data.", "Say which to use: --data.")
    spec = options.data or "digits"
    split = recorded_split(network, spec) or split_of_resumed(options, spec)
    if spec.startswith(UNLABELLED):
        source = agreement_source(spec, network, options, split, is_teacher=is_teacher)
    else:
        classes = classes if network is None else network.class_names
        source = load_source(spec, data_dir=options.data_dir, download=options.download, split=split, classes=classes)
    if network is not None and network.record.get("data_fingerprint") == source.fingerprint:
        source.first_notes.clear()  # printed by the command that made the run
    return source


def check_images(network: Described, source: DataSource, options: DataOptions, split: str, role: str) -> None:
    """Refuse images of a split that a network cannot be scored on.

    Args:
        split: ``calibration`` must be the one of the training; other splits may be of other data.
        role: What the network is, for the message.

    Raises:
        UserError: The data have changed since the training, or have other channels than the network takes.
    """
    if split == "calibration":
        check_unchanged(network, source)
    known = network.record.get("data_fingerprint")
    if known is None or known not in (source.fingerprint, source.former):
        check_channels(network, choose_channels(source, options), role, source.size)


def check_classes(network: Described, source: DataSource, role: str) -> None:
    """Refuse a network whose classes are not those of the data, in the same order.

    Raises:
        UserError: Another number of classes, other names or another order.
    """
    if isinstance(network, Network) and config_of(network.model).get("num_classes") is None:
        # code of the user's own, which does not say; its output is checked
        config_of(network.model)["num_classes"] = source.num_classes
        return_logits(network.model, network.reference, source.num_classes)
    if network.num_classes != source.num_classes:
        problem = f"The {role} {network.reference} has {network.num_classes} classes, the data {source.spec} have"
        remedy = f"Give the data that the {role} was trained on"
        if isinstance(network, Network):
            arch = f" --arch {network.arch}" if network.arch else ""
            start = " --pretrained" if is_of_timm(network.reference) else ""
            model, data = shlex.quote(network.reference), shlex.quote(source.spec)
            command = f"kdcompress train-teacher --model {model}{start}{arch} --data {data}"
            raise UserError(f"{problem} {source.num_classes}.", f"{remedy}, or fine-tune it: {command}")
        raise UserError(f"{problem} {source.num_classes}.", f"{remedy}.")
    if network.class_names and source.class_names and tuple(network.class_names) != source.class_names:
        theirs, ours = network.class_names, source.class_names
        if set(theirs) == set(ours):
            problem = (
                f"The {role} has the classes in another order: {', '.join(theirs[:4])} … not {', '.join(ours[:4])} …"
            )
        else:
            odd = sorted(set(theirs) ^ set(ours))[:4]
            problem = f"The {role} and the data {source.spec} differ in the classes {', '.join(odd)}."
        raise UserError(problem, f"Give the data that the {role} was trained on.")


def has_other_classes(network: Described, source: DataSource) -> bool:
    """Whether the data are about something else than what the network was trained on: it needs a new head."""
    if isinstance(network, Network) and config_of(network.model).get("num_classes") is None:
        return False  # code of the user's own, which does not say
    return network.num_classes != source.num_classes or has_other_names(network, source)


def has_other_names(network: Described, source: DataSource) -> bool:
    """Whether the names of both are known, and none is the same."""
    theirs, ours = network.class_names, source.class_names
    return bool(theirs and ours) and not {*map(str.lower, theirs or ())} & {*map(str.lower, ours or ())}


def check_channels(network: Described, channels: int, role: str, own_size: tuple[int, int] | None = None) -> None:
    """Refuse images of another number of channels than the network takes.

    Args:
        own_size: (H, W) of the images, where they are alike: the size of a network that records none.

    Raises:
        UserError: The numbers differ.
    """
    if network.prep.channels != channels:
        open_size = isinstance(network, Network) and INPUT_SIZE in network.assumed
        height, width = (own_size if open_size else None) or network.prep.size
        size = f"{network.prep.channels}x{height}x{width}"
        raise UserError(
            f"The {role} {network.reference} takes {network.prep.channels} channels, the data have {channels}.",
            f"Convert the images on reading with --input-size {size}.",
        )
