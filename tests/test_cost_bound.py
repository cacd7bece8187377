"""A budget of MACs that is kept on new images, and not only on those that it was measured on."""

from __future__ import annotations

import math

import pytest
import torch

from kdcompress.cost_bound import bound_of_macs, search_within
from kdcompress.gate_search import search
from kdcompress.gating import MEASURES, MemberScores, outcome

MACS = (10, 90)
MEASURE = MEASURES["confidence"]


def scores(images: int, seed: int) -> MemberScores:
    """A first member that is surer of what it gets right, and a better second one."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(1, images, generator=generator)
    first = torch.rand(images, generator=generator) < values[0]
    second = first | (torch.rand(images, generator=generator) < 0.8)
    return MemberScores(values, torch.stack([first, second]), MACS)


def shares_over(level: float | None, images: int, draws: int = 100) -> float:
    """Of so many draws of calibration images, those whose gate costs more than asked on all other images."""
    over = 0
    for draw in range(draws):
        known = scores(images, draw)
        gate = (
            search(known, MEASURE, max_macs=50.0)[0] if level is None else search_within(known, MEASURE, 50.0, level)[0]
        )
        (limit,) = gate.thresholds
        going = 1.0 if limit is None else limit  # certainties are uniform: this share of all images is below it
        over += 10 + 90 * going > 50.0
    return over / draws


def test_the_budget_is_kept_as_often_as_was_said() -> None:
    """A gate at the budget exceeds it on new images in every second case."""
    assert shares_over(None, 150) > 0.35
    for level in (0.9, 0.99):  # two standard deviations of a share of 100 draws
        assert shares_over(level, 150) <= 1 - level + 2 * math.sqrt(level * (1 - level) / 100)


def test_many_images_cost_little_of_the_budget() -> None:
    """A margin that does not shrink would waste accuracy."""
    for images, least in ((100, 40.0), (1000, 46.5), (20000, 49.0)):
        gate = search_within(scores(images, 1), MEASURE, 50.0, 0.95)[0]
        assert least < gate.expected_macs <= 50.0


def test_the_bound_is_that_of_the_mean() -> None:
    """By the textbook: mean 55, deviation 45, of 100 images half of which go on."""
    values = torch.cat([torch.full((50,), 0.9), torch.full((50,), 0.1)])[None]
    known = MemberScores(values, torch.ones(2, 100, dtype=torch.bool), MACS)
    assert outcome(known, MEASURE, [0.5]).expected_macs == 55.0
    assert bound_of_macs(known, MEASURE, [0.5], 0.95) == pytest.approx(55 + 1.6604 * 45.227 / 10, abs=1e-3)
    assert bound_of_macs(known, MEASURE, [0.0], 0.95) == 10.0, "all images stop: nothing is uncertain"


def test_a_budget_just_above_the_first_member_stops_every_image() -> None:
    """It must not end in an error, for it can be kept."""
    gate = search_within(scores(50, 2), MEASURE, 10.5, 0.95)[0]
    assert gate.expected_macs == 10.0
