"""Images that show the same: saved again, resized, or brightened; found by small grey pictures of them (our choice).

A picture of 18 x 16 pixels gives a hash of 64 bits: whether each cell of 9 x 8 is brighter than its left neighbour. Two
images are near copies if their hashes differ in six bits at most, and their pictures correlate by 0.98. Images without
contrast, such as blank scans, have no such hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from kdcompress.data.exif import upright
from kdcompress.data.images import UNREADABLE, decoding
from kdcompress.digests import check_plain
from kdcompress.threads import share

WIDTH, HEIGHT = 18, 16  # of the pictures; a cell of the hash is 2 x 2 of their pixels
LEAST_CONTRAST = 4.0  # standard deviation, of 255 grey levels
MOST_BITS, LEAST_CORRELATION, PARTS = 6, 0.98, 8
NEIGHBOURS = 32  # that an image is compared with, of those that share two of eight parts of its hash
MOST_FILES = 200_000  # more take too long to read before the training begins
AT_ONCE = 64
FEW = 10


def near_copies(files: Sequence[str], groups: Sequence[int]) -> list[int]:
    """Groups of near copies, joined from groups of exact ones.

    Takes one reduced decoding of each image, by as many threads as there are cores, and no step that grows faster than
    the sort of N numbers.

    Args:
        files: Paths.
        groups: For each file the index of the first exact copy.

    Returns:
        For each file the index of the first one of its group.
    """
    distinct = np.flatnonzero(np.asarray(groups) == np.arange(len(files)))
    pictures, readable = _pictures([files[index] for index in distinct.tolist()])
    kept = readable & (pictures.std(axis=1) >= LEAST_CONTRAST)
    distinct, pictures = distinct[kept], pictures[kept]
    hashes = _hashes(pictures)
    first = list(range(len(files)))
    for some, others in _alike(hashes):
        near = _correlations(pictures[some], pictures[others]) >= LEAST_CORRELATION
        for one, other in zip(distinct[some[near]].tolist(), distinct[others[near]].tolist(), strict=True):
            _join(first, one, other)
    return [_root(first, group) for group in groups]


def implausible(groups: Sequence[int], labels: np.ndarray) -> set[int]:
    """Groups that hold more than half of a class: its images look alike, as those of a fixed camera do.

    Args:
        groups: [N] as :func:`near_copies` gives them.
        labels: [N] class of each image.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    counts = np.bincount(labels)
    large = numbers[sizes > FEW].tolist()
    of_image = np.asarray(groups)
    members = {group: np.bincount(labels[of_image == group], minlength=len(counts)) for group in large}
    return {group for group, taken in members.items() if (2 * taken > np.maximum(counts, FEW)).any()}


def _pictures(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Grey pictures, float32 [N, H * W], and which of the files could be read, bool [N]."""
    chunks = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    pictures = np.zeros((len(files), WIDTH * HEIGHT), dtype=np.uint8)
    readable = np.zeros(len(files), dtype=bool)
    with ThreadPoolExecutor(min(share(), 8)) as threads:  # Pillow decodes without the interpreter's lock
        for index, picture in enumerate(itertools.chain.from_iterable(threads.map(_read, chunks))):
            if picture is not None:
                pictures[index], readable[index] = picture, True
    return pictures.astype(np.float32), readable


def _read(files: Sequence[str]) -> list[np.ndarray | None]:
    return [_picture(file) for file in files]


def _picture(file: str) -> np.ndarray | None:
    """The grey picture of an image, uint8 [H * W]; None if it cannot be read, which reading the split names."""
    try:
        check_plain(file)
        with decoding(), Image.open(file) as image:
            image.draft("L", (2 * WIDTH, 2 * HEIGHT))  # of a JPEG only as many pixels as are needed
            grey = upright(image).convert("L")
            return np.asarray(grey.resize((WIDTH, HEIGHT), Image.Resampling.BOX)).reshape(-1)
    except UNREADABLE:
        return None


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """64 bits of each picture, uint64 [N]."""
    cells = pictures.reshape(-1, HEIGHT // 2, 2, WIDTH // 2, 2).mean(axis=(2, 4))
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(-1, 64)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).reshape(-1)


def _alike(hashes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices of hashes that differ in a few bits: then two of their eight parts are equal."""
    parts = hashes.view(np.uint8).reshape(-1, PARTS)
    for one, other in itertools.combinations(range(PARTS), 2):
        keys = parts[:, one].astype(np.uint16) << 8 | parts[:, other]
        order = np.lexsort((hashes, keys))
        keys = keys[order]
        for step in range(1, min(NEIGHBOURS, len(keys) - 1) + 1):
            same = keys[step:] == keys[:-step]
            if not same.any():
                break
            some, others = order[:-step][same], order[step:][same]
            differing = np.ascontiguousarray(hashes[some] ^ hashes[others])
            close = np.unpackbits(differing.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= MOST_BITS
            yield some[close], others[close]


def _correlations(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's of the rows of two matrices: [N]."""
    some, others = (rows - rows.mean(axis=1, keepdims=True) for rows in (some, others))
    return (some * others).mean(axis=1) / (some.std(axis=1) * others.std(axis=1))


def _root(first: list[int], index: int) -> int:
    while first[index] != index:
        first[index] = first[first[index]]
        index = first[index]
    return index


def _join(first: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(first, one), _root(first, other)))
    first[high] = low
