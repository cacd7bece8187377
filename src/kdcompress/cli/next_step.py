"""The command that one would run after a result, ready to be copied."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kdcompress.cli.summary import short_path, typed

SMALL_SIDE = 64  # pixels; larger images need another family of students
FEW_MACS = 4e9  # of a teacher at 224 x 224: it costs too little for a ResNet-18 to be much cheaper


def next_step(values: dict[str, Any], commands: Collection[str] = ()) -> str | None:
    """None where nothing follows by itself.

    Args:
        values: Of the JSON.
        commands: Names of those that exist.
    """
    command, run = values["command"], values.get("run")
    if command == "data":
        return f"kdcompress train-teacher --data {typed(short_path(values['data']))} --model {_teacher(values)}"
    if run is None or command in ("verify", "cache"):
        return None
    path, members = typed(short_path(run)), values.get("members") or []
    if command == "train-teacher":
        return f"kdcompress distill {path} --method reskd --student {_student(values)}"
    if command in ("distill", "add-res-student", "cascade"):
        if len(members) == 1:
            return f"kdcompress add-res-student {path} --arch {typed(members[0]['architecture'])}"
        return f"kdcompress gate-calibrate {path} --max-drop 0.5" if members else f"kdcompress eval {path}"
    if command in ("gate-calibrate", "polish", "profile-flops"):
        return f"kdcompress eval {path}"
    return _after_eval(values, path, len(members), commands) if command == "eval" else None


def _after_eval(values: dict[str, Any], path: str, members: int, commands: Collection[str]) -> str | None:
    if values.get("gated_top1") is not None:
        return f"kdcompress {'export' if 'export' in commands else 'polish'} {path}"
    if members > 1:
        return f"kdcompress gate-calibrate {path} --max-drop 0.5"
    if members == 1:
        return f"kdcompress add-res-student {path} --arch {typed(values['members'][0]['architecture'])}"
    if values.get("teacher") is None:
        return f"kdcompress distill {path} --method reskd --student {_student(values)}"
    return f"kdcompress export {path}" if "export" in commands else None


def _teacher(values: dict[str, Any]) -> str:
    return "resnet32_cifar" if max(values["input_size"][1:]) <= SMALL_SIDE else "resnet50 --pretrained"


def _student(values: dict[str, Any]) -> str:
    """A student that is clearly cheaper, of a family that suits the size of the images."""
    _, height, width = values["input_size"]
    if max(height, width) <= SMALL_SIDE:
        return _half_as_wide(values["architecture"]) or "resnet8_cifar"
    return "resnet18" if values["macs"] * 224 * 224 / (height * width) > FEW_MACS else "mobilenetv3_small_100"


def _half_as_wide(architecture: str) -> str:
    """A ResNet-8 of half the width of a teacher that is one itself; empty for other teachers."""
    name, *args = architecture.split(",")
    if name != "resnet8_cifar":
        return ""
    width = next((float(arg.removeprefix("width=")) for arg in args if arg.startswith("width=")), 1.0)
    return f"{name},width={width / 2:g}"
