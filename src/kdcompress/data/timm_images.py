"""timm's map-style data sets (``hfds/NAME``), each index its own image."""

from __future__ import annotations

from typing import Any

from PIL import Image

from kdcompress.data.exif import upright
from kdcompress.data.images import decoding
from kdcompress.data.preprocess import with_channels


class EachItsOwn:
    """A timm ``ImageDataset`` that says which image cannot be read.

    timm gives the next image in its place: it would be learned under the label of the one before, and be seen twice.

    Attributes:
        reader: timm's; item -> (open file, label).
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        """An image in colour, as timm gives it but upright, and its label.

        Raises:
            OSError: The image cannot be read.
        """
        file, label = self.reader[index][:2]
        with file, decoding(), Image.open(file) as image:
            return with_channels(upright(image), 3), label
