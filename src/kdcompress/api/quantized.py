"""A cascade in int8: quantized members, and thresholds for their logits."""

from __future__ import annotations

import dataclasses

import torch

from kdcompress.api.calibration_images import CalibrationImages
from kdcompress.api.cost import member_profiles
from kdcompress.api.gated import CALIBRATED, target_of
from kdcompress.cost_bound import search_within
from kdcompress.deferral import for_thresholds
from kdcompress.engine.progress import Reporter
from kdcompress.export.compose import Cascade
from kdcompress.export.onnx_network import member_by_member
from kdcompress.export.quantize import quantize_member
from kdcompress.gate_search import search
from kdcompress.gating import Gate, MemberScores
from kdcompress.guarantee import guaranteed_gate
from kdcompress.models.loading import Network, Note

RANGES = 512  # images on which activations are measured


def quantized(cascade: Cascade, network: Network, images: CalibrationImages, reporter: Reporter) -> Cascade:
    """Quantize the members, and choose new thresholds for their logits.

    Raises:
        UserError: The quantizer cannot take a member.
    """
    members = []
    for number, member in enumerate(cascade.members, start=1):
        reporter.note(f"Quantizing member {number} of {len(cascade.members)} on {min(RANGES, len(images))} {images}.")
        ranges = (batch.numpy() for batch, _ in images.some(RANGES))
        members.append(quantize_member(member, ranges, f"Member {number} of {network.reference}"))
    int8 = dataclasses.replace(cascade, members=members)
    if cascade.gate is None:
        return int8
    reporter.note("Choosing thresholds for the int8 logits.")
    return dataclasses.replace(int8, gate=_new_gate(int8, cascade.gate, network, images, reporter.note))


def _new_gate(cascade: Cascade, gate: Gate, network: Network, images: CalibrationImages, note: Note) -> Gate:
    """A gate with the measure and the target of the run's own."""
    record = network.record
    asked, result = target_of(record), record.get(CALIBRATED) or record.get("result", {})
    if asked.get("threshold"):  # set by hand
        return gate
    after_each = member_by_member(cascade)
    found = [(after_each(batch), labels) for batch, labels in images.some(len(images))]
    logits, labels = torch.cat([each for each, _ in found], 1), torch.cat([each for _, each in found])
    chosen = for_thresholds(gate.measured, len(labels))
    logits, labels = logits[:, chosen], labels[chosen]
    macs = [profile.macs for profile in member_profiles(network)]
    drop, level = asked.get("max_drop"), asked.get("confidence_level")
    if drop is not None and level is not None:
        guaranteed = guaranteed_gate(logits, labels, macs, [gate.measured], max_drop=drop, confidence_level=level)
        if all(limit is None for limit in guaranteed.thresholds):
            note("Notice: every member runs: in int8 no gate can be guaranteed on these images.")
        return Gate.by(gate.measured, guaranteed.thresholds)
    scores = MemberScores.from_logits(logits, labels, macs, gate.measured)
    if drop is not None:
        return Gate.by(gate.measured, search(scores, gate.measured, max_drop=drop)[0].thresholds)
    ratio, teacher = asked.get("target_macs"), (record.get("teacher") or {}).get("macs")
    most = ratio * teacher if ratio and teacher else result.get("expected_macs")  # polished: at the MACs of its gate
    if most is None:
        return gate
    if level is not None:
        return Gate.by(gate.measured, search_within(scores, gate.measured, most, level)[0].thresholds)
    return Gate.by(gate.measured, search(scores, gate.measured, max_macs=most)[0].thresholds)
