"""What a candidate for a res-student is worth, and which of many is the best (our choice).

M is members, N samples, K classes.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kdcompress.gate_search import search
from kdcompress.gating import Outcome, Stages

MEASURE = "confidence"


def gated(logits: Tensor, labels: Tensor, macs: list[int], most: float) -> Outcome:
    """The best gate whose expected MACs are at most ``most``: what a candidate is worth is what this one reaches.

    Args:
        logits: ``[M, N, K]`` on the calibration split, after each member.
        labels: ``[N]``.
        macs: ``[M]``, of each member by itself.
    """
    return search(Stages.from_logits(logits, labels, macs, MEASURE), MEASURE, max_macs=most)[0]


def level(top1: float, before: float, samples: int) -> int:
    """By how many standard errors of an accuracy ``top1`` is above ``before``, both in percent; whole ones.

    After few steps no gate has a use for a candidate yet, be it good or bad: what is left is chance, and level 0.
    """
    right = before / 100
    error = 100 * math.sqrt(max(right * (1 - right), 1 / samples) / samples)
    return int((top1 - before) / error)


def with_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials, the best first, with ``pareto``: no other is as good in top-1 and expected MACs and better in one.

    Each is taken as far as it was trained. Longer trained ones come first; of equal accuracy, cheaper ones.
    """

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        gains = one["top1"] - other["top1"], other["expected_macs_ratio"] - one["expected_macs_ratio"]
        return min(gains) >= 0 and max(gains) > 0

    scored = [row for row in rows if row["top1"] is not None]
    front = [row for row in scored if not any(beats(other, row) for other in scored)]
    marked = [{**row, "pareto": row in front} for row in rows]
    return sorted(marked, key=_rank)


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["top1"] is None:
        return (True,)
    return (False, -row["epochs"], -row["top1"], row["expected_macs_ratio"], row["macs_ratio"])
