"""Whether a mirrored image still looks like one of its class: a short look at the images themselves."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from kdcompress.data.images import UNREADABLE, ImageList
from kdcompress.data.splits import rank_in_class

SIDE = 16
MOST = 600  # images that are read: each command that trains pays for them
PER_CLASS = 60
LOST, SURE = 0.25, 3.0  # share of the accuracy above chance, and standard errors


def flips_confuse(images: ImageList) -> bool:
    """Whether mirrored images are taken for other classes: digits, letters, arrows, hands.

    Our choice: thumbnails are classified by the nearest mean of their class. On images that the means were not made
    from, mirroring must cost at least a quarter of the accuracy above chance, by three standard errors (McNemar). Where
    the means tell classes apart no better than chance, the answer is no.
    """
    thumbnails, labels, is_first = _sample(images)
    classes = np.unique(labels[is_first])
    scored = ~is_first & np.isin(labels, classes)
    if len(classes) < 2 or not scored.any():
        return False
    means = np.stack([thumbnails[is_first & (labels == each)].mean(0) for each in classes])
    plain, mirrored = thumbnails[scored], thumbnails[scored].reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE**2)
    right, still_right = (_nearest(means, each, classes) == labels[scored] for each in (plain, mirrored))
    lost, won = int((right & ~still_right).sum()), int((still_right & ~right).sum())
    above_chance = right.mean() - 1 / len(classes)
    return bool((lost - won) / len(plain) >= LOST * above_chance > 0 and lost - won > SURE * math.sqrt(lost + won))


def _sample(images: ImageList) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thumbnails [N, SIDE * SIDE] of mean 0 and contrast 1, labels [N], and which of them the means are made from."""
    rank = rank_in_class(images.labels)
    per_class = min(PER_CLASS, max(2, MOST // max(len(np.unique(images.labels)), 1)))
    chosen = np.flatnonzero(rank < per_class)
    chosen = chosen[:MOST]
    thumbnails, kept = [], []
    for index in chosen:
        try:
            image = images.image(int(index)).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        except UNREADABLE:  # met, and named, where it is trained on
            continue
        pixels = np.asarray(image, dtype=np.float64).ravel()
        thumbnails.append((pixels - pixels.mean()) / max(float(pixels.std()), 1.0))
        kept.append(index)
    kept_array = np.asarray(kept, dtype=np.int64)
    pixels_array = np.stack(thumbnails) if thumbnails else np.empty((0, SIDE**2))
    return pixels_array, images.labels[kept_array], rank[kept_array] % 2 == 0


def _nearest(means: np.ndarray, thumbnails: np.ndarray, classes: np.ndarray) -> np.ndarray:
    distances = (means**2).sum(1) - 2 * thumbnails @ means.T
    return classes[distances.argmin(1)]
