"""Copies of an image are one draw: together in one half, and counted once."""

from __future__ import annotations

import pytest
import torch

from kdcompress.cost_bound import bound_of_macs
from kdcompress.gating import MemberScores
from kdcompress.halving import distinct, halves

GROUPS = torch.tensor([7, 3, 7, 9, 3, 1, 0, 7])


def test_copies_are_in_one_half() -> None:
    """A gate would be tested on copies of the images that it was made for."""
    for seed in range(8):
        first, second = halves(8, GROUPS, seed)
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(8))
        assert not set(GROUPS[first].tolist()) & set(GROUPS[second].tolist())
        assert len(GROUPS[first].unique()) == 2


def test_without_copies_groups_change_nothing() -> None:
    """Heads that were fitted on a half would be tested on it."""
    for one, other in zip(halves(1001), halves(1001, torch.arange(1001)), strict=True):
        assert torch.equal(one, other)


def test_one_image_of_each_group() -> None:
    assert distinct(torch.arange(8), GROUPS).tolist() == [0, 1, 3, 5, 6]
    assert distinct(torch.tensor([2, 4, 7]), GROUPS).tolist() == [2, 4]
    assert distinct(torch.tensor([2, 4, 7]), None).tolist() == [2, 4, 7]


def test_copies_make_no_bound_tighter() -> None:
    """Five copies of each image would make the bound more than twice as tight as it may be."""
    logits = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(60, dtype=torch.long)

    def bound(times: int, groups: torch.Tensor | None) -> float:
        scores = MemberScores.from_logits(logits.repeat(1, times, 1), labels.repeat(times), (10, 90), "confidence")
        return bound_of_macs(scores, "confidence", [0.5], 0.9, groups)

    once = bound(1, None)
    assert bound(5, torch.arange(60).repeat(5)) == pytest.approx(once)
    assert bound(1, torch.arange(60)) == pytest.approx(once)
    assert bound(5, None) < once
