"""Augmentation: random to look at, and a pure function of (seed, view, image)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcompress.data.augment import crop_indices, image_seed, mirrored, uniforms

seeds = st.integers(0, 2**31 - 1)
views = st.integers(0, 10**6)
batches = st.lists(st.integers(0, 2**40), min_size=1, max_size=12, unique=True)
sides = st.integers(1, 70)
PINNED = [[0.36222848554815945, 0.966930484936398], [0.18172914160556086, 0.22281797308320628]]
quick = settings(deadline=None, max_examples=60)


@given(seeds, views, batches, sides, sides, st.booleans(), st.randoms(use_true_random=False))
@quick
def test_what_happens_to_an_image_depends_on_nothing_else(
    seed: int, view: int, batch: list[int], height: int, width: int, flip: bool, random: object
) -> None:
    """A resumed run, other batches or more processes would see other images; kept teacher outputs would be wrong."""
    order = list(range(len(batch)))
    random.shuffle(order)  # type: ignore[attr-defined]
    indices = np.array(batch)
    np.random.seed(len(batch))
    rows, columns = crop_indices(seed, view, indices, height, width, flip=flip)
    np.random.seed(7)
    again = crop_indices(seed, view, indices[order], height, width, flip=flip)
    assert again[0].equal(rows[order])
    assert again[1].equal(columns[order])
    for i, index in enumerate(batch):
        alone = crop_indices(seed, view, np.array([index]), height, width, flip=flip)
        assert alone[0][0].equal(rows[i])
        assert alone[1][0].equal(columns[i])
        assert image_seed(seed, view, index) == image_seed(seed, view, index)


@given(seeds, views, batches, st.integers(2, 70), st.integers(2, 70), st.booleans())
@quick
def test_a_crop_is_a_crop_of_the_reflected_image_and_a_flip_a_flip(
    seed: int, view: int, batch: list[int], height: int, width: int, flip: bool
) -> None:
    """Networks would train on torn images, or on parts that no image has."""
    image = np.arange(height * width).reshape(height, width)
    margins = max(1, height // 8), max(1, width // 8)
    padded = np.pad(image, [(margin, margin) for margin in margins], mode="reflect")
    possible = set()
    for top, left in itertools.product(range(2 * margins[0] + 1), range(2 * margins[1] + 1)):
        crop = padded[top : top + height, left : left + width]
        possible.add(crop.tobytes())
        if flip:
            possible.add(np.ascontiguousarray(crop[:, ::-1]).tobytes())
    rows, columns = crop_indices(seed, view, np.array(batch), height, width, flip=flip)
    for row, column in zip(rows.numpy(), columns.numpy(), strict=True):
        assert image[row[:, None], column[None, :]].tobytes() in possible


def test_an_image_one_pixel_high_stays_as_it_is() -> None:
    """Spectra and other strips would be read outside their bounds."""
    rows, columns = crop_indices(0, 0, np.arange(50), 1, 16, flip=False)
    assert (rows == 0).all()
    assert columns.min() >= 0
    assert columns.max() <= 15


def test_all_shifts_and_both_flips_come_up_equally_often() -> None:
    """Some views would never be seen, or most images always be mirrored."""
    rows, columns = crop_indices(3, 5, np.arange(20_000), 32, 32, flip=True)
    mirrored = (columns[:, 16] < columns[:, 15]).numpy()
    assert abs(mirrored.mean() - 0.5) < 0.02
    middle = np.where(mirrored, columns[:, 15], columns[:, 16]) - 16
    for shifts in (rows[:, 16].numpy() - 16, middle):
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert chi_square(counts) < 30, "8 degrees of freedom"
    assert abs(np.corrcoef(rows[:, 16], columns[:, 16])[0, 1]) < 0.03
    unflipped = crop_indices(3, 5, np.arange(1000), 32, 32, flip=False)[1]
    assert (unflipped[:, 16] > unflipped[:, 15]).all()


@pytest.mark.parametrize("view", [0, 1, 7, 10**6])
def test_the_next_view_mirrors_the_other_half(view: int) -> None:
    """In two epochs a quarter of the images would be seen mirrored twice, and a quarter never."""
    indices = np.arange(20_000)
    first, second, third = (mirrored(3, view + step, indices) for step in range(3))
    assert abs(first.mean() - 0.5) < 0.02
    assert (second == ~first).all()
    assert (third == first).all()
    assert abs(np.corrcoef(first, mirrored(4, view, indices))[0, 1]) < 0.03, "another seed, other images"
    assert abs(np.corrcoef(first, uniforms(3, view, indices, 1)[:, 0])[0, 1]) < 0.03, "the crop tells nothing"


def chi_square(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


@pytest.mark.parametrize(("seed", "view"), [(0, 0), (0, 1), (1, 0), (2**31 - 1, 299), (42, 10**6)])
def test_uniforms_are_uniform(seed: int, view: int) -> None:
    """Augmentation would prefer some crops."""
    draws = uniforms(seed, view, np.arange(10_000), 3)
    assert draws.shape == (10_000, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert chi_square(np.histogram(column, bins=20, range=(0, 1))[0]) < 50, "19 degrees of freedom"
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 0.05, "neighbouring images"
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.05


def test_views_seeds_and_images_are_independent() -> None:
    """An epoch would repeat the one before, or two seeds give the same run."""
    indices = np.arange(10_000)
    keys = [*itertools.product((0, 1, 2), (0, 1, 2)), (2**31 - 1, 0)]
    found = np.stack([uniforms(seed, view, indices, 1)[:, 0] for seed, view in keys])
    assert np.abs(np.corrcoef(found) - np.eye(len(keys))).max() < 0.05
    assert len(np.unique(found)) == found.size
    # also shifted: view v + 1 must not be view v of the next image
    for a, b in itertools.permutations(found, 2):
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 0.05


def test_more_draws_leave_the_first_ones() -> None:
    """Adding a flip would change every crop, and what was kept of them."""
    indices = np.arange(100)
    assert np.array_equal(uniforms(1, 2, indices, 5)[:, :3], uniforms(1, 2, indices, 3))


def test_values_are_pinned() -> None:
    """What a frozen network said about a view, kept by an older version, would belong to another view."""
    assert np.allclose(uniforms(1, 2, np.array([3, 2**40]), 2), PINNED, rtol=0, atol=1e-15)


@given(seeds, views, st.integers(0, 2**40))
@quick
def test_image_seeds_fit_every_generator(seed: int, view: int, index: int) -> None:
    """numpy's or torch's generator would refuse the seed, in the middle of an epoch."""
    found = image_seed(seed, view, index)
    assert type(found) is int
    assert 0 <= found < 2**31
