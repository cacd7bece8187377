"""int8 members, by themselves and in a cascade."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import torch
from cascades import SIZE, Pair, gate_at, run

from kdcompress.export.compose import compose, serialized
from kdcompress.export.onnx_network import member_by_member
from kdcompress.export.quantize import quantize_member
from kdcompress.export.verify import check_int8, compare


def test_a_quantized_cascade_is_its_quantized_members(three: Pair) -> None:
    """What is inside the branches stays in float32, or another gate is run than the one that was chosen."""
    batch = torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(1))
    members = [quantize_member(each, [batch.numpy()], "a member") for each in three.cascade.members]
    gate = gate_at(three.model, batch, "confidence")
    made = dataclasses.replace(three.cascade, members=members, gate=gate)
    content = serialized(compose(made, SIZE))
    logits, exits = run(content, batch)
    after_each = member_by_member(made)
    found = compare(
        lambda images: tuple(map(torch.from_numpy, run(content, images))),  # type: ignore[arg-type,return-value]
        after_each,
        gate,
        [(batch, torch.zeros(64, dtype=torch.long))],
    )
    check_int8(found)
    assert set(exits) == {0, 1, 2}
    with torch.no_grad():
        before = three.model.forward_stages(batch).numpy()
    apart = np.abs(after_each(batch).numpy() - before).max() / np.abs(before).max()
    assert 0 < apart < 0.25
    assert len(content) < 0.5 * len(serialized(compose(dataclasses.replace(three.cascade, gate=gate), SIZE)))
    assert len(np.unique(logits)) == logits.size, "logits in 8 bits tie"
    weights = {tuple(each.dims): each.data_type for member in members for each in member.graph.initializer}
    convolutions = {kind for shape, kind in weights.items() if len(shape) == 4}
    assert convolutions == {onnx.TensorProto.INT8}
