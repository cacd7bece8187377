"""timm's evaluation transform as ONNX operators: uint8 images of any size to the normalised input of a network.

``Resize`` on uint8 with ``antialias`` and ``exclude_outside`` is Pillow's own algorithm, rounding included; pixels
differ by two levels at most, and few differ at all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from kdcompress.data.preprocess import CENTER, Preprocess
from kdcompress.errors import UserError, usage_error
from kdcompress.export.scope import Scope

if TYPE_CHECKING:
    import onnx

MODES = {"bilinear": "linear", "bicubic": "cubic"}  # timm's name, and that of Resize
PILLOW_CUBIC = -0.5
LEVELS = 255
INPUT = "pixels"
MOST_LEVELS, MOST_SHARE = 2.01, 0.1  # how far pixels may differ, and how many of them


def check_preprocess(prep: Preprocess) -> None:
    """Refuse what the graph could not do as the run does.

    Raises:
        UserError: Another interpolation, an input that is not square, or a crop larger than the image.
    """
    remedy = "Leave out --preprocess, and prepare the images outside."
    if prep.interpolation not in MODES:
        problem = f"--preprocess resizes by {' and '.join(MODES)}, and the network's images are resized by"
        raise usage_error(f"{problem} {prep.interpolation}.", remedy)
    height, width = prep.size
    if height != width or prep.crop_pct > 1 or prep.crop_mode != CENTER:
        taken = f"{height}x{width}, with crop_pct {prep.crop_pct:g} and crop_mode {prep.crop_mode}"
        raise usage_error(f"--preprocess makes square images by a centre crop; the network takes {taken}.", remedy)


def preprocessed(scope: Scope, pixels: str, prep: Preprocess) -> str:
    """Add the transform.

    Args:
        pixels: Name of uint8 [B, H, W, C], all of one size.

    Returns:
        Name of float32 [B, C, h, w].
    """
    side, channels = prep.size[0], prep.channels
    planes = scope.node("Transpose", pixels, perm=[0, 3, 1, 2])
    shape = scope.node("Shape", planes, start=2, end=4)
    resized = scope.node("Concat", scope.node("Shape", planes, start=0, end=2), _target(scope, shape, prep), axis=0)
    planes = scope.node(
        "Resize",
        planes,
        "",
        "",
        resized,
        mode=MODES[prep.interpolation],
        antialias=1,
        exclude_outside=1,
        cubic_coeff_a=PILLOW_CUBIC,
        coordinate_transformation_mode="half_pixel",
    )
    start = _crop_start(scope, scope.node("Shape", planes, start=2, end=4), side)
    end = scope.node("Add", start, scope.ints([side]))
    planes = scope.node("Slice", planes, start, end, scope.ints([2, 3]))
    planes = scope.node("Reshape", planes, scope.ints([-1, channels, side, side]))  # says the size that it now has
    mean, std = (
        scope.constant(np.array(values, np.float32).reshape(-1, 1, 1) * LEVELS) for values in (prep.mean, prep.std)
    )
    return scope.node("Div", scope.node("Sub", scope.node("Cast", planes, to=1), mean), std)


def _target(scope: Scope, shape: str, prep: Preprocess) -> str:
    """(H, W) whose shorter side is what the crop is cut from: torchvision's ``Resize`` of one number."""
    short = scope.ints([math.floor(prep.size[0] / prep.crop_pct)])
    least = scope.node("ReduceMin", shape, scope.ints([0]), keepdims=1)
    return scope.node("Div", scope.node("Mul", shape, short), least)


def _crop_start(scope: Scope, shape: str, side: int) -> str:
    """Top and left of torchvision's ``CenterCrop``, which rounds halves to even."""
    spare = scope.node("Cast", scope.node("Sub", shape, scope.ints([side])), to=1)
    return scope.node("Cast", scope.node("Round", scope.node("Div", spare, scope.floats(2))), to=7)


def transform_model(prep: Preprocess, opset: int) -> onnx.ModelProto:
    """The transform alone: ``pixels`` uint8 [batch, height, width, C] to float32 [batch, C, h, w]."""
    from onnx import TensorProto, helper

    scope = Scope("")
    output = preprocessed(scope, INPUT, prep)
    shape: list[str | int | None] = ["batch", "height", "width", prep.channels]
    graph = scope.graph(
        "transform",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", prep.channels, *prep.size])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check_pixels(found: np.ndarray, expected: np.ndarray, prep: Preprocess) -> None:
    """Refuse a transform that is not the run's own.

    Args:
        found, expected: float32 [B, C, h, w], by the graph and by the run.

    Raises:
        UserError: A pixel differs by more than two levels of 255, or more than 10 % of them do.
    """
    levels = np.abs(found - expected) * LEVELS * np.array(prep.std, np.float32).reshape(-1, 1, 1)
    share = float((levels > 0.01).mean()) if levels.size else 0.0
    if levels.max(initial=0) > MOST_LEVELS or share > MOST_SHARE:
        raise UserError(
            f"The preprocessing in the graph is not the run's: pixels differ by up to {levels.max():.3g} levels of "
            f"{LEVELS}, {100 * share:.3g} % of them.",
            "Leave out --preprocess, and prepare the images outside; and please report it.",
        )
