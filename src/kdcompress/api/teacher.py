"""Teachers: loading, profiling, and the weights that a student starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcompress.api.cost import facts, member_profiles, note_missed, spec_of
from kdcompress.api.inputs import recall_size, settle_input, without_size
from kdcompress.api.reference import resolve
from kdcompress.data import Data, DataSource, InputAdapter
from kdcompress.engine.progress import Reporter
from kdcompress.methods.base import Frozen
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.models.transplant import LEAST, transplant
from kdcompress.options import DataOptions
from kdcompress.references import UNLABELLED

SEEN = "calibration_seen"  # in run.json, handed on from run to run
DIVIDED = "division"  # in run.json: the rule by which images with copies were divided; None where there are none
TRAINED = "trained_on"  # in run.json of a gate, which may be for other data: what the weights were trained on


@dataclass
class Teacher:
    """A teacher, and its entry in ``run.json`` by which a later command finds it again."""

    network: Network
    entry: dict[str, Any]

    def freeze(self, adapter: InputAdapter | None) -> Frozen:
        """The frozen network, with an adapter from the student's batches to the teacher's input."""
        return Frozen(self.network.model, adapter)


def load_teacher(reference: str, arch: str | None, key: str | None, reporter: Reporter) -> Network:
    """Load the network that is to be a teacher.

    Args:
        arch, key: Of a checkpoint file: its architecture, and which of several sets of weights.
    """
    return load_network(resolve(reference), arch, key=key, note=reporter.note, arch_flag="--teacher-arch")


def recall_teacher(known: dict[str, Any], reporter: Reporter) -> Network:
    """The teacher of an earlier command, by its entry in ``run.json``."""
    network = load_network(known["reference"], known.get("arch"))
    recall_size(network, known.get("input_size"))
    if network.fingerprint() != known.get("fingerprint"):
        reporter.note(f"Notice: the teacher {known['reference']} has changed since this run was distilled.")
    return network


def as_teacher(network: Network, source: DataSource, options: DataOptions, reporter: Reporter) -> Teacher:
    """A network as the teacher on these data: its input settled, its cost counted."""
    settle_input(network, source, without_size(options), reporter.note, "--teacher-arch")
    profiles = member_profiles(network)
    note_missed(profiles, network.reference, reporter)
    cost = facts(network, None, profiles)
    entry = network.entry() | {key: cost[key] for key in ("architecture", "macs", "params")}
    return Teacher(network, {**entry, "input_size": list(network.input_size), "input": network.prep.described()})


def start_from(teacher: Teacher, student: Network, data: Data, reporter: Reporter) -> bool:
    """Copy the teacher's layers that fit into a student, and say whether there were enough of them.

    Args:
        data: The student's data, to tell whether the teacher may have been trained on its calibration images.
    """
    share = transplant(student.model, teacher.network.model)
    spec = spec_of({"architecture": student.architecture, "model_args": student.model_args})
    if share < LEAST:
        hint = "no network can start from a cascade"
        if not isinstance(teacher.network.model, Staged):
            hint = "a shallower network of the same family and width would fit"
        reporter.note(f"Notice: {spec} is initialised randomly: {share:.0%} of its parameters fit the teacher; {hint}.")
        return False
    reporter.note(f"{spec} starts from the teacher's weights: {share:.0%} of its parameters")
    if knows_calibration(teacher.network, data.source, data.holdout):
        student.record = {**student.record, SEEN: True}
        reporter.note(
            "Notice: the teacher may have been trained on the calibration images; a student that starts from it then "
            "scores higher on them than on new ones."
        )
    return True


def may_have_seen_calibration(network: Network, data: str | None, fingerprint: str, holdout: float) -> bool:
    """Whether a network may have been trained on the calibration images.

    Args:
        data, fingerprint, holdout: The data, what tells whether they have changed, and the share for calibration.
    """
    record = network.record
    if record.get(SEEN) or "data_fingerprint" not in record:
        return True
    past = record.get(TRAINED) or origin_of(record)
    if past.get("data_fingerprint") != fingerprint:  # images that have come or gone have changed the division, too
        return data is not None and str(past.get("data")).removeprefix(UNLABELLED) == data.removeprefix(UNLABELLED)
    return bool(past.get("holdout") != holdout)


def knows_calibration(network: Network, source: DataSource, holdout: float) -> bool:
    """As :func:`may_have_seen_calibration`, for data that are open."""
    record = network.record
    former = source.former is not None and record.get("data_fingerprint") == source.former
    fingerprint = str(source.former) if former else source.fingerprint
    past = record.get(TRAINED) or origin_of(record)
    if past.get("data_fingerprint") == fingerprint and source.division not in (None, record.get(DIVIDED)):
        return True  # by the rule of its time, other images were for calibration
    return may_have_seen_calibration(network, source.spec, fingerprint, holdout)


def origin_of(record: dict[str, Any]) -> dict[str, Any]:
    """What a run was trained on, by its record: the data, and the share that was kept for calibration."""
    options = record.get("options", {})
    return {
        "data": options.get("data"),
        "holdout": options.get("holdout"),
        "data_fingerprint": record.get("data_fingerprint"),
    }
