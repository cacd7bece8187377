"""The measures of :mod:`kdcompress.gating` as ONNX operators, in float32 and in the same order of operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from kdcompress.export.scope import Scope
from kdcompress.gating import LEAST_LOG, Heads, Measure


def passes(
    scope: Scope, measure: Measure, threshold: float, logits: str, earlier: Sequence[str], num_classes: int
) -> str:
    """Which images are sure enough: logits [B, K], and those after each stage before, to bool [B]. NaN never is."""
    if measure.heads is not None:
        value = _learned(scope, measure.heads, logits, earlier)
    else:
        value = VALUES[measure.name](scope, logits, earlier, num_classes)
    return scope.node("GreaterOrEqual" if measure.higher_is_surer else "LessOrEqual", value, scope.floats(threshold))


def _confidence(scope: Scope, logits: str, earlier: Sequence[str], num_classes: int) -> str:
    return scope.node("ReduceMax", _softmax(scope, logits), scope.ints([-1]), keepdims=0)


def _margin(scope: Scope, logits: str, earlier: Sequence[str], num_classes: int) -> str:
    top, _ = scope.node_with_outputs("TopK", [_softmax(scope, logits), scope.ints([2])], 2, axis=-1)
    first, second = (scope.node("Gather", top, scope.constant(np.array(at, np.int64)), axis=1) for at in (0, 1))
    return scope.node("Sub", first, second)


def _entropy(scope: Scope, logits: str, earlier: Sequence[str], num_classes: int) -> str:
    p, zero = _softmax(scope, logits), scope.floats(0)
    terms = scope.node("Mul", p, scope.node("Log", p))
    terms = scope.node("Where", scope.node("Equal", p, zero), zero, terms)  # 0 log 0 is 0, not NaN
    entropy = scope.node("ReduceSum", terms, scope.ints([-1]), keepdims=0)
    entropy = scope.node("Div", entropy, scope.floats(-math.log(num_classes)))
    one = scope.floats(1)  # not Clip, which may turn NaN into a number; below 0 it passes any threshold, as 0 does
    return scope.node("Where", scope.node("Greater", entropy, one), one, entropy)


def _energy(scope: Scope, logits: str, earlier: Sequence[str], num_classes: int) -> str:
    axis = scope.ints([-1])
    most = scope.node("ReduceMax", logits, axis, keepdims=1)
    powers = scope.node("Exp", scope.node("Sub", logits, most))
    log_sum = scope.node("Log", scope.node("ReduceSum", powers, axis, keepdims=0))
    energy = scope.node("Add", log_sum, scope.node("Squeeze", most, axis))
    half, one = scope.floats(0.5), scope.floats(1)
    share = scope.node("Div", scope.node("Mul", half, energy), scope.node("Add", one, scope.node("Abs", energy)))
    return scope.node("Add", half, share)


def _agreement(scope: Scope, logits: str, earlier: Sequence[str], num_classes: int) -> str:
    predicted = scope.node("ArgMax", logits, axis=-1, keepdims=1)
    given = [scope.node("GatherElements", _softmax(scope, each), predicted, axis=1) for each in (logits, *earlier)]
    return scope.node("ReduceMean", scope.node("Concat", *given, axis=1), scope.ints([-1]), keepdims=0)


def _learned(scope: Scope, heads: Heads, logits: str, earlier: Sequence[str]) -> str:
    least, parts = scope.floats(LEAST_LOG), list[str]()
    for each in (logits, *earlier):
        logs = scope.node("LogSoftmax", each, axis=-1)
        top, _ = scope.node_with_outputs("TopK", [logs, scope.ints([heads.top])], 2, axis=-1)
        parts.append(scope.node("Where", scope.node("Less", top, least), least, top))  # NaN stays NaN
        parts.append(scope.node("Unsqueeze", _energy(scope, each, (), 0), scope.ints([1])))
    seen, exit = scope.node("Concat", *parts, axis=1), len(earlier)
    half, value = scope.floats(0.5), scope.floats(0.5)
    for kind, row in (("Sub", heads.mends[exit]), ("Add", heads.spoils[exit])):
        weights = scope.constant(np.array(row[:-1], np.float32)[:, None])
        odds = scope.node("Squeeze", scope.node("MatMul", seen, weights), scope.ints([1]))
        likely = scope.node("Sigmoid", scope.node("Add", odds, scope.floats(row[-1])))
        value = scope.node(kind, value, scope.node("Mul", half, likely))
    return value


def _softmax(scope: Scope, logits: str) -> str:
    return scope.node("Softmax", logits, axis=-1)


VALUES: dict[str, Callable[[Scope, str, Sequence[str], int], str]] = {
    "confidence": _confidence,
    "margin": _margin,
    "entropy": _entropy,
    "energy": _energy,
    "agreement": _agreement,
}
