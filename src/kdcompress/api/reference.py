"""How one command finds what another made: references, ``-``, and what a run passes on to the next."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any, TypeVar

from kdcompress import schema
from kdcompress.api.cost import facts, member_profiles, note_missed, spec_of
from kdcompress.data import Data, DataSource, InputAdapter, load_source, parse_size
from kdcompress.engine.distributed import from_main, restarted
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.methods.base import Frozen
from kdcompress.models.build import config_of
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.models.transplant import LEAST, transplant
from kdcompress.options import DataOptions

D = TypeVar("D", bound=DataOptions)

MAX_STDIN = 16 * 2**20  # bytes: a result is some kB, a log may come before it
SEEN = "calibration_seen"  # in run.json, handed on from run to run


def resolve(reference: str) -> str:
    """The reference itself, or what standard input says where it is ``-``."""
    if reference != "-":
        return reference
    return from_main(_from_stdin)


def piped(options: D) -> D:
    """The options with what standard input says for ``-``; read now and kept, for it can be read only once."""
    names = [name for name in ("run", "teacher") if getattr(options, name, None) == "-"]
    found: dict[str, Any] = {name: resolve("-") for name in names}
    return dataclasses.replace(options, **found)


def inherit(options: D, record: dict[str, Any]) -> D:
    """Fill in the data options that the user left open from the run that this one builds on.

    Raises:
        UserError: Another holdout on the same data: images that were fitted on would become calibration images.
    """
    past = record.get("options", {})
    own: dict[str, Any] = {
        name: past[name] for name in ("data", "data_dir", "holdout") if getattr(options, name) is None and name in past
    }
    if past.get("skip_bad_images"):
        own["skip_bad_images"] = True
    same_data = options.data is None or absolute(options.data) == past.get("data")
    if same_data and "holdout" in past and options.holdout not in (None, past["holdout"]):
        raise usage_error(
            f"--holdout {options.holdout} differs from the {past['holdout']} of the run that this one builds on.",
            "Leave it out: images that a network has fitted on cannot calibrate it.",
        )
    return dataclasses.replace(options, **own)


def absolute(reference: str) -> str:
    """A reference, as it reads from any folder."""
    return os.path.abspath(reference) if os.path.exists(reference) else reference


def check_unchanged(network: Network, source: DataSource) -> None:
    """Images that a network has fitted on must not come to calibrate it.

    Raises:
        UserError: The data that it was trained on have changed, and with them their division.
    """
    then = network.record.get("options", {}).get("data")
    if then == source.spec and network.record.get("data_fingerprint") not in (None, source.fingerprint):
        remedy = "Train anew, or put the images back as they were."
        raise UserError(
            f"The data {source.spec} have changed since {network.reference} was trained: its calibration images may be "
            "among those that it has fitted on.",
            remedy,
        )


def resize_input(network: Network, options: DataOptions) -> None:
    """Let a network see images of ``--input-size``, where that was given."""
    if options.input_size is not None:
        _, height, width = parse_size(options.input_size)
        config_of(network.model)["input_size"] = (network.prep.channels, height, width)


def open_data(options: DataOptions) -> DataSource:
    return load_source(options.data or "digits", data_dir=options.data_dir, download=options.download)


@dataclass
class Teacher:
    """A teacher, and its entry in ``run.json`` by which a later command finds it again."""

    network: Network
    entry: dict[str, Any]

    def freeze(self, adapter: InputAdapter | None) -> Frozen:
        """What a student learns from, behind an adapter of the batches."""
        return Frozen(self.network.model, adapter)


def load_teacher(reference: str, arch: str | None, reporter: Reporter) -> Teacher:
    """Load and profile a teacher."""
    network = load_network(resolve(reference), arch)
    profiles = member_profiles(network)
    note_missed(profiles, network.reference, reporter)
    cost = facts(network, None, profiles)
    entry = {"reference": network.reference, "arch": network.arch, "fingerprint": network.fingerprint()}
    return Teacher(network, {**entry, **{key: cost[key] for key in ("architecture", "macs", "params")}})


def start_from(teacher: Teacher, student: Network, data: Data, reporter: Reporter) -> None:
    """Let a student begin with those of the teacher's layers that fit it.

    Args:
        data: Those that it will learn from, to tell whether the teacher may know their calibration images.
    """
    share = transplant(student.model, teacher.network.model)
    spec = spec_of({"architecture": student.architecture, "model_args": student.model_args})
    if share < LEAST:
        which = "no network starts from a cascade"
        if not isinstance(teacher.network.model, Staged):
            which = "a shallower network of its family and width would start from it"
        reporter.note(f"Notice: {spec} starts at random: {share:.0%} of its parameters fit the teacher, {which}.")
        return
    reporter.note(f"{spec} starts from the teacher's weights: {share:.0%} of its parameters")
    if may_know_calibration(teacher.network, data):
        student.record = {**student.record, SEEN: True}
        reporter.note(
            "Notice: the teacher may have learned from the calibration images; what starts from it then looks better "
            "on them than on new ones."
        )


def may_know_calibration(network: Network, data: Data) -> bool:
    """Whether the weights of a network may come from the calibration images of these data."""
    record = network.record
    if record.get(SEEN) or "data_fingerprint" not in record:
        return True
    own = record.get("options", {}).get("holdout")
    return record["data_fingerprint"] == data.source.fingerprint and own != data.holdout


def check_classes(network: Network, source: DataSource, role: str) -> None:
    """A network that is to work on these data must know their classes, in their order.

    Raises:
        UserError: Another number of classes or channels, other names or another order.
    """
    if network.num_classes != source.num_classes:
        raise UserError(
            f"The {role} {network.reference} has {network.num_classes} classes, the data {source.spec} have "
            f"{source.num_classes}.",
            f"Give the data that the {role} was trained on, or fine-tune it: kdcompress train-teacher --pretrained.",
        )
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


def check_channels(network: Network, channels: int, role: str) -> None:
    if network.prep.channels != channels:
        size = "x".join(str(side) for side in (network.prep.channels, *network.prep.size))
        raise UserError(
            f"The {role} {network.reference} takes images of {network.prep.channels} channels, these have {channels}.",
            f"Convert the images on reading with --input-size {size}.",
        )


def _from_stdin() -> str:
    if restarted():
        remedy = "Give the run folder itself in place of '-' where torchrun may restart processes (--max-restarts)."
        raise UserError("Standard input has been read before torchrun restarted the job.", remedy)
    if sys.stdin is None or sys.stdin.isatty():
        raise usage_error("'-' reads a run from standard input, but nothing is piped in.", "Give a run folder instead.")
    remedy = "Pipe in the output of a kdcompress command, or the path of a run."
    try:
        content = getattr(sys.stdin, "buffer", sys.stdin).read(MAX_STDIN + 1)
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise usage_error("Standard input is no UTF-8 text.", remedy) from error
    except (OSError, ValueError) as error:  # a folder, or one that was closed
        raise usage_error(f"Standard input cannot be read: {first_line(error)}", remedy) from error
    if len(content) > MAX_STDIN:
        raise usage_error(f"Standard input holds more than {MAX_STDIN / 2**20:g} MiB, which no result does.", remedy)
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    if not lines:
        remedy = "The command before it printed nothing; look at its error above."
        raise usage_error("Standard input is empty.", remedy)
    # the last line may follow those of a log; an indented JSON object is all the lines
    last = " ".join(lines) if lines[0] == "{" else lines[-1]
    if last.startswith("{"):
        try:
            run = schema.read_object(last.encode(), schema.Piped).get("run")
        except ValueError as error:
            problem = f"Standard input is not valid JSON: {first_line(error)}"
            if isinstance(error, schema.Malformed):
                problem = f"The JSON on standard input names no run that can be used: {error}."
            raise usage_error(problem, "Pipe in the output of a command.") from error
        if not run:
            raise usage_error(
                "The JSON on standard input names no run.", "Pipe in the output of a command that made one."
            )
        return str(run)
    if not os.path.exists(last):  # unlike Path.exists, it takes any text
        raise usage_error(f"Standard input holds neither JSON nor a path: {last[:60]!r}.", remedy)
    return last
