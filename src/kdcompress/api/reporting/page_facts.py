"""From what was measured to what the page says."""

from __future__ import annotations

import itertools
from typing import Any

from kdcompress.api.job import versions
from kdcompress.api.reporting.classes import class_scores, reliability
from kdcompress.api.reporting.examples import exits
from kdcompress.api.reporting.gathered import SUBJECT, Gathered
from kdcompress.api.reporting.lineage import Lineage
from kdcompress.api.reporting.measured import Measured
from kdcompress.api.teacher import SEEN
from kdcompress.models.staged import Staged
from kdcompress.models.student_assistant import StudentAssistant
from kdcompress.options import ReportOptions
from kdcompress.report.facts import FULL, MEMBER, ORACLE, Facts, Mark, Member
from kdcompress.results import ReportResult

MOST_THRESHOLDS = 80  # points of the gate's curve
MOST_MODULES = 6  # of a member


def page_facts(gathered: Gathered, result: ReportResult, options: ReportOptions) -> Facts:
    """All of a report."""
    subject, teacher = gathered.subject.measured, gathered.teacher
    network, names = subject.network, gathered.class_names
    lineage, missing = Lineage(network), list(gathered.missing)
    if gathered.source.is_raw:
        missing.append("Example images: the inputs of this network are not images.")
    if gathered.subject.ms is None:
        missing.append("Milliseconds: not measured (--no-time).")
    if not lineage.trainings:
        missing.append("Training curves: no run of the lineage has a metrics.csv on this disk.")
    past = network.record.get("result") or {}
    rows = [gathered.subject, *([teacher] if teacher else [])]
    return Facts(
        result=result,
        name=gathered.subject.name,
        subject=_subject(subject),
        marks=_marks(gathered),
        members=_members(subject, result),
        exits=exits(subject, gathered.images, gathered.ids, names, 0 if gathered.source.is_raw else options.examples),
        classes=class_scores(subject, teacher.measured if teacher else None, names),
        reliability=[
            reliability(row.measured, "this run" if row.role == SUBJECT else "teacher", row.kind) for row in rows
        ],
        trainings=lineage.trainings,
        lineage=lineage.steps,
        curve=_curve(subject, past.get("curve")),
        oracle=subject.oracle() if len(subject.macs) > 1 else [],
        promise=_promise(past.get("promise")),
        cost_bound=_cost_bound(past.get("cost_bound")),
        calibration_seen=bool(network.record.get(SEEN) or past.get(SEEN)),
        versions=versions(),
        missing=missing,
    )


def _subject(found: Measured) -> str:
    model = found.network.model
    if isinstance(model, StudentAssistant):
        return "gated student with assistant" if found.gate is not None else "student with assistant"
    if isinstance(model, Staged) and len(found.macs) > 1:
        return "gated cascade" if found.gate is not None else "cascade"
    return "student" if found.network.record.get("teacher") else "network"


def _marks(gathered: Gathered) -> list[Mark]:
    """Points of the figures; what is drawn last is in front."""
    subject, marks = gathered.subject, list[Mark]()
    found, ends = subject.measured, list(itertools.accumulate(subject.measured.macs))
    for row in reversed(gathered.rows[1:]):
        marks.append(Mark(row.name if row.kind != "teacher" else "teacher", row.kind, row.measured.top1,
                          row.measured.cost, row.ms))  # fmt: skip
    if len(ends) > 1:
        for stage, (macs, top1) in enumerate(zip(ends[:-1], found.stage_top1, strict=False)):
            label = "first member" if stage == 0 else f"first {stage + 1}"
            marks.append(Mark(label, MEMBER, top1, float(macs)))
        average, top1 = found.oracle()[-1]
        marks.append(Mark("oracle", ORACLE, top1, average))
    if found.gate is not None:
        marks.append(Mark("all members", FULL, found.stage_top1[-1], float(ends[-1]), subject.full_ms))
    marks.append(Mark("this run", subject.kind, found.top1, found.cost, subject.ms))
    return marks


def _members(found: Measured, result: ReportResult) -> list[Member]:
    rates = found.exit_rates
    members = result.members or [
        {"architecture": result.architecture, "params": result.params, "macs": profile.macs}
        for profile in found.profiles
    ]
    return [
        Member(
            f"member {stage + 1}" if len(members) > 1 else "the network",
            str(member["architecture"]),
            int(member["params"]),
            profile.macs,
            sum(rates[stage:]),
            _modules(profile),
        )
        for stage, (member, profile) in enumerate(zip(members, found.profiles, strict=False))
    ]


def _modules(profile: Any) -> list[tuple[str, int]]:
    """Name and MACs of the parts of a network, in the order in which they run; the small ones as one."""
    top = {name: cost.macs for name, cost in profile.by_module.items() if "." not in name and cost.macs}
    if len(top) == 1:  # a wrapper
        inside = {name: cost.macs for name, cost in profile.by_module.items() if name.count(".") == 1 and cost.macs}
        top = inside or top
    large = set(sorted(top, key=lambda name: -top[name])[:MOST_MODULES])
    rows = [(name, macs) for name, macs in top.items() if name in large]
    rest = profile.macs - sum(macs for _, macs in rows)
    return [*rows, ("other", rest)] if rest > 0 else rows


def _curve(found: Measured, recorded: Any) -> list[tuple[float, float]]:
    """The thresholds that the calibration recorded as trade-off, on these images."""
    points = [point.get("thresholds") for point in recorded or [] if isinstance(point, dict)]
    chosen = points[:: -(-len(points) // MOST_THRESHOLDS)] if points else []
    outcomes = found.outcomes([each for each in chosen if isinstance(each, list)])
    return sorted((each.expected_macs, each.top1) for each in outcomes)


def _promise(recorded: Any) -> dict[str, Any] | None:
    """The guarantee as it was recorded; None where it is none, or was edited into none."""
    counts, numbers = ("images", "gates", "broken", "mended"), ("max_drop", "confidence_level")
    if not isinstance(recorded, dict):
        return None
    whole = all(isinstance(recorded.get(key), int) for key in counts)
    real = all(isinstance(recorded.get(key), (int, float)) for key in numbers)
    return recorded if whole and real and isinstance(recorded.get("p_value"), (int, float, type(None))) else None


def _cost_bound(recorded: Any) -> dict[str, Any] | None:
    """The bound as it was recorded; None where it is none, or was edited into none."""
    keys = ("confidence_level", "images", "macs_ratio")
    whole = isinstance(recorded, dict) and all(isinstance(recorded.get(key), (int, float)) for key in keys)
    return recorded if whole else None
