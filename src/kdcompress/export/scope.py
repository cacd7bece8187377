"""A graph of ONNX, or a branch of one, while it is written."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompress.export.members import IMAGES, LOGITS

if TYPE_CHECKING:
    import onnx


class Scope:
    """Nodes and constants of one graph. A branch of an ``If`` has its own, and sees the names of those around it.

    Args:
        prefix: Of all names made here: they have to differ from those of the graphs around.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._numbers = itertools.count()

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operator with one output; the name of that."""
        from onnx import helper

        output = output or self._name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}:{kind}", **attributes))
        return output

    def node_with_outputs(self, kind: str, inputs: Sequence[str], count: int, **attributes: Any) -> Any:
        """Add an operator with several outputs; a tuple of their names."""
        from onnx import helper

        outputs = tuple(self._name(kind) for _ in range(count))
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}:{kind}", **attributes))
        return outputs

    def constant(self, value: np.ndarray) -> str:
        """Add a constant tensor, and return its name."""
        from onnx import numpy_helper

        name = self._name("constant")
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def ints(self, values: Sequence[int]) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def floats(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def filled(self, like: str, value: int) -> str:
        """int64 [B], all of that value, for ``like`` [B, …]."""
        from onnx import numpy_helper

        shape = self.node("Shape", like, start=0, end=1)
        return self.node("ConstantOfShape", shape, value=numpy_helper.from_array(np.array([value], np.int64)))

    def member(self, model: onnx.ModelProto, stage: int, images: str) -> str:
        """Add all of a network, its weights included; the name of its logits."""
        import onnx.compose

        prefix = f"stage{stage}/"
        graph = onnx.compose.add_prefix(model, prefix).graph
        self.node("Identity", images, output=f"{prefix}{IMAGES}")
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)
        return f"{prefix}{LOGITS}"

    def branch(self, name: str, outputs: Sequence[str]) -> onnx.GraphProto:
        """The branch of an ``If``."""
        from onnx import helper

        return self.graph(f"{self.prefix}{name}", [], [helper.make_empty_tensor_value_info(each) for each in outputs])

    def graph(self, name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> onnx.GraphProto:
        """A graph of the nodes and constants added so far."""
        from onnx import helper

        return helper.make_graph(self.nodes, name, inputs, outputs, initializer=self.initializers)

    def _name(self, kind: str) -> str:
        return f"{self.prefix}{kind.lower()}_{next(self._numbers)}"
