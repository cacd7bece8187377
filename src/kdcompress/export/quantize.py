"""Members in int8: static, with ranges measured on calibration images, before they are joined.

ONNX Runtime's quantizer does not enter the branches of an ``If``, so each member is quantized by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdcompress.errors import UserError, first_line
from kdcompress.export.members import IMAGES, silent, stripped

if TYPE_CHECKING:
    import onnx

CLASSIFIERS = ["Gemm"]  # logits in 8 bits tie, and the certainties that a gate compares would be as coarse
LAYERS = {"Conv", "MatMul"}
POOLING = {"ReduceMean", "GlobalAveragePool", "AveragePool"}
AFTER = POOLING | {"Add", "Mul", "Div", "Sub", "Flatten", "Reshape", "Squeeze", "Identity", "Concat", "Relu"}


def quantize_member(model: onnx.ModelProto, batches: Iterable[np.ndarray], name: str) -> onnx.ModelProto:
    """A copy whose weights (int8, by channel) and activations (uint8) are quantized; images and logits stay float32.

    Weights take seven bits of the eight: without VNNI instructions, x86 processors add products of eight bits in
    sixteen, which overflow.

    Args:
        batches: Calibration images, float32 [B, C, H, W] normalised.
        name: What an error calls it.

    Raises:
        UserError: ONNX Runtime cannot quantize it.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({IMAGES: images} for images in self.rest), None)

    with tempfile.TemporaryDirectory() as folder, silent():
        import onnx

        model = _named(model)
        given, file = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(given))
        try:
            quantize_static(
                str(given),
                str(file),
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                nodes_to_exclude=_head(model.graph),
                extra_options={"OpTypesToExcludeOutputQuantization": CLASSIFIERS},
            )
        except Exception as error:  # of a library that promises none
            raise UserError(
                f"{name} cannot be quantized: {first_line(error)}", "Leave out --precision int8."
            ) from error
        return stripped(onnx.load(str(file)))


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes all have a name, by which they can be left out."""
    copy = type(model)()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"node_{number}"
    return copy


def _head(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes between the last layers and the logits, and of last layers that are no ``Gemm``.

    Logits may come from a 1x1 convolution, or be the mean of two classifiers; what is after these would be in 8 bits.
    """
    makers = {output: node for node in graph.node for output in node.output}
    found: list[str] = []
    waiting = [output.name for output in graph.output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in found or node.op_type in CLASSIFIERS:
            continue
        if node.op_type in LAYERS | AFTER:
            found.append(node.name)
        if node.op_type in AFTER:
            waiting += node.input
    return found
