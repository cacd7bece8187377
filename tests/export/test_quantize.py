"""int8 members, by themselves and in a cascade."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import torch
from cascades import SIZE, Pair, gate_at, run
from torch import nn

from kdcompress.export.compose import compose, serialized
from kdcompress.export.members import IMAGES, export_member
from kdcompress.export.onnx_network import member_by_member, new_session
from kdcompress.export.quantize import quantize_member
from kdcompress.export.verify import check_int8, compare


class Twice(nn.Module):
    """The mean of two classifiers, one of which is a convolution: as DeiT and BiT have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(SIZE[0], 8, 3, padding=1)
        self.linear, self.conv = nn.Linear(8, 50), nn.Conv2d(8, 50, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).relu().mean((2, 3), keepdim=True)
        return (self.linear(features.flatten(1)) + self.conv(features).flatten(1)) / 2


def test_logits_of_other_classifiers_are_no_bytes() -> None:
    """Of a thousand classes many would tie, and certainties be as coarse as 256 steps."""
    torch.manual_seed(0)
    network, batch = Twice().eval(), torch.randn(64, *SIZE)
    member = export_member(network, SIZE, 20, "a network")
    made = quantize_member(member, [batch.numpy()], "a network")
    session = new_session(made.SerializeToString(), 1)
    logits = session.run(None, {IMAGES: batch.numpy()})[0]
    assert len(np.unique(logits)) > 0.9 * logits.size
    with torch.no_grad():
        assert np.abs(logits - network(batch).numpy()).max() < 0.2


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
