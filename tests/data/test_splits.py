"""Fit and calibration: one division, which every network of a chain shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcompress.data import splits
from kdcompress.data.splits import fit_calibration

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda labels: np.array(labels, dtype=np.int64))
CALIBRATION = [0, 1, 2, 4, 6, 8, 9, 22, 32]  # of 40 images of three classes in turn
shares = st.floats(0, 1, exclude_min=True, exclude_max=True)


@given(label_lists, shares)
@settings(deadline=None)
def test_every_image_is_in_exactly_one_part(labels: np.ndarray, holdout: float) -> None:
    """A gate would be calibrated on images that the network was fitted on, or images be lost."""
    fit, calibration = fit_calibration(labels, holdout)
    assert sorted([*fit, *calibration]) == list(range(len(labels)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(calibration) > 0).all()


@given(label_lists, shares)
@settings(deadline=None)
def test_each_class_gives_its_share(labels: np.ndarray, holdout: float) -> None:
    """A rare class would be missing from the fit or from the calibration, and accuracy be of another mix."""
    fit, calibration = fit_calibration(labels, holdout)
    for label in np.unique(labels):
        count, held = (labels == label).sum(), (labels[calibration] == label).sum()
        assert (labels[fit] == label).sum() + held == count
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            assert held in (1, count - 1) or abs(held - holdout * count) <= 0.5


@given(label_lists, shares, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_no_seed_changes_it(labels: np.ndarray, holdout: float, seed: int) -> None:
    """A res-student with another --seed would fit on the calibration images of the student before it."""
    once = fit_calibration(labels, holdout)
    state = np.random.get_state()
    np.random.seed(seed)
    again = fit_calibration(labels.copy(), holdout)
    np.random.set_state(state)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))


def test_it_is_the_same_as_ever() -> None:
    """A new version of kdcompress would calibrate on images that runs of the old one were fitted on."""
    fit, calibration = fit_calibration(np.arange(40) % 3, 0.2)
    assert calibration.tolist() == CALIBRATION
    assert len(fit) == 40 - len(CALIBRATION)


@given(label_lists, st.integers(7, 50))
@settings(deadline=None, max_examples=30)
def test_a_class_is_divided_whatever_the_others_are(labels: np.ndarray, new: int) -> None:
    """More images of one class would move those of all others between fit and calibration."""
    more = np.concatenate([labels, np.full(5, new)])
    before, after = fit_calibration(labels, 0.3)[1], fit_calibration(more, 0.3)[1]
    assert np.array_equal(before, after[after < len(labels)])


def test_it_is_shuffled() -> None:
    """Files sorted by, say, date or patient would give a calibration split of the first ones only."""
    calibration = fit_calibration(np.zeros(1000, dtype=np.int64), 0.1)[1]
    assert 300 < calibration.mean() < 700
    assert calibration.min() < 100
    assert calibration.max() > 900


def test_a_larger_holdout_keeps_the_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits would be drawn by something else than the one fixed seed."""
    labels = np.arange(300) % 4
    small, large = (set(fit_calibration(labels, share)[1].tolist()) for share in (0.1, 0.3))
    assert small < large
    monkeypatch.setattr(splits, "SPLIT_SEED", 1)
    assert set(fit_calibration(labels, 0.1)[1].tolist()) != small


def test_copies_are_held_out_as_often_as_other_images() -> None:
    """By the smallest of five draws, bursts of photos would make up most of a test split."""
    bursts, singles = 300, 1500
    groups = np.concatenate([np.arange(bursts).repeat(5), bursts + np.arange(singles)])
    _, held_out = fit_calibration(np.zeros(len(groups), dtype=int), 0.1, groups)
    share = (groups[held_out] < bursts).mean()
    assert 0.4 < share < 0.6
