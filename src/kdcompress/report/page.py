"""The report as one web page: no scripts, nothing to fetch, light and dark, printable."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from kdcompress.quantities import scaled
from kdcompress.report import MARK, figures, sentences
from kdcompress.report.facts import ROLES, ClassScore, Facts
from kdcompress.report.svg import SHAPES
from kdcompress.results import ReportResult

MOST_CLASSES, WORST, BEST = 40, 20, 5  # of the table of classes: all up to 40, else those at its ends


def page(facts: Facts) -> str:
    """The HTML."""
    environment = Environment(
        loader=PackageLoader("kdcompress.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(scaled=scaled, percent=sentences.percent, share=_share, code=_with_code)
    found = facts.result
    return environment.get_template("report.html").render(
        facts=facts,
        found=found,
        mark=Markup(MARK),
        json=_embedded(found),
        headline=sentences.headline(facts),
        certainty=sentences.certainty(found),
        gate=sentences.gate_in_words(found),
        guarantee=sentences.guarantee_in_words(facts),
        notes=sentences.how_measured(facts),
        keys=_keys(found),
        fronts=[each for each in (figures.over_macs(facts), figures.over_ms(facts)) if each is not None],
        classes=shown_classes(facts.classes),
        low=_low(facts.classes),
        curves=_curves(facts),
        figures=figures,
        roles=ROLES,
        shapes={kind: Markup(shape) for kind, shape in SHAPES.items()},
        total=max(sum(member.macs * member.reached for member in facts.members), 1),
    )


def shown_classes(classes: list[ClassScore]) -> list[ClassScore]:
    """All of them where they are few, else those that lost most and those that gained most."""
    return classes if len(classes) <= MOST_CLASSES else [*classes[:WORST], *classes[-BEST:]]


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _with_code(text: str) -> Markup:
    """Words between backticks as code."""
    parts = [Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
             for number, part in enumerate(text.split("`"))]  # fmt: skip
    return Markup("").join(parts)


def _embedded(result: ReportResult) -> Markup:
    """The JSON, safe within a script element."""
    text = json.dumps(result.to_dict(), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _keys(found: ReportResult) -> list[tuple[str, str, str, Any]]:
    """Label, key of the JSON, text and value of the numbers at the top."""
    rows: list[tuple[str, str, str, Any]] = [("top-1", "top1", f"{found.top1:.2f} %", found.top1)]
    if found.teacher_top1 is not None and found.points_lost is not None:
        rows.append(("teacher’s top-1", "teacher_top1", f"{found.teacher_top1:.2f} %", found.teacher_top1))
        rows.append(("points lost", "points_lost", f"{found.points_lost:.2f}", found.points_lost))
    if found.expected_macs is not None:
        rows.append(("MACs per image", "expected_macs", scaled(found.expected_macs), found.expected_macs))
        if (ratio := found.expected_macs_ratio) is not None:
            rows.append(("of the teacher’s MACs", "expected_macs_ratio", sentences.percent(ratio), ratio))
        rows.append(("MACs, all members", "macs", scaled(found.macs), found.macs))
    else:
        rows.append(("MACs per image", "macs", scaled(found.macs), found.macs))
        if found.macs_ratio is not None:
            rows.append(("of the teacher’s MACs", "macs_ratio", sentences.percent(found.macs_ratio), found.macs_ratio))
    if found.ms is not None:
        rows.append(("ms for one image", "ms", f"{found.ms:.3g}", found.ms))
    rows.append(("parameters", "params", scaled(found.params), found.params))
    if not found.agreement:  # with a teacher's answers, which are no truth that a probability could be of
        rows.append(("calibration error (ECE)", "ece", f"{found.ece:.2f} %", found.ece))
    return rows


def _low(classes: list[ClassScore]) -> float:
    """Where the scale of the classes begins: a round number below all of them."""
    least = min((value for row in classes for value in (row.before, row.after) if value is not None), default=0.0)
    return min(10 * float(int(least // 10)), 90.0)


def _curves(facts: Facts) -> list[tuple[str, Markup]]:
    accuracy = figures.training_curves(
        facts.trainings, {"calibration_top1": "full", "train_top1": "teacher dashed"}, "top-1, %"
    )
    loss = figures.training_curves(
        facts.trainings, {"calibration_loss": "full", "train_task_loss": "teacher dashed"}, "cross-entropy"
    )
    named = (("Top-1 accuracy", accuracy), ("Loss against the labels", loss))
    return [(name, figure) for name, figure in named if figure is not None]
