"""Members and a gate -> one ONNX model that runs a later member only on the images that go on.

After each stage with a threshold: the measure, its comparison with the threshold, and an ``If`` that is entered when
some image goes on. Inside it are the later member with its weights, the images gathered for it, and what follows. The
weights have to be there: from the outer graph, ONNX Runtime would not lay them out for its convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcompress.data.preprocess import Preprocess
from kdcompress.errors import UserError, first_line
from kdcompress.export.measures import passes
from kdcompress.export.members import BATCH, IMAGES, LOGITS
from kdcompress.export.metadata import KEY, FileFacts, write_facts
from kdcompress.export.preprocess import preprocessed
from kdcompress.export.scope import Scope
from kdcompress.gating import Gate

if TYPE_CHECKING:
    import onnx

EXIT_STAGE = "exit_stage"
PRODUCER = "kdcompress"
MOST_BYTES = 2**31


@dataclass(frozen=True)
class Cascade:
    """What :func:`compose` joins.

    Attributes:
        members: ``images`` [batch, C, H, W] to ``logits`` [batch, K] of each stage by itself.
        num_classes: K.
        sum_weights: What the logits so far weigh beside those of each member; the first is not looked at.
        gate: None to run every member on every image.
    """

    members: Sequence[onnx.ModelProto]
    num_classes: int
    sum_weights: Sequence[float]
    gate: Gate | None = None

    def threshold(self, stage: int) -> float | None:
        """Threshold of the exit after a stage; None where nothing stops."""
        return self.gate.thresholds[stage] if self.gate is not None else None


def compose(cascade: Cascade, input_size: Sequence[int], prep: Preprocess | None = None) -> onnx.ModelProto:
    """Join the members of a cascade.

    Args:
        input_size: (C, H, W).
        prep: Resize, crop and normalise in the graph, which then takes uint8 [batch, height, width, C] of any size.

    Returns:
        A model from ``images`` [batch, C, H, W] float32 to ``logits`` [batch, K] and ``exit_stage`` [batch] int64, the
        number of the last stage that each image ran.
    """
    from onnx import TensorProto, helper

    scope = Scope("")
    images, kind = IMAGES, TensorProto.FLOAT
    shape: list[str | int | None] = [BATCH, *input_size]
    if prep is not None:
        images, kind, shape = (
            preprocessed(scope, IMAGES, prep),
            TensorProto.UINT8,
            [BATCH, "height", "width", input_size[0]],
        )
    logits = scope.member(cascade.members[0], 0, images)
    logits, stage = _after(scope, 0, cascade, images, logits, [])
    scope.node("Identity", logits, output=LOGITS)
    scope.node("Identity", stage, output=EXIT_STAGE)
    graph = scope.graph(
        PRODUCER,
        [helper.make_tensor_value_info(IMAGES, kind, shape)],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [BATCH, cascade.num_classes]),
            helper.make_tensor_value_info(EXIT_STAGE, TensorProto.INT64, [BATCH]),
        ],
    )
    opsets = {each.domain: each.version for member in cascade.members for each in member.opset_import}
    return helper.make_model(
        graph,
        producer_name=PRODUCER,
        ir_version=max(member.ir_version for member in cascade.members),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
    )


def serialized(model: onnx.ModelProto, facts: FileFacts | None = None) -> bytes:
    """The content of a file, with metadata where they are given.

    Raises:
        UserError: It breaks a rule of ONNX, or is too large for one file.
    """
    import onnx

    if facts is not None:
        onnx.helper.set_model_props(model, {KEY: write_facts(facts)})
    if model.ByteSize() >= MOST_BYTES:
        remedy = "Try --precision int8, or members that are smaller."
        raise UserError(f"The file would have {model.ByteSize() / 2**30:.1f} GiB; ONNX takes 2 at most.", remedy)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of the checker and of shape inference, which share no base
        raise UserError(f"The export is not valid ONNX: {first_line(error)}", "Try another --opset.") from error
    return model.SerializeToString()


def _after(
    scope: Scope, stage: int, cascade: Cascade, images: str, logits: str, earlier: Sequence[str]
) -> tuple[str, str]:
    """What follows a stage, as :class:`~kdcompress.models.staged.Staged` does it.

    Args:
        images, logits: Names of those that ran the stage: [B, C, H, W] and [B, K].
        earlier: Names of their logits [B, K] after each stage before.

    Returns:
        Names of the final logits [B, K] and exits [B].
    """
    last = stage == len(cascade.members) - 1
    if last or (limit := cascade.threshold(stage)) is None:
        if last:
            return logits, scope.filled(logits, stage)
        after = _next(scope, stage + 1, cascade, images, logits)
        return _after(scope, stage + 1, cascade, images, after, [*earlier, logits])
    assert cascade.gate is not None
    looked_at = (*earlier, logits) if cascade.gate.looks_back else (logits,)
    stops = passes(scope, cascade.gate.measured, limit, logits, looked_at[:-1], cascade.num_classes)
    going = scope.node("Squeeze", scope.node("NonZero", scope.node("Not", stops)), scope.ints([0]))
    exits = scope.filled(logits, stage)

    inner = Scope(f"after{stage}/")
    some_images, *some_logits = (inner.node("Gather", each, going, axis=0) for each in (images, *looked_at))
    after = _next(inner, stage + 1, cascade, some_images, some_logits[-1])
    final, final_exits = _after(inner, stage + 1, cascade, some_images, after, some_logits)
    rows = inner.node("Unsqueeze", going, inner.ints([1]))
    outputs = [inner.node("ScatterND", whole, rows, part) for whole, part in ((logits, final), (exits, final_exits))]
    then = inner.branch("then", outputs)

    none = Scope(f"exit{stage}/")
    otherwise = none.branch("else", [none.node("Identity", logits), none.node("Identity", exits)])
    some = scope.node("Greater", scope.node("Size", going), scope.constant(np.array(0, np.int64)))
    return scope.node_with_outputs("If", [some], 2, then_branch=then, else_branch=otherwise)


def _next(scope: Scope, stage: int, cascade: Cascade, images: str, before: str) -> str:
    """Logits after a stage, from those before it: the member's own, and the weighted sum."""
    own, weight = scope.member(cascade.members[stage], stage, images), cascade.sum_weights[stage]
    if weight == 0:
        return own
    if weight != 1:
        before = scope.node("Mul", before, scope.floats(weight))
    return scope.node("Add", before, own)
