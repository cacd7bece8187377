"""What an exported file says about itself: JSON under one key of its metadata."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from kdcompress import schema
from kdcompress.errors import UserError
from kdcompress.gating import Gate

KEY = "kdcompress"


class Cost(TypedDict):
    """Of one stage."""

    architecture: schema.Text
    params: schema.Count
    macs: schema.Count


class Member(Cost, total=False):
    """One stage."""

    sum_weight: float


class Source(TypedDict, total=False):
    """Which data the network was trained on, where others find them, too; and how they were divided."""

    data: schema.Place
    holdout: Annotated[float, Meta(gt=0, lt=1)]


class HeadsOf(TypedDict):
    """``Heads.to_dict()``."""

    top: schema.Count
    mends: list[list[float]]
    spoils: list[list[float]]


class _Gate(TypedDict):
    measure: schema.Name
    thresholds: list[schema.Share | None]


class GateOf(_Gate, total=False):
    """``Gate.to_dict()``."""

    heads: HeadsOf


class _Later(TypedDict, total=False):
    """Keys that files of earlier versions lack."""

    crop_mode: schema.Name


class FileFacts(_Later):
    """The metadata.

    ``preprocess``: whether the graph itself resizes and normalises uint8 [batch, H, W, C]. ``macs`` are of one image
    with every member run, ``exit_rates`` those of the calibration images.
    """

    architecture: schema.Text
    num_classes: schema.Classes
    label_names: list[schema.Text] | None
    input_size: tuple[schema.Side, schema.Side, schema.Side]
    mean: Annotated[tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...], schema.PerChannel]
    std: Annotated[tuple[Annotated[float, Meta(ge=schema.MIN_STD, le=1e6)], ...], schema.PerChannel]
    interpolation: schema.Name
    crop_pct: Annotated[float, Meta(gt=0, le=schema.MAX_CROP)]
    precision: schema.Name
    preprocess: bool
    params: schema.Count
    macs: schema.Count
    teacher_macs: schema.Count | None
    members: list[Member] | None
    gate: GateOf | None
    exit_rates: list[schema.Share] | None
    source: Source
    run_fingerprint: schema.Name | None
    data_fingerprint: schema.Name | None
    versions: dict[str, str]


def write_facts(facts: FileFacts) -> str:
    """The facts as JSON, for the metadata of the file."""
    return json.dumps(facts, allow_nan=False)


def read_facts(text: str) -> FileFacts:
    """The metadata of a file.

    Raises:
        Malformed: No JSON, keys that are missing or out of bounds, or a gate that does not fit the members.
    """
    found: Any = schema.check(schema.read_object(text.encode("utf-8", "surrogatepass"), FileFacts), FileFacts)
    stages = len(found["members"] or [None])
    for key, count in (("gate", stages - 1), ("exit_rates", stages)):
        values = found[key]["thresholds"] if key == "gate" and found[key] else found[key]
        if values is not None and len(values) != count:
            raise schema.Malformed(f"{key}: {len(values)} numbers for {stages} members")
    if found["gate"]:
        try:
            Gate.from_dict(found["gate"])
        except UserError as error:
            raise schema.Malformed(f"gate: {error.problem}") from error
    for key in ("mean", "std"):
        if len(found[key]) != found["input_size"][0]:
            raise schema.Malformed(f"{key}: {len(found[key])} numbers for {found['input_size'][0]} channels")
    if found["label_names"] is not None and len(found["label_names"]) != found["num_classes"]:
        raise schema.Malformed(f"label_names: {len(found['label_names'])} of them for {found['num_classes']} classes")
    return found
