"""Scores and ranks candidate res-students (our choice).

M is members, N samples, K classes.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kdcompress.gate_search import search
from kdcompress.gating import MemberScores, Outcome

MEASURE = "confidence"


def gated(logits: Tensor, labels: Tensor, macs: list[int], most: float) -> Outcome:
    """The best gate whose expected MACs are at most ``most``; a candidate's score is what this gate reaches.

    Args:
        logits: ``[M, N, K]``, summed logits on the calibration split, after each member.
        labels: ``[N]`` class indices.
        macs: ``[M]``, of each member by itself.
        most: MACs per sample.

    Raises:
        UserError: ``most`` is less than the first member alone.
    """
    return search(MemberScores.from_logits(logits, labels, macs, MEASURE), MEASURE, max_macs=most)[0]


def level(top1: float, before: float, samples: int) -> int:
    """By how many whole standard errors ``top1`` exceeds ``before``, both in percent, on ``samples`` images.

    After few steps no gate uses a candidate yet, good or bad: all differences are then noise, and the level is 0.
    """
    share = before / 100
    error = 100 * math.sqrt(max(share * (1 - share), 1 / samples) / samples)
    return int((top1 - before) / error)


def with_front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trials, the best first, with ``pareto``: whether no other dominates it in top-1 and expected MACs.

    Trials that were trained longer come first; then the more accurate ones; of equal accuracy, the cheaper ones.
    """

    def dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
        gains = one["top1"] - other["top1"], other["expected_macs_ratio"] - one["expected_macs_ratio"]
        return min(gains) >= 0 and max(gains) > 0

    scored = [row for row in rows if row["top1"] is not None]
    front = [row for row in scored if not any(dominates(other, row) for other in scored)]
    marked = [{**row, "pareto": row in front} for row in rows]
    return sorted(marked, key=_rank)


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["top1"] is None:
        return (True,)
    return (False, -row["epochs"], -row["top1"], row["expected_macs_ratio"], row["macs_ratio"])
