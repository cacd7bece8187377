"""The command line that made a run, from the options in its record."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from kdcompress.data.prepared import HOLDOUT
from kdcompress.option_set import Options, typed_flags
from kdcompress.options import (
    AddResStudentOptions,
    CascadeOptions,
    CompressOptions,
    DistillOptions,
    GateCalibrateOptions,
    PolishOptions,
    TrainTeacherOptions,
)
from kdcompress.references import STDIN

MAKERS: dict[str, type[Options]] = {
    "train-teacher": TrainTeacherOptions,
    "distill": DistillOptions,
    "add-res-student": AddResStudentOptions,
    "cascade": CascadeOptions,
    "gate-calibrate": GateCalibrateOptions,
    "polish": PolishOptions,
    "compress": CompressOptions,
}
OF_THE_JOB = {
    "resume",
    "dist_timeout",
    "workers",
    "cache_dir",
    "data_dir",
    "plot",
    "log",
    "tensorboard",
    "yes",
}  # say nothing of the result


def command_line(record: dict[str, Any]) -> str:
    """As one would type it, without options at their defaults; empty where the command is not known."""
    name = record.get("command")
    kind = MAKERS.get(name) if isinstance(name, str) else None
    if kind is None:
        return ""
    known, options = {field.name: field for field in dataclasses.fields(kind)}, record.get("options") or {}
    arguments: list[str] = []
    flags: list[str] = []
    for key, value in options.items():
        field = known.get(key)
        if field is None or key in OF_THE_JOB or _is_default(key, value, field.default):
            continue
        if field.metadata["argument"]:
            arguments += [_piped(str(each), record) for each in _several(value)]
        else:
            flags += typed_flags(key, value)
    return shlex.join(["kdcompress", str(name), *arguments, *flags])


def _is_default(key: str, value: Any, default: Any) -> bool:
    """Whether an option need not be typed; ``holdout`` is recorded even where nobody gave it."""
    own = tuple(value) if isinstance(value, list) else value
    return (own == default and own != STDIN) or (key == "holdout" and value == HOLDOUT)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _piped(text: str, record: dict[str, Any]) -> str:
    """``-`` as the run that standard input named."""
    if text != STDIN:
        return text
    parents, teacher = record.get("parents") or [], record.get("teacher") or {}
    return str(parents[0] if parents else teacher.get("reference", text))
