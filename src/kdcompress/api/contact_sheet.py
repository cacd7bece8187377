"""A contact sheet: images in rows of eight, each with the name of its class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

ROW, GAP = 8, 2
SHOWN_SIDE = 64  # pixels: smaller images are enlarged by a whole number, so that there is room for a name
TEXT, STRIP = 11, 15  # pixels: height of the letters, and of the strip that they stand in
GROUND, INK = 128, 255


def sheet(images: Tensor, names: Sequence[str]) -> np.ndarray:
    """One picture of many.

    Args:
        images: [N, C, H, W] in [0, 1], of 1 or 3 channels.
        names: [N], written below the images, and shortened to their width.

    Returns:
        ``uint8`` [H', W', 3].
    """
    times = max(1, -(-SHOWN_SIDE // images.shape[-1]))
    pixels = images.mul(255).round().clamp(0, 255).byte().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
    height, width = pixels.shape[1:3]
    columns = min(ROW, len(pixels))
    rows = -(-len(pixels) // columns)
    down, across = height + STRIP + GAP, width + GAP
    picture = Image.new("RGB", (columns * across + GAP, rows * down + GAP), (GROUND,) * 3)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    for number, (tile, name) in enumerate(zip(pixels, names, strict=True)):
        left, top = GAP + number % columns * across, GAP + number // columns * down
        picture.paste(Image.fromarray(tile), (left, top))
        draw.text((left + 1, top + height + 1), _fitted(name, width - 2, font), (INK,) * 3, font)
    return np.asarray(picture)


def _fitted(name: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """As much of a name as the width has room for; ``...`` says that more follows."""
    if font.getlength(name) <= width:
        return name
    kept = next((end for end in range(len(name), 0, -1) if font.getlength(f"{name[:end]}...") <= width), 0)
    return f"{name[:kept]}..."
