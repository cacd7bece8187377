"""Accuracy of each class before and after, and how surely a loss is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kdcompress.api.reporting.measured import Measured
from kdcompress.report.facts import ClassScore, Reliability

MISTAKEN = 3  # classes that a class is most often taken for


def class_scores(found: Measured, teacher: Measured | None, names: Sequence[str]) -> list[ClassScore]:
    """All classes that have images, those that lost most first; without a teacher, the least accurate first."""
    rows = []
    answers = found.classes[-1, :, 0]
    for label, name in enumerate(names):
        here = found.labels == label
        count = int(here.sum())
        if not count:
            continue
        wrong = torch.bincount(answers[here & ~found.right[-1]], minlength=len(names))
        order = torch.argsort(wrong, descending=True, stable=True)[:MISTAKEN].tolist()
        rows.append(
            ClassScore(
                name,
                count,
                100 * float(teacher.right[-1][here].double().mean()) if teacher is not None else None,
                100 * float(found.right[-1][here].double().mean()),
                [(names[other], int(wrong[other])) for other in order if wrong[other]],
            )
        )
    return sorted(rows, key=lambda row: (-row.lost, row.after))


def reliability(found: Measured, label: str, kind: str) -> Reliability:
    """Mean confidence and accuracy in each bin."""
    confidence, correct, counts = (part.tolist() for part in found.bins())
    return Reliability(
        label,
        kind,
        [part / count if count else 0.0 for part, count in zip(confidence, counts, strict=True)],
        [part / count if count else 0.0 for part, count in zip(correct, counts, strict=True)],
        [int(count) for count in counts],
        found.ece,
    )


def loss_interval(found: Measured, teacher: Measured) -> tuple[float, float]:
    """95 % confidence interval of the points lost; see :func:`paired_interval`."""
    lost = int((teacher.right[-1] & ~found.right[-1]).sum())
    gained = int((~teacher.right[-1] & found.right[-1]).sum())
    return paired_interval(lost, gained, len(found.labels))


def paired_interval(lost: int, gained: int, n: int) -> tuple[float, float]:
    """95 % confidence interval, in points, of a difference of two accuracies on the same images.

    Wald's for paired proportions with half an image added to each count of the table, so that it does not shrink to a
    point where the two agree on all images (Agresti and Min 2005, doi 10.1002/sim.1781).

    Args:
        lost, gained: Images that only the first of the two gets right, and only the second.
        n: All images.
    """
    more, total = lost + gained + 1, n + 2
    mean = (lost - gained) / total
    spread = 1.96 * math.sqrt(more - total * mean**2) / total
    return round(100 * (mean - spread), 4), round(100 * (mean + spread), 4)
