"""Plots accuracy over MACs of a gated network. Needs matplotlib (extra: plot)."""

from __future__ import annotations

import itertools
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError, usage_error
from kdcompress.results import EvalResult, GateResult

FORMATS = (".png", ".svg", ".pdf")
MILLION = 1e6
# the same thing has the same colour in every plot
CURVE, MEMBERS, GATED, TEACHER = "tab:blue", "tab:orange", "tab:red", "0.35"


def check_plot(file: str) -> None:
    """Check ``--plot`` before any work that would be lost.

    Raises:
        UserError: The format is unknown, the folder does not exist, or matplotlib is not installed.
    """
    path = Path(file)
    if path.suffix.lower() not in FORMATS:
        raise usage_error(f"--plot {shlex.quote(file)} has an unknown format.", f"Choose from: {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise usage_error(f"There is no folder {path.absolute().parent} for --plot.", "Create it, or choose another.")
    if path.is_dir():
        raise usage_error(f"--plot {shlex.quote(file)} is a folder.", "Give the name of a file.")
    if find_spec("matplotlib") is None:
        raise UserError("--plot needs matplotlib.", "pip install 'kdcompress[plot]'", exit_code=2)


def plot(result: GateResult | EvalResult, file: str) -> None:
    """Plot top-1 over MACs per image: each exit, the gate, the teacher, and for a calibration other thresholds.

    The teacher is a line at its top-1, if that is known: its MACs are often too far to the right.

    Args:
        file: Path of the image; its ending decides the format.

    Raises:
        UserError: It cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second, and is an extra

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    if isinstance(result, GateResult):
        if result.curve:
            axes.plot(*_columns(result.curve), ".-", color=CURVE, markersize=4, label="other thresholds")
        exits = [(result.macs, result.full_top1)]
    else:
        exits = list(zip(_exit_macs(result), result.stage_top1 or [result.top1], strict=True))
    full = "all members" if result.members else result.architecture
    label = full if len(exits) == 1 else "first member, first two, …"
    axes.plot(*_scaled(exits), "s", color=MEMBERS, label=label)
    if result.gated_top1 is not None:
        gated = [(result.expected_macs, result.gated_top1)]
        axes.plot(*_scaled(gated), "*", color=GATED, markersize=14, label="gated")
    if result.teacher_top1 is not None:
        axes.axhline(result.teacher_top1, color=TEACHER, linestyle="--", label=f"teacher, {result.teacher_top1:.2f} %")
    axes.set(xlabel="million MACs per image", ylabel=f"top-1 on the {result.split} split, %", title=result.data)
    if result.teacher_macs:
        one_percent = result.teacher_macs / MILLION / 100
        functions: Any = (lambda macs: macs / one_percent, lambda percent: percent * one_percent)
        share = axes.secondary_xaxis("top", functions=functions)
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


def _exit_macs(result: EvalResult) -> list[int]:
    """Cumulative MACs at each exit, one for each accuracy."""
    if result.stage_top1 is None:
        return [result.macs]
    if result.student_macs is not None:
        return [result.student_macs, result.macs]
    return list(itertools.accumulate(member["macs"] for member in result.members or []))
