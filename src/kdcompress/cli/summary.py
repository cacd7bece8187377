"""What a person wants to know of a result first, in a dozen lines: accuracy, what it lost, cost, and where it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from typing import Any

from kdcompress.quantities import scaled

Row = tuple[str, str]


FORMS = {  # of what compress makes
    "single": "a student alone",
    "pair": "a gated pair of students",
    "handover": "a student that hands over to the teacher",
}


def rows(values: dict[str, Any]) -> list[Row]:
    """Label and value, of a network; empty for results of another kind.

    Args:
        values: Of the JSON.
    """
    if "macs" not in values:
        return []
    parts = (_accuracy, _cost, _speed, _made, _where)
    return [row for part in parts for row in part(values)]


def shares(parts: dict[str, int]) -> str:
    """``convolution 99.9 %, matrix product 0.1 %``: of their sum, without those that are 0."""
    whole = sum(parts.values())
    return ", ".join(f"{name.replace('_', ' ')} {100 * part / whole:.1f} %" for name, part in parts.items() if part)


def short_path(path: str) -> str:
    """Relative to the working folder where it is below it: as one would type it."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the working folder is gone, or on another drive
        return path
    return path if relative.startswith("..") else relative


def typed(text: str) -> str:
    """As an argument in a shell."""
    return shlex.quote(text)


def _accuracy(values: dict[str, Any]) -> Iterator[Row]:
    top1 = values.get("gated_top1", values.get("top1"))
    if top1 is None:
        return
    counted = f"{top1:.2f} %  ({values['n']:,} {values['split']} images)"
    yield f"top-1 ({values['split']})", f"{counted}, agreement with the teacher" if values.get("agreement") else counted
    if (lost := values.get("points_lost")) is not None:
        against = f"the teacher has {values['teacher_top1']:.2f} %"
        yield "points lost", f"{lost:.2f}  ({against})" if lost >= 0 else f"none: {-lost:.2f} gained  ({against})"
    if (full := values.get("full_top1")) is not None:
        yield "all members run", f"{full:.2f} %"
    if (former := values.get("former_top1")) is not None:
        yield "before polishing", f"{former:.2f} %"
    if values.get("calibration_seen"):
        yield "", "may be too high: started from weights that may know these images"


def _cost(values: dict[str, Any]) -> Iterator[Row]:
    macs, whole = values.get("expected_macs"), values["macs"]
    exact = f"{whole:,}" if values["command"] == "profile-flops" else scaled(whole)
    if macs is not None:
        yield "MACs per image", f"{scaled(macs)}{_share(values.get('expected_macs_ratio'))}, expected with the gate"
        yield "  all members run", f"{exact}{_share(values.get('macs_ratio'))}"
    else:
        yield "MACs per image", f"{exact}{_share(values.get('macs_ratio'))}"
    if parts := shares(values.get("macs_by_operator") or {}):
        yield "  by operator", parts
    params = f"{values['params']:,}" if values["command"] == "profile-flops" else scaled(values["params"])
    yield "parameters", f"{params}{_share(values.get('params_ratio'))}"
    if (size := values.get("bytes")) is not None:
        yield "size on disk", f"{size / 1e6:.3g} MB"
    if missed := values.get("unsupported_ops"):
        yield "not counted", ", ".join(f"{name} x{count}" for name, count in missed.items())


def _speed(values: dict[str, Any]) -> Iterator[Row]:
    if latency := values.get("latency_ms"):
        yield "latency", f"{latency['p50']:.3g} ms for one image (p95 {latency['p95']:.3g} ms)"
    if timing := values.get("timing"):
        batch = "an image" if timing["batch_size"] == 1 else f"a batch of {timing['batch_size']}"
        yield "time", f"{timing['mean_ms']:.3g} ms for {batch}, on average; asked for {timing['target_ms']:g} ms"
        yield "by", f"{timing['engine']} on {timing['hardware']}, {timing['threads']} threads"
    if "hardware" in values and (speed := values.get("images_per_second")) is not None:
        gain = f", {values['speedup']:.2f} times the full cascade's" if values.get("speedup") else ""
        yield "images per second", f"{speed:,.0f}{gain}"
        yield "on", f"{values['hardware']}, {values['precision']}"


def _made(values: dict[str, Any]) -> Iterator[Row]:
    if form := values.get("form"):
        yield (
            "won by",
            FORMS.get(form, form) + ("" if values.get("met") else ", over the budget"),
        )
    if rates := values.get("exit_rates"):
        yield "exit rates", ", ".join(f"{100 * rate:.1f} %" for rate in rates)
    if values.get("measure"):
        limits = ["none" if limit is None else f"{limit:.4g}" for limit in values.get("thresholds") or []]
        yield "gate", f"{values['measure']}, threshold{'s' * (len(limits) > 1)} {', '.join(limits)}"
    unsure = " (may not hold: weights may know these images)" if values.get("calibration_seen") else ""
    if promise := values.get("promise"):
        yield "guarantee", _guarantee(promise) + unsure
    if bound := values.get("cost_bound"):
        level = f"with confidence {bound['confidence_level']:g}"
        yield "on new images", f"at most {bound['macs_ratio']:.1%} of the teacher's MACs, {level}{unsure}"
    if values.get("stopped_by"):
        yield "stopped by", str(values["stopped_by"])
    if energies := values.get("energies"):
        yield "residual energy", " → ".join(f"{energy:.4g}" for energy in energies if energy is not None)
    if not values.get("members"):
        yield "architecture", values["architecture"]
    if size := values.get("input_size"):
        yield "input size", "x".join(map(str, size))


def _where(values: dict[str, Any]) -> Iterator[Row]:
    if values.get("teacher"):
        yield "teacher", short_path(values["teacher"])
    if values.get("data"):
        yield "data", short_path(values["data"])
    if values.get("run"):
        yield "run", short_path(values["run"])
    for name in ("exported", "report"):
        if values.get(name):
            yield name, short_path(values[name])
    if values["command"] == "report":
        yield "report", short_path(values["file"])


def _guarantee(promise: dict[str, Any]) -> str:
    if promise.get("p_value") is None:
        return "none: every member runs"
    level = f"with confidence {promise['confidence_level']:g} on new images"
    return f"at most {promise['max_drop']:g} points below all members run, {level}"


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f", {100 * ratio:.3g} % of the teacher's"
