"""Which training images a later member of a cascade sees: mostly those that it will get (our choice)."""

from __future__ import annotations

import numpy as np

OTHERS = 0.1  # share of the images that the members before are sure of


def least_sure(margins: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Positions of the images that members are least sure of, and of a tenth of the others, drawn at random; ascending.

    Args:
        margins: [N], how sure the members are of each image.
        share: Of the images, above 0 and at most 1.
        seed: Of the draw.
    """
    order = np.argsort(margins, kind="stable")
    count = max(1, round(share * len(order)))
    others = order[count:]
    drawn = np.random.default_rng(seed).permutation(len(others))[: round(OTHERS * len(others))]
    return np.sort(np.concatenate([order[:count], others[drawn]]))
