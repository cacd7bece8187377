"""A cascade in int8: quantized members, and thresholds for their logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from kdcompress.api.calibration_images import CalibrationImages
from kdcompress.api.cost import member_profiles
from kdcompress.api.gated import CALIBRATED, target_of
from kdcompress.api.teacher import knows_calibration
from kdcompress.cost_bound import search_within
from kdcompress.deferral import for_thresholds
from kdcompress.engine.progress import Reporter
from kdcompress.export.compose import Cascade
from kdcompress.export.onnx_network import member_by_member
from kdcompress.export.quantize import quantize_member
from kdcompress.gate_search import search
from kdcompress.gating import Gate, MemberScores, outcome
from kdcompress.guarantee import guaranteed_gate
from kdcompress.models.loading import Network, Note

RANGES = 512  # training images on which activations are measured


def quantized(
    cascade: Cascade, network: Network, images: CalibrationImages, reporter: Reporter
) -> tuple[Cascade, dict[str, Any] | None]:
    """Quantize the members, and choose new thresholds for their logits.

    Ranges of activations come from training images: a guarantee takes calibration images to which nothing was fitted.

    Returns:
        The cascade, and the guarantee of its gate, if there is one.

    Raises:
        UserError: The quantizer cannot take a member.
    """
    members = []
    for number, member in enumerate(cascade.members, start=1):
        reporter.note(f"Quantizing member {number} of {len(cascade.members)} on up to {RANGES} training images.")
        ranges = (batch.numpy() for batch in images.of_training(RANGES))
        members.append(quantize_member(member, ranges, f"Member {number} of {network.reference}"))
    int8 = dataclasses.replace(cascade, members=members)
    if cascade.gate is None:
        return int8, None
    gate, promise = _new_gate(int8, cascade, network, images, reporter.note)
    return dataclasses.replace(int8, gate=gate), promise


def _new_gate(
    int8: Cascade, cascade: Cascade, network: Network, images: CalibrationImages, note: Note
) -> tuple[Gate, dict[str, Any] | None]:
    """A gate with the measure and the target of the run's own, and its guarantee if it has one.

    Args:
        cascade: The same in float32.
    """
    record, gate = network.record, cascade.gate
    assert gate is not None
    asked, result = target_of(record), record.get(CALIBRATED) or record.get("result", {})
    if asked.get("threshold"):
        note("Thresholds that were set by hand stay.")
        return gate, None
    note("Choosing thresholds for the int8 logits.")
    chosen = for_thresholds(gate.measured, len(images), images.groups)
    groups = None if images.groups is None else images.groups[chosen]
    logits, labels = _logits(int8, images, chosen)
    macs = [profile.macs for profile in member_profiles(network)]
    drop, level = asked.get("max_drop"), asked.get("confidence_level")
    if drop is not None and level is not None:
        guaranteed = guaranteed_gate(
            logits, labels, macs, [gate.measured], max_drop=drop, confidence_level=level, groups=groups
        )
        if all(limit is None for limit in guaranteed.thresholds):
            note("Notice: every member runs: in int8 no gate can be guaranteed on these images.")
        if images.data is not None and knows_calibration(network, images.data.source, images.data.holdout):
            note("Notice: weights may know the calibration images, so that the guarantee may not hold.")
        return Gate.by(gate.measured, guaranteed.thresholds), guaranteed.to_dict()
    scores = MemberScores.from_logits(logits, labels, macs, gate.measured)
    if drop is not None:
        return Gate.by(gate.measured, search(scores, gate.measured, max_drop=drop)[0].thresholds), None
    ratio, teacher = asked.get("target_macs"), (record.get("teacher") or {}).get("macs")
    most = ratio * teacher if ratio and teacher else result.get("expected_macs")  # polished: at the MACs of its gate
    if most is None:  # nothing is on record: what the gate costs in float32
        exact = MemberScores.from_logits(*_logits(cascade, images, chosen), macs, gate.measured)
        most = outcome(exact, gate.measured, gate.thresholds).expected_macs
    if level is not None:
        found = search_within(scores, gate.measured, most, level, groups)[0]
    else:
        found = search(scores, gate.measured, max_macs=most)[0]
    return Gate.by(gate.measured, found.thresholds), None


def _logits(cascade: Cascade, images: CalibrationImages, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Logits after each member [M, N, K] and labels [N] of some of the images."""
    after_each = member_by_member(cascade)
    found = [(after_each(batch), labels) for batch, labels in images.some(len(images))]
    logits, labels = torch.cat([each for each, _ in found], 1), torch.cat([each for _, each in found])
    return logits[:, chosen], labels[chosen]
