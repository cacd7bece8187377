"""A network as ``predict`` uses it, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.api.check import check_exported
from kdcompress.api.exported_classifier import ExportedClassifier
from kdcompress.api.inputs import note_assumed
from kdcompress.engine.distributed import Place
from kdcompress.export.onnx_network import is_onnx, open_onnx
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import PredictOptions


class Classifier(Protocol):
    """From images to logits.

    Attributes:
        path: The run folder, or None.
        channels: Of the images that it takes: 1 or 3.
        num_classes: K.
        labels: Names of the classes in logit order, where known.
        stages: How many stages it has if it is gated, else 0.
    """

    path: Path | None
    channels: int
    num_classes: int
    labels: tuple[str, ...] | None
    stages: int

    def prepare(self, image: Image.Image) -> np.ndarray:
        """One image, in grey or colour, as :meth:`classify` takes it; called by several threads."""

    def classify(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """Prepared images to logits [B, K], float32 on the CPU, and the last stage [B] that each one ran, if gated."""


class TorchClassifier:
    """A network in PyTorch, run as ``eval`` runs it."""

    def __init__(self, network: Network, place: Place) -> None:
        self.prep, self.place = network.image_prep(), place
        self.path, self.channels, self.labels = network.path, self.prep.channels, network.labels
        self.num_classes = network.num_classes
        self.prepare: Any = self.prep.eval_transform()
        model = for_inference(network.model, place.device)
        self.gated = model if isinstance(model, Staged) and model.gate is not None else None
        self.stages = len(self.gated.stages()) if self.gated is not None else 0
        self.model = model

    def classify(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        """As in the protocol: logits [B, K], and the last stage [B] that each image ran, if gated."""
        pixels = torch.from_numpy(np.stack(images)).to(self.place.device)
        x = self.prep.normalized(pixels).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), self.place.autocast():
            if self.gated is None:
                return self.model(x).float().cpu(), None
            logits, stopped = self.gated.forward_gated(x)
            return logits.float().cpu(), stopped.cpu()


def open_classifier(reference: str, options: PredictOptions, place: Place, note: Callable[[str], None]) -> Classifier:
    """The network of any reference that ``eval`` takes; of an exported file, by ONNX Runtime on the CPU.

    Args:
        note: Receives what is assumed of its input.

    Raises:
        UserError: As :func:`~kdcompress.models.loading.load_network`, or it takes other inputs than images.
    """
    if is_onnx(reference):
        check_exported(options, "arch", "weights_key")
        return ExportedClassifier(open_onnx(reference, torch.get_num_threads()))
    network = load_network(reference, options.arch, key=options.weights_key, note=note)
    note_assumed(network, note, "--arch")
    return TorchClassifier(network, place)
