"""Accuracy against MACs, as a picture: what a gate gives for what it costs. Needs matplotlib (extra: plot)."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError, usage_error
from kdcompress.results import EvalResult, GateResult

FORMATS = (".png", ".svg", ".pdf")
MILLION = 1e6


def check_plot(file: str) -> None:
    """Before the work that would be lost.

    Raises:
        UserError: Another format, no such folder, or no matplotlib.
    """
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise usage_error(f"--plot {file} is of no format that is known.", f"Choose from: {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise usage_error(f"There is no folder {path.absolute().parent} for --plot.", "Make it, or choose another.")
    if path.is_dir():
        raise usage_error(f"--plot {file} is a folder.", "Choose the name of a file.")
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib.", "pip install 'kdcompress[plot]'", exit_code=2)


def plot(result: GateResult | EvalResult, file: str) -> None:
    """Draw top-1 over the MACs of an image: each stage, the gate, and for a calibration what other thresholds give.

    Args:
        file: Where to; its ending says the format.

    Raises:
        UserError: It cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second, and is an extra

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    if isinstance(result, GateResult):
        if result.curve:
            axes.plot(*_columns(result.curve), ".-", markersize=4, label="other thresholds")
        stages = [(result.macs, result.full_top1)]
    else:
        stages = list(zip(_stage_macs(result), result.stage_top1 or [result.top1], strict=True))
    together = "all members" if result.members else result.architecture
    axes.plot(*_scaled(stages), "s", label=together if len(stages) == 1 else "first member, first two, …")
    if result.gated_top1 is not None:
        axes.plot(*_scaled([(result.expected_macs, result.gated_top1)]), "*", markersize=14, label="gated")
    axes.set(xlabel="MACs of an image, millions", ylabel=f"top-1 on the {result.split} split, %", title=result.data)
    if result.teacher_macs:
        whole = result.teacher_macs / MILLION / 100
        ways: Any = (lambda macs: macs / whole, lambda percent: percent * whole)
        share = axes.secondary_xaxis("top", functions=ways)
        share.set_xlabel("% of the teacher's MACs")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise UserError(f"The plot {file} cannot be written: {error.strerror}.", "Choose another --plot.") from error


def _columns(curve: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return _scaled([(point["expected_macs"], point["top1"]) for point in curve])


def _scaled(points: list[tuple[Any, Any]]) -> tuple[list[float], list[float]]:
    return [macs / MILLION for macs, _ in points], [top1 for _, top1 in points]


def _stage_macs(result: EvalResult) -> list[int]:
    """MACs after each stage, as many as there are accuracies."""
    if result.stage_top1 is None:
        return [result.macs]
    if result.student_macs is not None:
        return [result.student_macs, result.macs]
    return list(itertools.accumulate(member["macs"] for member in result.members or []))
