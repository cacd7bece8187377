"""Images and folders of them, made for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

MakeFolder = Callable[..., Path]


def random_image(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    """Noise of (H, W), so that any two differ."""
    shape = (*size, 3) if mode in ("RGB", "P") else size
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    return image.quantize(64) if mode == "P" else image


def scene(seed: int) -> Image.Image:
    """Soft blobs, which resizing and JPEG keep, unlike noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
