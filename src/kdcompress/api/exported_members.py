"""A network's members in ONNX, ready to be composed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kdcompress.export.compose import Cascade
from kdcompress.export.members import export_member
from kdcompress.models.fold import fold_batchnorm
from kdcompress.models.loading import Network
from kdcompress.models.staged import Staged

if TYPE_CHECKING:
    import onnx


OPSET = 20  # where the user does not choose


def exported(network: Network, opset: int, *, full: bool, note: Callable[[str], None]) -> Cascade:
    """Each member in ONNX, and what joins them.

    Args:
        full: Without the gate.
        note: Receives what is exported.

    Raises:
        UserError: A member cannot be exported.
    """
    model = fold_batchnorm(network.model.eval())
    staged = model if isinstance(model, Staged) else None
    stages = staged.stages() if staged is not None else [model]
    members: list[onnx.ModelProto] = []
    for number, stage in enumerate(stages, start=1):
        note(f"Exporting member {number} of {len(stages)} of {network.reference}.")
        name = network.reference if staged is None else f"member {number} of {network.reference}"
        members.append(export_member(stage, network.input_size, opset, name))
    weights = [staged.sum_weight(number) if staged is not None else 1.0 for number in range(len(stages))]
    gate = staged.gate if staged is not None and not full else None
    return Cascade(members, network.num_classes, weights, gate)
