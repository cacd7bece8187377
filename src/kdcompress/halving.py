"""Halves of the calibration images that stand for independent draws: copies of an image count once, on one side."""

from __future__ import annotations

import torch
from torch import Tensor


def numbered(samples: int, groups: Tensor | None) -> tuple[Tensor, int]:
    """A number of each image ``[N]`` from 0, which copies share, and how many there are: independent draws.

    Args:
        groups: ``[N]`` a number that copies of an image share; None: there are no copies.
    """
    if groups is None:
        return torch.arange(samples), samples
    distinct_groups, numbers = groups.unique(return_inverse=True)
    return numbers, len(distinct_groups)


def halves(samples: int, groups: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two halves of the images, sorted; images of a group are in the same one.

    Args:
        groups: As for :func:`numbered`.
        seed: Of the division.
    """
    numbers, count = numbered(samples, groups)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    is_first = torch.zeros(count, dtype=torch.bool)
    is_first[order[: count // 2]] = True
    return is_first[numbers].nonzero()[:, 0], (~is_first)[numbers].nonzero()[:, 0]


def distinct(chosen: Tensor, groups: Tensor | None) -> Tensor:
    """One image of each group among the chosen ones ``[M]``: the first."""
    if groups is None:
        return chosen
    numbers = groups[chosen]
    order = numbers.argsort(stable=True)
    is_new = torch.ones(len(order), dtype=torch.bool)
    is_new[1:] = numbers[order][1:] != numbers[order][:-1]
    return chosen[order[is_new].sort().values]
