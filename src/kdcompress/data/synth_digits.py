"""``synth-digits:K``: pictures of the numbers 0 to K - 1, one class each, drawn on demand.

A data set with as many classes as one likes that costs nothing: the synthesized set of LW-KD (arXiv 2005.09163). The
paper gives the idea; how the numbers are drawn is our choice.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from kdcompress.data.augment import uniforms
from kdcompress.errors import usage_error

NAME = "synth-digits"
MAX_CLASSES, MAX_IMAGES = 100_000, 1_000_000_000
PER_CLASS, LEAST, MOST = 200, 10_000, 100_000  # training images, where the user does not say
GLYPH = 28  # pixels: height of the font that is drawn, before it is scaled into the image
STROKES = 3


@dataclass(frozen=True)
class SynthDigits:
    """What ``synth-digits:K,n=20000,size=32,seed=0`` says.

    Attributes:
        classes: K.
        n: Training images; a fifth as many are the test split, at least one a class.
        size: Side of an image in pixels.
    """

    classes: int
    n: int
    size: int = 32
    seed: int = 0

    @classmethod
    def parse(cls, spec: str) -> SynthDigits:
        """Read a spec.

        Raises:
            UserError: K or a value out of range, or a key that does not exist.
        """
        first, *pairs = spec.removeprefix(f"{NAME}:").split(",")
        example = f"Write it like {NAME}:100,n=20000,size=32,seed=0."
        try:
            classes = int(first)
            given = {key: int(value) for key, value in (pair.split("=") for pair in pairs)}
            if len(given) < len(pairs):
                raise ValueError(spec)
        except ValueError:
            raise usage_error(f"{spec!r} cannot be read.", example) from None
        if odd := sorted(given.keys() - {"n", "size", "seed"}):
            raise usage_error(f"{NAME} has no {odd[0]}.", example)
        if not 2 <= classes <= MAX_CLASSES:
            raise usage_error(f"{NAME} has no {classes} classes.", f"It takes 2 to {MAX_CLASSES}.")
        made = cls(classes, **{"n": max(min(max(LEAST, PER_CLASS * classes), MOST), 2 * classes), **given})
        if made.n < 2 * classes:
            raise usage_error(f"n={made.n} is too few for {classes} classes.", f"Give two a class: n={2 * classes}.")
        if not 8 <= made.size <= 512 or not 0 <= made.seed < 2**31 or made.n > MAX_IMAGES:
            remedy = f"size is 8 to 512 pixels, seed 0 to {2**31 - 1}, n at most {MAX_IMAGES}."
            raise usage_error(f"{spec!r} is out of range.", remedy)
        return made

    def __str__(self) -> str:
        return f"{NAME}:{self.classes},n={self.n},size={self.size},seed={self.seed}"

    def train(self) -> SynthImages:
        """The ``n`` images of the training split."""
        return SynthImages(self, 0, self.n)

    def test(self) -> SynthImages:
        """The test split: a fifth as many, at least one per class."""
        return SynthImages(self, self.n, max(self.n // 5, self.classes))


@dataclass
class SynthImages:
    """A stretch of the images without end; each a pure function of (seed, its number).

    Attributes:
        first: Number of the first one.
        count: N.
        labels: [N] int64, the classes in turn.
    """

    spec: SynthDigits
    first: int
    count: int
    labels: np.ndarray = field(init=False)

    written: ClassVar[bytes] = b""

    def __post_init__(self) -> None:
        self.labels = np.arange(self.first, self.first + self.count, dtype=np.int64) % self.spec.classes

    def image(self, index: int) -> Image.Image:
        spec = self.spec
        return draw(int(self.labels[index]), len(str(spec.classes - 1)), spec.size, spec.seed, self.first + index)

    def name(self, index: int) -> str:
        return f"image {index} of {self.spec}"


def draw(number: int, digits: int, size: int, seed: int, index: int) -> Image.Image:
    """A grey image of a number under random rotation, shear, scale, shift, thickness, blur, contrast and noise.

    Args:
        number: With leading zeros where it has fewer ``digits``.
        size: Side in pixels.
        seed, index: All that chance depends on.
    """
    chance = uniforms(seed, 0, np.array([index]), 11)[0]

    def between(position: int, low: float, high: float) -> float:
        return float(low + (high - low) * chance[position])

    glyphs = [_glyph(int(digit), int(chance[0] * STROKES)) for digit in f"{number:0{digits}d}"]
    text = np.concatenate(glyphs, axis=1)
    height, width = text.shape
    share = between(1, 0.7, 0.95)  # of the image's side that the text takes
    scale, room = max(width, height) / (share * size), (1 - share) / 2
    stretch = between(2, 0.8, 1.25)
    angle, shear = between(3, -0.2, 0.2), between(4, -0.3, 0.3)
    # the inverse map, as Pillow wants it: from pixels of the image, seen from its centre, to those of the text
    rotated = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = rotated @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([scale, scale * stretch])
    centre = size * np.array([0.5 + between(5, -room, room), 0.5 + between(6, -room, room)])
    offset = np.array([width / 2, height / 2]) - matrix @ centre
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    image = Image.fromarray(text).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    blurred = image.filter(ImageFilter.GaussianBlur(between(7, 0, 0.04) * height / scale))
    ground, ink = between(8, 0.0, 0.35), between(9, 0.65, 1.0)
    pixels = ground + (ink - ground) * (np.asarray(blurred, dtype=np.float32) / 255)
    noise = np.random.Generator(np.random.PCG64((seed, index))).standard_normal((size, size), dtype=np.float32)
    pixels += between(10, 0.0, 0.1) * noise
    return Image.fromarray((pixels * 255).clip(0, 255).round().astype(np.uint8))


@functools.lru_cache(maxsize=10 * STROKES)
def _glyph(digit: int, stroke: int) -> np.ndarray:
    """A digit in white on black [H, W], of one height whatever the digit."""
    font = ImageFont.load_default(GLYPH)
    left, top, right, bottom = font.getbbox("0123456789", stroke_width=STROKES)
    image = Image.new("L", (round((right - left) / 10) + 2, round(bottom - top) + 2))
    middle, base = image.width / 2, 1 - top
    ImageDraw.Draw(image).text((middle, base), str(digit), 255, font, anchor="ma", stroke_width=stroke)
    return np.asarray(image)
