"""One network without a gate -> ONNX, by PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdcompress.errors import UserError

if TYPE_CHECKING:
    import onnx

IMAGES, LOGITS, BATCH = "images", "logits", "batch"
EXAMPLES = 2  # a batch of one would be taken for a constant


def export_member(model: nn.Module, input_size: Sequence[int], opset: int, name: str) -> onnx.ModelProto:
    """Export a network: ``images`` [batch, C, H, W] to ``logits`` [batch, K], any batch size.

    Args:
        model: In eval mode, float32, on the CPU, BatchNorm folded.
        input_size: (C, H, W).
        name: What an error calls it.

    Raises:
        UserError: The exporter cannot follow its forward.
    """
    images = torch.zeros(EXAMPLES, *input_size)
    try:
        with torch.no_grad(), silent():
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # what a forward may do that no exporter follows is open-ended
        cause = textwrap.shorten(f"{type(error).__name__}: {error.__cause__ or error}", 300, placeholder=" …")
        remedy = "Its forward must not branch on the values in a batch, or on its size; other --opset may help."
        raise UserError(f"PyTorch cannot export {name} to ONNX: {cause}", remedy) from error
    assert program is not None
    return stripped(program.model_proto)


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without local functions, inner shapes, and notes of the exporter, which name paths of the machine."""
    import onnx.inliner

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    del model.metadata_props[:]
    _strip(model.graph)
    return model


def _strip(graph: onnx.GraphProto) -> None:
    del graph.value_info[:], graph.metadata_props[:]
    graph.doc_string = ""
    for part in (*graph.input, *graph.output, *graph.initializer, *graph.node):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _strip(inner)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No warnings, log lines or standard output: exporter and quantizer report their steps there."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
