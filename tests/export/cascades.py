"""Small cascades, their members in ONNX, and ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from torch import Tensor

from kdcompress.export.compose import Cascade, compose, serialized
from kdcompress.export.members import export_member
from kdcompress.gating import MEASURES, Gate
from kdcompress.models.fold import fold_batchnorm
from kdcompress.models.staged import Staged

CLASSES, SIZE = 4, (3, 16, 16)
MEMBERS = [
    {"architecture": "resnet8_cifar", "model_args": {"width": 0.25}},
    {"architecture": "resnet8_cifar", "sum_weight": 0.5},
    {"architecture": "lenet5", "model_args": {"width": 0.5}},
]
PAIR = {"model": {"architecture": "resnet8_cifar"}, "widths": (0.5, 0.25), "features": 16}


@dataclass
class Pair:
    """A network in stages, and its members in ONNX."""

    model: Staged
    cascade: Cascade

    def gated(self, gate: Gate | None) -> Pair:
        self.model.gate = gate
        return replace(self, cascade=replace(self.cascade, gate=gate))

    def shortened(self, count: int) -> Pair:
        """Its first members."""
        entries = MEMBERS[:count]
        model: Any = timm.create_model("residual_cascade", members=entries, num_classes=CLASSES, in_chans=SIZE[0])
        model.load_state_dict(
            {key: value for key, value in self.model.state_dict().items() if key in model.state_dict()}
        )
        kept = replace(self.cascade, members=self.cascade.members[:count], sum_weights=self.cascade.sum_weights[:count])
        return Pair(model.eval(), kept)

    def content(self) -> bytes:
        return serialized(compose(self.cascade, SIZE))


def make(architecture: str, **arguments: Any) -> Pair:
    torch.manual_seed(0)
    model: Any = timm.create_model(architecture, num_classes=CLASSES, in_chans=SIZE[0], **arguments)
    heads = [each.fc for each in model.members] if architecture == "residual_cascade" else [model.fc]
    with torch.no_grad():  # spread the certainties, or all images would exit at one stage
        for head in heads:
            head.weight.mul_(4)
    folded: Any = fold_batchnorm(model.eval())
    members = [export_member(stage, SIZE, 20, architecture) for stage in folded.stages()]
    weights = [folded.sum_weight(stage) for stage in range(len(members))]
    return Pair(model, Cascade(members, CLASSES, weights))


@torch.no_grad()
def gate_at(model: Staged, images: Tensor, measure: str, *, nowhere: tuple[int, ...] = ()) -> Gate:
    """Thresholds that let half of the images exit, halfway between two of them; at some stages nobody exits."""
    logits = model.forward_stages(images)
    limits: list[float | None] = []
    for stage, sums in enumerate(logits[:-1]):
        values = MEASURES[measure].value(sums, *logits[:stage]).sort().values
        middle = float(values[len(values) // 2 - 1 : len(values) // 2 + 1].mean())
        limits.append(None if stage in nowhere else middle)
    return Gate(measure, tuple(limits))


def session(content: bytes, **settings: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(content: bytes, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    logits, exits = session(content).run(["logits", "exit_stage"], {"images": images.numpy()})
    return logits, exits
