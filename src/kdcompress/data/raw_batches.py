"""Images as they are read, for networks that resize and normalise them themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcompress.data.images import ImageList
from kdcompress.data.preprocess import read_image


@dataclass(frozen=True)
class RawBatches:
    """uint8 [B, H, W, C] and labels [B]; neighbours of one size come together, up to ``batch_size`` of them.

    Attributes:
        ids: Which images, as indices.
    """

    images: ImageList
    ids: np.ndarray
    channels: int
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises:
        UserError: An image that cannot be read.
        """
        waiting: list[np.ndarray] = []
        first = 0
        for position, index in enumerate(self.ids):
            pixels = np.asarray(read_image(self.images, int(index), self.channels))
            pixels = pixels.reshape(*pixels.shape[:2], self.channels)
            if waiting and (len(waiting) == self.batch_size or pixels.shape != waiting[0].shape):
                yield self._batch(waiting, first)
                waiting, first = [], position
            waiting.append(pixels)
        if waiting:
            yield self._batch(waiting, first)

    def _batch(self, pixels: list[np.ndarray], first: int) -> tuple[Tensor, Tensor]:
        labels = self.images.labels[self.ids[first : first + len(pixels)]]
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels)
