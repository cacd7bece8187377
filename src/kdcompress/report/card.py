"""The report as a model card: Markdown with the front matter that hubs read."""

from __future__ import annotations

import html
import re
from typing import Any

import yaml

from kdcompress.quantities import scaled
from kdcompress.report import MARK, sentences
from kdcompress.report.facts import ROLES, Facts
from kdcompress.results import ReportResult

HUB = "hf-hub:"
MOST_CLASSES = 10


def card(facts: Facts) -> str:
    """The Markdown."""
    found = facts.result
    front = yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True).strip()
    parts = [
        f"---\n{front}\n---",
        MARK,
        f"# {_text(facts.name)}",
        f"{_text(sentences.headline(facts))} {_text(sentences.certainty(found))}",
        "## Use it",
        _code("python", _usage(found)),
        "## Accuracy and cost",
        _networks(found),
        *_gate(facts),
        "## Classes that lost most" if found.teacher_top1 is not None else "## Least accurate classes",
        _classes(facts),
        "## How it was made",
        *_lineage(facts),
    ]
    if facts.missing:
        parts += ["## What is not here", "\n".join(f"* {_text(each)}" for each in facts.missing)]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Facts) -> dict[str, Any]:
    found = facts.result
    metrics = [{"type": "accuracy", "name": "top-1, percent", "value": found.top1}]
    if found.top5 is not None:
        metrics.append({"type": "accuracy", "name": "top-5, percent", "value": found.top5})
    dataset = {"name": found.data, "type": found.data, "split": found.split}
    task = {"type": "image-classification", "name": "Image classification"}
    front: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "kdcompress", "knowledge-distillation"],
    }
    if found.measure is not None:
        front["tags"].append("early-exit")
    if found.teacher is not None and found.teacher.startswith(HUB):
        front["base_model"] = found.teacher.removeprefix(HUB)
    if found.agreement:  # with a teacher: no accuracy that could be compared with others'
        return front
    results = [{"task": task, "dataset": dataset, "metrics": metrics}]
    return {**front, "model-index": [{"name": facts.name, "results": results}]}


def _usage(found: ReportResult) -> str:
    folder = "PATH" if found.run is None else found.run.rstrip("/").rpartition("/")[2]
    return (
        "import kdcompress  # registers cascades and our own architectures with timm\n"
        "import timm\n\n"
        f"model = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()"
    )


def _networks(found: ReportResult) -> str:
    timed = found.hardware is not None
    head = ["network", "", "top-1", "MACs per image", "of the teacher", *(["ms per image"] if timed else []), "ECE"]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in found.networks:
        ratio = "" if row["macs_ratio"] is None else sentences.percent(row["macs_ratio"])
        ms = [f"{row['ms']:.3g}" if row["ms"] is not None else ""] if timed else []
        cells = [
            f"{row['top1']:.2f} %",
            scaled(row["macs"]),
            ratio,
            *ms,
            "" if found.agreement else f"{row['ece']:.2f} %",
        ]
        lines.append(_line([_text(row["network"]), ROLES[row["role"]], *cells]))
    note = f"{found.n:,} images of the {_text(found.split)} split of {_text(found.data)}."
    timing = f" Milliseconds for one image at a time, on average, on {_text(found.hardware or '')}." if timed else ""
    return "\n".join(lines) + f"\n\n{note}{timing}"


def _gate(facts: Facts) -> list[str]:
    if facts.result.measure is None:
        return []
    rates = ", ".join(f"{_text(each.name)}: {100 * each.rate:.1f} %" for each in facts.exits)
    told = [sentences.gate_in_words(facts.result), f"Images by exit: {rates}."]
    return ["## The gate", _text(" ".join(told)), *sentences.guarantee_in_words(facts)]


def _classes(facts: Facts) -> str:
    before = facts.result.teacher_top1 is not None
    rows = [row for row in facts.classes if row.lost > 0 or not before][:MOST_CLASSES]
    if not rows:
        return "No class has lost accuracy."
    head = ["class", "images", *(["teacher"] if before else []), "this network", "most often taken for"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 2), "---"])]
    for row in rows:
        mistaken = ", ".join(f"{_text(name)} ({count})" for name, count in row.mistaken)
        cells = [f"{row.before:.1f} %"] if row.before is not None else []
        lines.append(_line([_text(row.name), f"{row.count:,}", *cells, f"{row.after:.1f} %", mistaken]))
    return "\n".join(lines)


def _lineage(facts: Facts) -> list[str]:
    parts = []
    for number, step in enumerate(facts.lineage, start=1):
        details = "; ".join(f"{label} {_text(text)}" for label, text in step.details)
        notice = f" {_text(step.notice)}" if step.notice else ""
        parts.append(f"{number}. **{_text(step.name)}** ({step.role}): {details}{notice}")
        if step.command:
            parts.append(_code("sh", step.command, "   "))
    return parts


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(language: str, text: str, indent: str = "") -> str:
    """A block that no text within it can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join(f"{indent}{line}" for line in [f"{fence}{language}", *text.splitlines(), fence])


def _text(text: str) -> str:
    """Words of others, without what Markdown or HTML would take for markup."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", plain)
