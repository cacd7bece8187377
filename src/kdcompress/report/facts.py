"""What a report says, as plain values. Accuracies are percentages, MACs are per image, milliseconds for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kdcompress.results import ReportResult

ROLES = {"subject": "this run", "teacher": "teacher", "single": "beside it"}
GATED, FULL, MEMBER, TEACHER, SINGLE, ORACLE = "gated", "full", "member", "teacher", "single", "oracle"


@dataclass(frozen=True)
class Mark:
    """A network, or some members of one, as a point of the plots.

    Attributes:
        kind: ``gated``, ``full``, ``member``, ``teacher``, ``single`` or ``oracle``: the same thing has the same colour
            in every figure.
        macs, ms: None where they are not known.
    """

    label: str
    kind: str
    top1: float
    macs: float | None = None
    ms: float | None = None


@dataclass(frozen=True)
class Member:
    """A stage of a network, and what it costs.

    Attributes:
        reached: Share of the images that ran it.
        modules: Name and MACs of its parts, the largest share last summed up as ``other``.
    """

    name: str
    architecture: str
    params: int
    macs: int
    reached: float
    modules: list[tuple[str, int]]


@dataclass(frozen=True)
class Example:
    """An image of the split: ``source`` is a ``data:`` address, names are those of classes."""

    source: str
    label: str
    predicted: str
    probability: float
    pixelated: bool = False


@dataclass(frozen=True)
class Exit:
    """The images that stop after a member.

    Attributes:
        rate: Share of all images.
        top1: Of these images; None where there are none.
        all_top1: Of these images with every member run.
        examples: By kind: ``surest``, ``least sure``, ``wrong``.
    """

    name: str
    count: int
    rate: float
    top1: float | None
    all_top1: float | None
    examples: dict[str, list[Example]]


@dataclass(frozen=True)
class ClassScore:
    """A class: accuracy of the teacher (``before``, None without one) and of the run (``after``).

    Attributes:
        mistaken: Classes that its images were most often taken for, and how many were.
    """

    name: str
    count: int
    before: float | None
    after: float
    mistaken: list[tuple[str, int]]

    @property
    def lost(self) -> float:
        """Points lost against the teacher."""
        return 0.0 if self.before is None else self.before - self.after


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of a network in equal bins of confidence (Guo et al. 2017): shares, counts, percent."""

    label: str
    kind: str
    confidence: list[float]
    accuracy: list[float]
    counts: list[int]
    ece: float


@dataclass(frozen=True)
class Training:
    """A training of the lineage: columns of ``metrics.csv`` by name, an entry for each epoch."""

    name: str
    columns: dict[str, list[float | None]]


@dataclass(frozen=True)
class Step:
    """A network of the lineage.

    Attributes:
        role: What it is to the next one, such as ``teacher``.
        command: That made it; empty where that is not known.
        details: Label and text.
        notice: What does not fit, such as a folder that has changed since.
    """

    name: str
    role: str
    command: str
    details: list[tuple[str, str]]
    notice: str = ""


@dataclass(frozen=True)
class Facts:
    """All of a report.

    Attributes:
        result: The numbers, as JSON has them.
        name: Of the run.
        subject: What it is: a noun, such as ``gated cascade``, ``student with assistant`` or ``network``.
        full_macs: With every member run, where that is more than the run costs.
        curve, oracle: (MACs, top-1) of other thresholds and of gates that know the labels.
        classes: All of them, those that lost most first.
        promise, cost_bound: The guarantees as ``gate-calibrate`` recorded them.
        calibration_seen: Whether weights may know the calibration images, so that guarantees do not hold.
        options: Of the run itself.
        missing: What is not in the report, and why.
    """

    result: ReportResult
    name: str
    subject: str
    marks: list[Mark]
    members: list[Member]
    exits: list[Exit]
    classes: list[ClassScore]
    reliability: list[Reliability]
    trainings: list[Training]
    lineage: list[Step]
    curve: list[tuple[float, float]] = field(default_factory=list)
    oracle: list[tuple[float, float]] = field(default_factory=list)
    promise: dict[str, Any] | None = None
    cost_bound: dict[str, Any] | None = None
    calibration_seen: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
