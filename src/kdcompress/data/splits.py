"""The one division of the training split into *fit* and *calibration*."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SPLIT_SEED = 0
DIVISION = 2  # the rule by which images with copies are divided; where a run does not name one, copies were taken first


def fit_calibration(
    labels: np.ndarray, holdout: float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divide images class by class, the same way in every run on the same data (our choice).

    The seed of a run plays no part: every network of a chain has to fit on the same images, or a gate would be
    calibrated on images that some member has seen.

    Args:
        labels: [N] class of each image.
        holdout: Share of each class that goes to calibration; of two images or more at least one goes each way, unless
            they are of one group.
        groups: [N] a number that images which belong together share, so that they go the same way; None: there are no
            such images.

    Returns:
        Sorted indices of the fit images and of the calibration images.
    """
    fit, calibration, wanted = [], [], np.zeros(int(labels.max(initial=-1)) + 1)
    draws = np.empty(len(labels))
    classes, starts = np.unique(np.sort(labels), return_index=True)
    for label, members in zip(classes, np.split(np.argsort(labels, kind="stable"), starts[1:]), strict=True):
        order = np.random.default_rng((SPLIT_SEED, int(label))).permutation(members)
        held = min(max(round(holdout * len(members)), 1), len(members) - 1)
        calibration.append(order[:held])
        fit.append(order[held:])
        wanted[label], draws[order] = held, np.arange(len(order)) / len(order)
    if groups is not None:
        held_out = take(labels, groups.tolist(), draws.tolist(), wanted)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return np.sort(np.concatenate(fit)), np.sort(np.concatenate(calibration))


def take(labels: np.ndarray, groups: Sequence[int], draws: Sequence[Any], wanted: np.ndarray) -> np.ndarray:
    """Take whole groups, those of the smallest draws first, as long as no class gives more than is wanted of it.

    A group has one draw, however large it is: with the smallest of its members', copies would be taken first.

    Args:
        labels: [N] class of each image.
        groups: [N] a number that images which belong together share.
        draws: [N] of each image; that of the first one of a group counts.
        wanted: [K] images of each class to take at most.

    Returns:
        Whether each image is taken, bool [N].
    """
    left, members = wanted.copy(), dict[int, list[int]]()
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    drawn = {group: draws[found[0]] for group, found in members.items()}
    taken = np.zeros(len(labels), dtype=bool)
    for group in sorted(members, key=lambda group: drawn[group]):
        classes, counts = np.unique(labels[members[group]], return_counts=True)
        if (counts <= left[classes]).all():
            left[classes] -= counts
            taken[members[group]] = True
    return taken


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many images of the same class come before each one: [N] labels to [N]."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` positions, from the first to the last, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
