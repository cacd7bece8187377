"""MACs of single operations: handlers for those that fvcore misses, and what kind each one is."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from fvcore.nn.jit_handles import get_shape
from torch.utils._python_dispatch import TorchDispatchMode

# What fvcore calls with the inputs and outputs (torch._C.Value) of one traced operation.
Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def by_kind(operators: Mapping[str, float]) -> dict[str, int]:
    """MACs of convolutions, matrix products, normalization and the rest, which add up to the total.

    Args:
        operators: fvcore's MACs by operation, such as ``{'conv': 10, 'bmm': 2}``.
    """
    total = dict.fromkeys((*_TABLES, "other"), 0)
    for operation, macs in operators.items():
        total[_KINDS.get(operation, "other")] += int(macs)
    return total


def _product(left: int) -> Handle:
    """A matrix product with its left factor at input ``left``: a dot product for each output element."""
    return lambda inputs, outputs: math.prod(get_shape(outputs[0])) * get_shape(inputs[left])[-1]


def _sum_of_products(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """``addbmm``: products of the batches ``[B, N, K]`` and ``[B, K, M]``, added up."""
    return math.prod(get_shape(inputs[1])) * get_shape(outputs[0])[-1]


def _bilinear(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """Each weight ``[out, in1, in2]`` counts once for each row of the input ``[…, in1]``."""
    return math.prod(get_shape(inputs[0])[:-1]) * math.prod(get_shape(inputs[2]))


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Q Kᵀ and P V, for q ``[…, heads, L, E]``, k ``[…, S, E]``, v ``[…, S, Ev]``, output ``[…, heads, L, Ev]``.

    The output's heads count: in grouped-query attention several of them share one head of k and v.
    """
    *rows, _ = get_shape(outputs[0])
    keys, dim = get_shape(inputs[1])[-2:]
    return math.prod(rows) * keys * (dim + get_shape(inputs[2])[-1])


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A forward convolution with its weight ``[out, in / groups, …]`` second, such as padding='same' makes."""
    return math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[1:])


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Factors of A·K and K·B elements make A·B outputs at K MACs each: the root of their product is A·K·B."""
    shapes = [get_shape(value) for value in (*inputs[:2], outputs[0])]
    return math.isqrt(math.prod(math.prod(shape) for shape in shapes))


class _Products(TorchDispatchMode):
    """Counts the matrix products that torch makes of a larger operation."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.bmm, torch.ops.aten.mm, torch.ops.aten.mv, torch.ops.aten.dot):
            self.macs += output.numel() * args[0].shape[-1]
        return output


def _run_on_shapes(function: Callable[[list[torch.Tensor]], Any], factors: Any) -> int:
    """MACs of ``function(factors)``, in the order that torch takes: it is run on shapes without values."""
    tensors = [torch.empty(get_shape(value), device="meta") for value in factors.node().inputs()]
    with _Products() as counter:
        function(tensors)
    return counter.macs


def _einsum(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """Contracted from left to right, or by the path that opt_einsum, where it is installed, put into the trace."""
    equation, path = inputs[0].toIValue(), inputs[2].node()
    order = [step.toIValue() for step in path.inputs()] if path.kind() == "prim::ListConstruct" else None
    return _run_on_shapes(lambda factors: torch.ops.aten.einsum(equation, factors, path=order), inputs[1])


def _chain(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """A product of several matrices in the cheapest order."""
    return _run_on_shapes(torch.linalg.multi_dot, inputs[0])


def _recurrent(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """LSTM, GRU, RNN over ``[B, T, F]``, ``[T, B, F]`` or packed: each weight matrix is applied once a step."""
    *steps, _features = get_shape(inputs[0])
    # the last list; packed sequences and LSTMs have other inputs before it
    weights = [value for value in inputs if value.node().kind() == "prim::ListConstruct"][-1]
    shapes = [get_shape(value) for value in weights.node().inputs()]
    return math.prod(steps) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _normalization(weight: int) -> Handle:
    """fvcore's rule for layer norm, for any number of dimensions: 5 an element, 4 without the weight."""
    return lambda inputs, _: math.prod(get_shape(inputs[0])) * (4 if get_shape(inputs[weight]) is None else 5)


# Handlers; None where fvcore's own is right.
CONVOLUTIONS: dict[str, Handle | None] = {
    "aten::conv": None,  # what fvcore calls aten::_convolution
    "aten::_convolution_mode": _convolution,
    "torchvision::deform_conv2d": _convolution,
}

PRODUCTS: dict[str, Handle | None] = {
    "aten::addmm": None,
    "aten::addmm_": _product(1),
    "aten::mm": None,
    "aten::bmm": None,
    # fvcore's own handlers count a product too low when the left factor is broadcast, and refuse vectors.
    "aten::linear": _product(0),
    "aten::matmul": _product(0),
    "aten::linalg_matmul": _product(0),
    "aten::mv": _product(0),
    "aten::dot": _product(0),
    "aten::vdot": _product(0),
    "aten::inner": _product(0),
    "aten::baddbmm": _product(1),
    "aten::baddbmm_": _product(1),
    "aten::addbmm": _sum_of_products,
    "aten::addbmm_": _sum_of_products,
    "aten::addmv": _product(1),
    "aten::addmv_": _product(1),
    "aten::bilinear": _bilinear,
    "aten::tensordot": _tensordot,
    "aten::einsum": _einsum,
    "aten::chain_matmul": _chain,
    "aten::linalg_multi_dot": _chain,
    "aten::scaled_dot_product_attention": _attention,
    "aten::lstm": _recurrent,
    "aten::gru": _recurrent,
    "aten::rnn_tanh": _recurrent,
    "aten::rnn_relu": _recurrent,
}

NORMALIZATIONS: dict[str, Handle | None] = {
    "aten::batch_norm": None,
    "aten::instance_norm": _normalization(1),
    "aten::group_norm": _normalization(2),
    "aten::layer_norm": _normalization(2),
    "aten::rms_norm": _normalization(2),
}

_TABLES = {"convolution": CONVOLUTIONS, "matrix_product": PRODUCTS, "normalization": NORMALIZATIONS}
_KINDS = {name.partition("::")[2]: kind for kind, table in _TABLES.items() for name in table}

HANDLES: dict[str, Handle] = {
    name: handle for table in _TABLES.values() for name, handle in table.items() if handle is not None
}
