"""Training mostly on the images that a later member will get."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from kdcompress.data.batches import TrainBatches
from kdcompress.data.focus import OTHERS, least_sure


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 1.0])
def test_the_least_sure_and_a_tenth_of_the_others(share: float) -> None:
    """A member that learns what the others know already wastes its epochs; without any of it, it forgets it."""
    margins = np.random.default_rng(3).random(1000)
    chosen = least_sure(margins, share, seed=0)
    count = round(share * 1000) or 1
    hardest = np.argsort(margins)[:count]
    assert len(chosen) == len(set(chosen.tolist())) == count + round(OTHERS * (1000 - count))
    assert set(hardest.tolist()) <= set(chosen.tolist())
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, least_sure(margins, share, seed=0)), "a resumed run would see other images"
    if share < 1:
        assert not np.array_equal(chosen, least_sure(margins, share, seed=1))


@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_has_the_chosen_images_once(world: int) -> None:
    """Images that were left out would come in all the same, or some of the chosen ones never."""
    chosen = np.array([1, 4, 5, 9, 12, 13, 17, 20, 22, 30, 31, 33])
    images = SimpleNamespace(ids=np.arange(40), labels=None)
    ranks = [TrainBatches(images, 4, 7, "none", None, rank, world, chosen) for rank in range(world)]  # type: ignore[arg-type]
    for epoch in range(3):
        seen = np.concatenate([part for batches in ranks for part in batches.parts(epoch)])
        assert sorted(seen.tolist()) == chosen.tolist()
        assert sum(ranks[0].sizes()) == len(chosen)
    whole = TrainBatches(images, 4, 7, "none")  # type: ignore[arg-type]
    every = TrainBatches(images, 4, 7, "none", chosen=np.arange(40))  # type: ignore[arg-type]
    for one, other in zip(whole.parts(2), every.parts(2), strict=True):
        assert np.array_equal(one, other)
