"""The images on which an exported file is verified, and quantized."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcompress.api.fitting import check_classes, check_images, open_data
from kdcompress.api.inputs import note_assumed, settle_input
from kdcompress.data import Data, DataSource, EvalBatches, Preprocess, RawBatches
from kdcompress.data.splits import spread
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError
from kdcompress.models.loading import Network
from kdcompress.options import ExportOptions
from kdcompress.references import UNLABELLED

RANDOM = 64  # images, where there are no others


def _is_here(spec: str) -> bool:
    """Whether data may be on this machine: all but a folder or file that is not."""
    place = spec.removeprefix(UNLABELLED)
    return not os.path.isabs(place) or os.path.exists(place)


def _loaded(batches: EvalBatches, chosen: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """The images at these positions of a split, and their labels, in batches."""
    size = batches.batch_size
    return batches.load([chosen[start : start + size] for start in range(0, len(chosen), size)])


@dataclass(frozen=True)
class CalibrationImages:
    """The calibration split; random images if neither the network nor the user names data.

    Attributes:
        source: None for random images.
        prep: How images are preprocessed.
        batches: Of (images [B, C, H, W], labels [B]).
        data: None for random images.
    """

    source: DataSource | None
    prep: Preprocess
    batches: EvalBatches | list[tuple[Tensor, Tensor]]
    data: Data | None = None

    @classmethod
    def of(
        cls, network: Network, options: ExportOptions, reporter: Reporter, *, needed: bool = True
    ) -> CalibrationImages:
        """Open the calibration split of the data that the options name.

        Args:
            needed: Whether random images would not do where the data are not here.

        Raises:
            UserError: The data cannot be opened, or do not fit the network.
        """
        if options.data is None:
            return cls._random(network, f"{network.reference} names no data", reporter)
        try:
            source = open_data(options, network)
        except UserError as error:
            if not needed and not _is_here(options.data):
                return cls._random(network, error.problem.rstrip("."), reporter)
            remedy = f"{error.remedy} The file is verified on calibration images; --data says where they are.".strip()
            raise UserError(error.problem, remedy, exit_code=error.exit_code) from error
        check_classes(network, source, "network")
        settle_input(network, source, options, reporter.note, "--arch")
        check_images(network, source, options, "calibration", "network")
        data = Data(source, network.prep, options, torch.device("cpu"), note=reporter.note)
        return cls(source, data.prep, data.evaluation("calibration", options.batch_size), data)

    @classmethod
    def _random(cls, network: Network, why: str, reporter: Reporter) -> CalibrationImages:
        reporter.note(f"Notice: {why}, so the file is verified on random images; --data verifies it on real ones.")
        note_assumed(network, reporter.note, "--arch")
        noise = torch.randn(RANDOM, *network.input_size, generator=torch.Generator().manual_seed(0))
        return cls(None, network.prep, [(noise, torch.zeros(RANDOM, dtype=torch.long))])

    def __len__(self) -> int:
        return RANDOM if isinstance(self.batches, list) else len(self.batches.images.ids)

    def __str__(self) -> str:
        return "calibration images" if self.source is not None else "random images"

    def some(self, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most so many of them, from all over the split, in batches."""
        if isinstance(self.batches, list):
            return iter(self.batches)
        return _loaded(self.batches, self._chosen(most))

    def of_training(self, most: int) -> Iterator[Tensor]:
        """At most so many images of the fit split, of all classes, in batches."""
        assert self.data is not None
        assert not isinstance(self.batches, list)
        each = -(-most // self.data.source.num_classes)
        batches = self.data.evaluation("fit", self.batches.batch_size, each)
        return (x for x, _ in _loaded(batches, spread(len(batches.images.ids), most)))

    @property
    def groups(self) -> Tensor | None:
        """[N] a number that copies among them share; None where no copies are known."""
        if self.data is None or isinstance(self.batches, list):
            return None
        return self.data.groups_of(self.batches.images.ids)

    def as_read(self, most: int) -> RawBatches:
        """The same before preprocessing; not of random images."""
        assert self.source is not None
        assert not isinstance(self.batches, list)
        ids = self.batches.images.ids[self._chosen(most)]
        return RawBatches(self.source.train, ids, self.prep.channels, self.batches.batch_size)

    def _chosen(self, most: int) -> np.ndarray:
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(int))
