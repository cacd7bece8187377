"""A data set as its source offers it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kdcompress.data.flips import flips_confuse
from kdcompress.data.images import UNREADABLE, ImageList, TensorItems
from kdcompress.data.split_file import SplitFile
from kdcompress.data.splits import DIVISION
from kdcompress.errors import UserError
from kdcompress.schema import MAX_CHANNELS, MAX_SIDE

DATA_DIR = "data"  # of named data sets, unless --data-dir says where
BLACK = 2**8
DARK = 2**14  # a 16-bit image that never reaches a quarter of its range comes from fewer bits, or is underexposed


@dataclass
class DataSource:
    """A data set as its source offers it.

    Attributes:
        train, test: The splits; ``test`` is None where the source has none.
        class_names: In label order, where known.
        channels: 1 for grey, 3 for colour.
        size: (H, W) of the images where a sample of them agrees, else None.
        side: The longer side of the sample's images, in pixels: their median.
        flip: False where mirrored images are known to belong to other classes; see :attr:`why_not_flipped`.
        fingerprint: Changes when the data do.
        former: The fingerprint that earlier versions gave the same training images, if it is another.
        notes, first_notes: What was assumed or left out when the source was opened; the latter is of interest only to
            the first command of a chain. :meth:`tell` says each once.
        split: Which images are for training and which for testing, where the source itself does not say.
        agreement: Whether labels are a teacher's answers, so that accuracy is agreement with it.
        groups: [N] a number that training images which are copies of each other share; None where none are known.
    """

    spec: str
    train: ImageList
    test: ImageList | None
    num_classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    flip: bool = True
    former: str | None = None
    notes: list[str] = field(default_factory=list)
    first_notes: list[str] = field(default_factory=list)
    split: SplitFile | None = None
    groups: np.ndarray | None = None
    agreement: bool = False
    channels: int = field(init=False)
    size: tuple[int, int] | None = field(init=False)
    side: int = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.train, TensorItems):
            _, self.channels, height, width = self.train.inputs.shape
            if self.channels > MAX_CHANNELS or max(height, width) > MAX_SIDE:  # no run could be read again
                problem = f"The inputs of {self.spec} are {self.channels}x{height}x{width}."
                raise UserError(problem, f"At most {MAX_CHANNELS} channels and {MAX_SIDE} values a side can be used.")
            self.size, self.side = (height, width), max(height, width)
        else:
            shown = self.train if len(self.train.labels) or self.test is None else self.test
            looked_at = _look_at(shown)
            self.channels, self.size, self.side = looked_at.channels, looked_at.size, looked_at.side
            if 0 <= looked_at.brightest < BLACK:
                problem = (
                    f"The 16-bit images of {self.spec} have no value above {looked_at.brightest}: all would be black."
                )
                raise UserError(problem, "Convert them to 8 bits, or scale them to 16.")
            if BLACK <= looked_at.brightest < DARK:
                self.first_notes.append(
                    f"The brightest pixel of a sample of the 16-bit images is {looked_at.brightest} of 65535: they are "
                    "dark, and lose detail in 8 bits. If your camera has fewer bits, scale its images to 16 first."
                )

    def tell(self, note: Callable[[str], None]) -> None:
        """Say the notes that have not been said yet."""
        for notes in (self.notes, self.first_notes):
            while notes:
                note(notes.pop(0))

    @property
    def division(self) -> int | None:
        """The rule by which images that have copies are divided into fit and calibration; None where none have."""
        return None if self.groups is None else DIVISION

    @functools.cached_property
    def why_not_flipped(self) -> str:
        """The reason why images should not be mirrored for training, or nothing."""
        if not self.flip:
            return "mirrored images belong to other classes"
        if self.channels == 1:  # scans, characters, medical images: left and right often mean something (our choice)
            return "the images are grey"
        return "mirrored images look like other classes" if flips_confuse(self.train) else ""

    @property
    def is_raw(self) -> bool:
        """Whether the inputs are not images; a network gets them as they are."""
        return isinstance(self.train, TensorItems)


class _LookedAt(NamedTuple):
    """Of a sample of the images: as in :class:`DataSource`, and the largest value of 16-bit ones, else -1."""

    channels: int
    size: tuple[int, int] | None
    side: int
    brightest: int


def _look_at(images: ImageList, sample: int = 64) -> _LookedAt:
    """Look at a sample of the images; reading a split names those that cannot be read."""
    modes, sizes, brightest = set(), [], -1
    for index in np.unique(np.linspace(0, len(images.labels) - 1, sample if len(images.labels) else 0).astype(int)):
        try:
            image = images.image(int(index))
            if image.mode.startswith("I"):
                values = np.asarray(image)
                if values.min(initial=0) >= 0:  # else the image is refused where it is read
                    brightest = max(brightest, int(values.max(initial=0)))
        except UNREADABLE:
            continue
        modes.add(image.mode)
        sizes.append((image.height, image.width))
    grey = all(mode in ("1", "L", "F") or mode.startswith("I") for mode in modes)
    alike = sizes[0] if len(set(sizes)) == 1 else None
    side = int(np.median([max(size) for size in sizes])) if sizes else 0
    return _LookedAt(1 if modes and grey else 3, alike, side, brightest)
