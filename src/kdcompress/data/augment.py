"""Replayable augmentation: what happens to an image is a pure function of (seed, view, image index).

So a killed run goes on exactly where it was, and what a frozen network says about a view can be computed once and kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FLIPS = 2**32  # in place of a view: the draw that an image keeps through all of them


def uniforms(seed: int, view: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Random numbers in [0, 1) that depend on nothing but the arguments.

    Counter-based (the SplitMix64 finaliser, Steele et al. 2014), so that any image of any view is drawn without
    drawing those before it.

    Args:
        indices: [B] image indices.
        count: How many numbers an image gets.

    Returns:
        [B, count] float64.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * _GOLDEN + np.uint64(view))
        state = _mix(state + indices.astype(np.uint64)[:, None] * _GOLDEN)
        state = _mix(state + np.arange(1, count + 1, dtype=np.uint64)[None, :] * _GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def crop_indices(
    seed: int, view: int, indices: np.ndarray, height: int, width: int, *, flip: bool, shift: bool = True
) -> tuple[Tensor, Tensor]:
    """Rows and columns that a shifted (and perhaps mirrored) crop of each image reads.

    The usual pad-and-crop by an eighth of the side (4 pixels of 32), with reflection in place of zeros (our choice:
    no mask is needed, and no edges appear that no image has).

    Args:
        shift: False: the whole image.

    Returns:
        Row indices [B, height] and column indices [B, width], int64.
    """
    draws = uniforms(seed, view, indices, 2)
    rows = _shifted(draws[:, 0], height, shift)
    columns = _shifted(draws[:, 1], width, shift)
    if flip:
        columns = np.where(mirrored(seed, view, indices)[:, None], columns[:, ::-1], columns)
    return torch.from_numpy(rows), torch.from_numpy(np.ascontiguousarray(columns))


def mirrored(seed: int, view: int, indices: np.ndarray) -> np.ndarray:
    """Which images a view mirrors: a random half of them, and the other half in the next view.

    Alternating flip (Jordan 2024, arXiv 2404.00498): two views of an image in a row are never mirrored alike, as they
    are half of the time by independent draws.

    Args:
        indices: [B] image indices.

    Returns:
        Bool [B].
    """
    first: np.ndarray = uniforms(seed, _FLIPS, indices, 1)[:, 0] < 0.5
    return first ^ bool(view % 2)


def image_seed(seed: int, view: int, index: int) -> int:
    """A 31-bit seed for transforms that draw from global random generators."""
    return int(uniforms(seed, view, np.array([index]), 1)[0, 0] * 2**31)


def _shifted(draws: np.ndarray, side: int, moves: bool) -> np.ndarray:
    margin = max(1, side // 8) if moves and side > 1 else 0
    shift = np.floor(draws * (2 * margin + 1)).astype(np.int64) - margin
    position = np.arange(side)[None, :] + shift[:, None]
    position = np.abs(position)
    return np.where(position >= side, 2 * (side - 1) - position, position)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
