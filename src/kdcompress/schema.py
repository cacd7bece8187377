"""Validation of JSON from outside (run folders, pipes), once, where it enters; inside, its types are trusted.

A schema names the keys that are read later, with bounds of their values (our choice). All other keys pass unchecked:
model folders of other tools have many.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, NoReturn, TypedDict, TypeVar

import msgspec
from msgspec import Meta

T = TypeVar("T")

MAX_BYTES = 64 * 2**20  # of a file: the names of a million classes are 20 MB
MAX_DEPTH = 64
MAX_CLASSES = 1_000_000
MAX_SIDE, MAX_CHANNELS = 2**20, 2**16  # of an input: also of a sound of a minute, or of a spectrum
MIN_STD, MAX_CROP = 1e-6, 10
RGB = 3

WITHOUT_NUL = r"^[^\0]*\Z"
Text = Annotated[str, Meta(max_length=100_000)]
Name = Annotated[str, Meta(min_length=1, max_length=1000)]
Place = Annotated[str, Meta(max_length=4096, pattern=WITHOUT_NUL)]  # of a file or folder; a path has no NUL
Count = Annotated[int, Meta(ge=0, le=2**53)]
Share = Annotated[float, Meta(ge=0, le=1)]
Classes = Annotated[int, Meta(ge=0, le=MAX_CLASSES)]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE)]
PerChannel = Meta(min_length=1, max_length=MAX_CHANNELS)


class Pretrained(TypedDict, total=False):
    """timm's ``pretrained_cfg``."""

    num_classes: Classes | None
    input_size: Annotated[tuple[Side, ...], Meta(min_length=3, max_length=3)] | None
    mean: Annotated[tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...], PerChannel] | None
    std: Annotated[tuple[Annotated[float, Meta(ge=MIN_STD, le=1e6)], ...], PerChannel] | None
    crop_pct: Annotated[float, Meta(gt=0, le=MAX_CROP)] | None
    crop_mode: Name | None
    interpolation: Name | None
    label_names: list[Text] | dict[Text, Text] | None


class Config(TypedDict, total=False):
    """``config.json`` of a timm model folder."""

    architecture: Name | None
    num_classes: Classes | None
    model_args: dict[str, Any] | None
    pretrained_cfg: Pretrained | None
    label_names: list[Text] | dict[Text, Text] | None


class ShardIndex(TypedDict):
    """``model.safetensors.index.json``: which file each tensor is in."""

    weight_map: dict[Text, Name]


class RunOptions(TypedDict, total=False):
    """The options of a run that later commands read."""

    run: Place | None
    teacher: Place | None
    data: Place | None
    data_dir: Place | None
    holdout: Annotated[float, Meta(gt=0, lt=1)] | None
    skip_bad_images: bool | None


class Reference(TypedDict):
    """How to find a network again."""

    reference: Place


class Teacher(Reference, total=False):
    """The teacher of a run."""

    arch: Text | None
    fingerprint: Name | None
    macs: Annotated[int, Meta(ge=1, le=2**62)]
    params: Count
    input_size: Annotated[list[Side], Meta(min_length=3, max_length=3)] | None


class Start(Reference, total=False):
    """Weights that a training starts from."""

    arch: Text | None
    fingerprint: Name | None
    file: Name | None


class RunResult(TypedDict, total=False):
    """What the next command takes from the result of a run; all of it is checked where it is printed again."""

    run: Place | None
    seconds: float | None
    top1: float | None
    teacher_top1: float | None
    exit_rates: list[Share] | None
    energies: list[float | None] | None
    promise: dict[str, Any] | None


class Numerics(TypedDict, total=False):
    """Precision and memory layout of a training phase."""

    precision: Name
    channels_last: bool
    fp32_layers: list[Name]
    find_unused: bool


class Recipe(TypedDict, total=False):
    """How a training phase was trained, with the defaults of its time filled in."""

    opt: Name
    lr: float
    batch_size: int
    views: int
    alpha: float
    temperature: float
    label_smoothing: float


