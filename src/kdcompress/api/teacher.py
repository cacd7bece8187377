"""Teachers: loaded, profiled, and what a student takes from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcompress.api.cost import facts, member_profiles, note_missed, spec_of
from kdcompress.api.reference import resolve
from kdcompress.data import Data, InputAdapter
from kdcompress.engine.progress import Reporter
from kdcompress.methods.base import Frozen
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.models.transplant import LEAST, transplant

SEEN = "calibration_seen"  # in run.json, handed on from run to run


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
