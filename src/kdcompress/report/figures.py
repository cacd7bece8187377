"""The figures of a report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from markupsafe import Markup, escape

from kdcompress.quantities import scaled
from kdcompress.report.facts import ORACLE, ClassScore, Exit, Facts, Mark, Reliability, Training
from kdcompress.report.svg import BOTTOM, LEFT, TOP, Axis, Plot

WIDE = 8  # ratio of the largest to the smallest cost from which on an axis is logarithmic
MOST_POINTS = 300  # of a training curve


def over_macs(facts: Facts) -> Markup | None:
    """Top-1 over MACs: members, gate, other thresholds, teacher, other networks, oracle; None for one point alone."""
    marks = [mark for mark in facts.marks if mark.macs]
    lines = {"curve": facts.curve, ORACLE: facts.oracle}
    costs = [(mark, float(mark.macs or 0)) for mark in marks]
    return _front(costs, lines, "MACs per image") if len(costs) > 1 else None


def over_ms(facts: Facts) -> Markup | None:
    """The same over milliseconds; None where fewer than two networks were timed."""
    timed = [(mark, mark.ms) for mark in facts.marks if mark.ms]
    return _front(timed, {}, "milliseconds for one image, mean") if len(timed) > 1 else None


def _front(marks: Sequence[tuple[Mark, float]], lines: dict[str, list[tuple[float, float]]], label: str) -> Markup:
    costs = [cost for _, cost in marks] + [cost for line in lines.values() for cost, _ in line if cost > 0]
    scores = [mark.top1 for mark, _ in marks] + [top1 for line in lines.values() for _, top1 in line]
    log = max(costs) / min(costs) > WIDE
    x = Axis.around(label, costs, log=log, floor=0.0, text=scaled)
    plot = Plot(x, Axis.around("top-1, %", scores, ceiling=100.0), f"Top-1 accuracy over {label}")
    for mark, _ in marks:
        if mark.kind == "teacher":
            plot.level(mark.top1, mark.kind)
    for kind, line in lines.items():
        if len(line) > 1:
            plot.line(line, kind, apart=True)
    for mark, cost in marks:
        shown = scaled(cost) if "MACs" in label else f"{cost:.3g} ms"
        plot.mark(cost, mark.top1, mark.kind, mark.label, f"{mark.label}: {mark.top1:.2f} %, {shown}")
    return plot.svg()


def exit_bar(exits: Sequence[Exit]) -> Markup:
    """Share of the images that stop after each member, as one bar."""
    parts, left = [], 0.0
    for number, each in enumerate(exits):
        wide = 1000 * each.rate
        parts.append(
            f'<rect class="shade{min(number, 4)}" x="{left:.2f}" width="{wide:.2f}" y="0" height="26">'
            f"<title>{escape(each.name)}: {100 * each.rate:.1f} %</title></rect>"
        )
        left += wide
    return Markup(
        '<svg class="bar" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" '
        f'aria-label="Exit rates">{"".join(parts)}</svg>'
    )


def share_bar(share: float, kind: str = "full") -> Markup:
    """A bar of a table: a share of 1."""
    wide = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="cell" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="ground" width="100" height="10"/>'
        f'<rect class="fill {kind}" width="{wide:.2f}" height="10"/></svg>'
    )


def before_after(row: ClassScore, low: float, kind: str) -> Markup:
    """Accuracy of a class before and after, between ``low`` and 100 %.

    Args:
        kind: Of the mark of the latter.
    """

    def at(value: float) -> float:
        return round(8 + 134 * (value - low) / (100.0 - low), 1)

    after = at(row.after)
    parts = ['<line class="grid" x1="8" x2="142" y1="8" y2="8"/>']
    if row.before is not None:
        way = "lost" if row.lost > 0 else "gained"
        parts.append(f'<line class="step {way}" x1="{at(row.before)}" x2="{after}" y1="8" y2="8"/>')
        parts.append(f'<circle class="mark teacher" cx="{at(row.before)}" cy="8" r="4.5"/>')
    parts.append(f'<circle class="mark {kind}" cx="{after}" cy="8" r="4.5"/>')
    return Markup(f'<svg class="pair" viewBox="0 0 150 16" aria-hidden="true">{"".join(parts)}</svg>')


def reliability(found: Reliability) -> Markup:
    """Accuracy in bins of confidence: on the diagonal, probabilities can be taken at their word."""
    x, y = Axis("confidence, %", 0, 100), Axis("accuracy, %", 0, 100)
    plot = Plot(x, y, f"Reliability of {found.label}", width=360, height=320)
    bins, total = len(found.counts), max(sum(found.counts), 1)
    for number, (accuracy, count) in enumerate(zip(found.accuracy, found.counts, strict=True)):
        if not count:
            continue
        left, up = plot.at(100 * number / bins, 100 * accuracy)
        right, down = plot.at(100 * (number + 1) / bins, 0)
        share = count / total
        told = f"{count:,} images, confidence {100 * found.confidence[number]:.1f} %, accuracy {100 * accuracy:.1f} %"
        plot.parts.append(
            f'<rect class="fill {found.kind}" x="{left + 1}" y="{up}" width="{round(right - left - 2, 1)}" '
            f'height="{round(down - up, 1)}" fill-opacity="{0.25 + 0.75 * share**0.5:.2f}">'
            f"<title>{told}</title></rect>"
        )
    plot.line([(0, 0), (100, 100)], "diagonal")
    return plot.svg()


def training_curves(trainings: Sequence[Training], columns: dict[str, str], label: str) -> Markup | None:
    """Columns of ``metrics.csv`` over all epochs of the lineage, one training after the other.

    Args:
        columns: Name of the column to the class of its line.
        label: Of the values.
    """
    values = [
        value for each in trainings for name in columns for value in each.columns.get(name, []) if value is not None
    ]
    if not values:
        return None
    lengths = [max(map(len, each.columns.values()), default=0) for each in trainings]
    ends = list(itertools.accumulate(lengths))
    ceiling = 100.0 if "%" in label else float("inf")
    x = Axis("epochs, one training after the other", 0.5, ends[-1] + 0.5)
    log = "%" not in label and min(values) > 0
    plot = Plot(x, Axis.around(label, values, log=log, floor=0.0, ceiling=ceiling), f"{label} over epochs")
    for each, end, length in zip(trainings, ends, lengths, strict=True):
        if end != ends[-1]:
            across = plot.at(end + 0.5, plot.y.low)[0]
            plot.parts.append(
                f'<line class="divide" x1="{across}" x2="{across}" y1="{TOP}" y2="{plot.height - BOTTOM}"/>'
            )
        for name, kind in columns.items():
            points = [
                (end - length + number + 1, value)
                for number, value in enumerate(each.columns.get(name, []))
                if value is not None
            ]
            points = points[:: -(-len(points) // MOST_POINTS)] if points else points
            if len(points) == 1:
                (across, down) = plot.at(*points[0])
                plot.parts.append(f'<circle class="dot {kind}" cx="{across}" cy="{down}" r="3"/>')
            elif points:
                plot.line(points, kind)
    _name_trainings(plot, trainings, [0, *ends])
    return plot.svg()


def _name_trainings(plot: Plot, trainings: Sequence[Training], ends: Sequence[int]) -> None:
    """A number above each training; the names are in the lineage."""
    for number, (start, end) in enumerate(itertools.pairwise(ends), start=1):
        middle = plot.at((start + end + 1) / 2, plot.y.low)[0]
        plot.text(max(middle, LEFT), plot.height - BOTTOM - 6, str(number), "tick", "middle")