class GateTarget(TypedDict, total=False):
    """What a gate was asked for."""

    max_drop: float
    target_macs: float
    target_ms: float
    threshold: list[float]
    confidence_level: Share


class Record(TypedDict, total=False):
    """``run.json``."""

    command: Name
    method: Name | None
    status: Name
    options: RunOptions
    data_fingerprint: Name | None
    parent_fingerprint: Name | None
    teacher: Teacher | None
    start: Start | None
    parents: list[Place]
    seed: int
    calibration_seen: bool
    threads: Annotated[int, Meta(ge=1, le=2**16)]
    precision: Name
    digest: Name
    digests: dict[Name, Name | list[Name]]
    numerics: dict[str, Numerics]
    recipe: dict[str, Recipe]
    gate_target: GateTarget
    calibrated: dict[Name, Any]
    trained_on: dict[Name, Any]
    result: RunResult
    training: RunResult | None


class Piped(TypedDict, total=False):
    """A result on standard input."""

    run: Place | None
    file: Place | None


class Malformed(ValueError):
    """Invalid input from outside; the message says in one line what is wrong."""


def read_config(content: bytes) -> dict[str, Any]:
    """``config.json``.

    Raises:
        Malformed: As :func:`read_object`, or numbers of classes or channels that contradict each other.
    """
    config = read_object(content, Config)
    pretrained = config.get("pretrained_cfg") or {}
    classes = config.get("num_classes") or pretrained.get("num_classes")
    names = config.get("label_names") or pretrained.get("label_names")
    if classes and isinstance(names, list) and names and len(names) != classes:
        raise Malformed(f"label_names: {len(names)} names for {classes} classes")
    channels = (pretrained.get("input_size") or (RGB,))[0]
    for key in ("mean", "std"):
        values = pretrained.get(key)
        if values and len(values) not in (1, RGB, channels):
            raise Malformed(f"pretrained_cfg.{key}: {len(values)} numbers for {channels} channels")
    return config


def read_record(content: bytes) -> dict[str, Any]:
    """``run.json``.

    Raises:
        Malformed: As :func:`read_object`.
    """
    return read_object(content, Record)


def read_object(content: bytes, kind: Any) -> dict[str, Any]:
    """A JSON object with all its keys; those that ``kind`` names are checked for their types and bounds.

    Args:
        content: UTF-8.
        kind: A :class:`~typing.TypedDict`.

    Raises:
        Malformed: It is not JSON (which has no NaN and no infinity), not an object, nested too deeply, or has a value
            that does not fit.
    """
    try:
        parsed = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise Malformed("it is not UTF-8 text") from error
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise Malformed("it is not a JSON object")
    _check_values(parsed)
    check(parsed, kind)
    return parsed


def check(value: Any, kind: type[T]) -> T:
    """``value`` converted to ``kind``; keys that it does not name are left out.

    Raises:
        Malformed: A value does not fit.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # "Expected `str`, got `int` - at `$.label_names[0]`"
        what, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$").removeprefix(".")
        what = (
            what.replace(f"matching regex {WITHOUT_NUL!r}", "without NUL characters")
            .replace("`", "")
            .replace("Expected", "expected")
            .replace("Object missing", "missing")
        )
        raise Malformed(f"{key}: {what}" if key else what) from error


def finite(value: Any) -> Any:
    """The value with None in place of NaN and infinity, which JSON does not have, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


def is_finite(value: Any) -> bool:
    """Whether all numbers in it are finite, at any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(is_finite, value))


def _refuse(constant: str) -> NoReturn:
    raise Malformed(f"{constant} is not valid JSON")


def _check_values(parsed: dict[str, Any]) -> None:
    """Refuse deep nesting, and numbers that overflow (``1e999``)."""
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        inner = [part for each in level for part in (each.values() if isinstance(each, dict) else each)]
        if any(isinstance(part, float) and not math.isfinite(part) for part in inner):
            raise Malformed("a number in it is too large")
        level = [part for part in inner if isinstance(part, (dict, list))]
        if not level:
            return
    raise Malformed("it is nested too deeply")
