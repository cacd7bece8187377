"""``predict`` by a file that ``export`` wrote: ONNX Runtime in place of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.data.preprocess import check_image_channels
from kdcompress.export.onnx_network import OnnxNetwork


class ExportedClassifier:
    """A :class:`~kdcompress.api.classifier.Classifier` that runs an exported file.

    A file with preprocessing in its graph gets images of any size as they are; those of one size run together.
    """

    path: Path | None = None  # it is in no run folder

    def __init__(self, network: OnnxNetwork) -> None:
        facts = network.facts
        self.network, self.prep, self.is_raw = network, network.prep, facts["preprocess"]
        self.channels, self.num_classes, self.labels = self.prep.channels, network.num_classes, network.class_names
        check_image_channels(network.reference, self.channels)
        self.stages = len(facts["members"] or ()) if facts["gate"] is not None else 0
        resized: Callable[[Image.Image], np.ndarray] = self.prep.eval_transform()
        self.prepare = self._as_it_is if self.is_raw else resized

    def classify(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """As in the protocol: logits [B, K], and the last stage [B] that each image ran, if gated."""
        logits = np.empty((len(images), self.num_classes), np.float32)
        exits = np.empty(len(images), np.int64)
        for at in _by_shape(images):
            batch = np.stack([images[index] for index in at])
            if not self.is_raw:
                batch = self.prep.normalized(torch.from_numpy(batch)).numpy()
            logits[at], exits[at] = self.network.run(batch)
        return torch.from_numpy(logits), torch.from_numpy(exits) if self.stages else None

    def _as_it_is(self, image: Image.Image) -> np.ndarray:
        """uint8 [H, W, C]."""
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _by_shape(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of the images of each shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(image.shape, []).append(index)
    return list(groups.values())
