"""Images without labels beside those of the fit split: a student learns from what its teacher says of them."""

from __future__ import annotations

import itertools
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kdcompress.data.find_images import images_below
from kdcompress.data.images import FileImages, ImageList, Paths, each_anew
from kdcompress.data.listing import Listing, state_of
from kdcompress.data.source import DataSource
from kdcompress.data.split_file import copies_of
from kdcompress.errors import UserError, usage_error

NONE = -1  # the label of an image that has none


@dataclass(frozen=True)
class Unlabelled:
    """Images of a folder.

    Attributes:
        images: In the order of their paths; all labels are -1.
        fingerprint: Changes when they do.
        notes: What was left out.
    """

    images: FileImages
    fingerprint: str
    notes: list[str]


@dataclass
class MixedImages:
    """Labelled images, and after them those without labels, as one list.

    Attributes:
        labels: [N + M], -1 for those without.
    """

    labelled: ImageList
    unlabelled: FileImages
    labels: np.ndarray

    @classmethod
    def of(cls, labelled: ImageList, unlabelled: FileImages) -> MixedImages:
        """The two as one."""
        return cls(labelled, unlabelled, np.concatenate([labelled.labels, unlabelled.labels]))

    @property
    def written(self) -> bytes:
        return self.labelled.written + self.unlabelled.written

    def image(self, index: int) -> Image.Image:
        part, own = self._at(index)
        return part.image(own)

    def name(self, index: int) -> str:
        part, own = self._at(index)
        return part.name(own)

    def anew(self) -> MixedImages:
        """The same, whose random transforms draw what the caller has seeded."""
        return MixedImages(each_anew(self.labelled), self.unlabelled, self.labels)

    def _at(self, index: int) -> tuple[ImageList, int]:
        count = len(self.labelled.labels)
        return (self.labelled, index) if index < count else (self.unlabelled, index - count)


def unlabelled_images(folder: str, source: DataSource) -> Unlabelled:
    """All images of a folder, whatever its subfolders, but for exact copies of labelled ones.

    A copy of a calibration or test image would be trained on, and thresholds and accuracy be too good.

    Args:
        source: The labelled images.

    Raises:
        UserError: There is no such folder, it has no images of its own, or the data are not images.
    """
    if source.is_raw:
        raise usage_error(f"--unlabelled needs images, and the inputs of {source.spec} are none.", "Leave it out.")
    if not os.path.isdir(folder):
        raise usage_error(f"--unlabelled {shlex.quote(folder)} is not a folder.", "Give a folder of images.")
    root = Path(os.path.abspath(folder))
    files, problems, notes = images_below(str(root))
    notes[:0] = [f"Notice: {problem}" for problem in problems]
    if not files:
        raise UserError(
            f"The folder {root} has no images.", "Give a folder with images in it, or leave out --unlabelled."
        )
    own = _not_copied(files, source)
    if copies := len(files) - len(own):
        which = "1 image is a copy of one" if copies == 1 else f"{copies} images are copies of some"
        notes.append(f"Notice: {which} of {source.spec}, and not used without a label ({root}).")
    if not own:
        raise UserError(f"All images of {root} are among those of {source.spec}.", "Leave out --unlabelled.")
    listing, count = Listing(), len(own)
    relative, states = [os.path.relpath(file, root) for file in own], [state_of(file) for file in own]
    labels = np.full(count, NONE, dtype=np.int64)
    images = listing.part("unlabelled", Paths(own), labels, relative, states, np.arange(count))
    return Unlabelled(images, listing.fingerprint(), notes)


def _not_copied(files: list[str], source: DataSource) -> list[str]:
    """The files that are no copies of labelled images, where those are files, too."""
    splits = [part for part in (source.train, source.test) if isinstance(part, FileImages)]
    copies = copies_of(itertools.chain.from_iterable(part.paths for part in splits), files)
    return [path for path in files if path not in copies]
