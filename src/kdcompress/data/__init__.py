"""Data sets: where images come from, how they are divided, augmented and fed to a network."""

from kdcompress.data.batches import EvalBatches, StreamImages, TrainBatches
from kdcompress.data.prepared import Data, choose_channels, choose_size
from kdcompress.data.preprocess import InputAdapter, Preprocess, parse_size
from kdcompress.data.raw_batches import RawBatches
from kdcompress.data.source import DataSource
from kdcompress.data.sources import load_source
from kdcompress.data.split_file import SplitFile
from kdcompress.data.splits import spread
from kdcompress.data.unlabelled import unlabelled_images

__all__ = [
    "Data",
    "DataSource",
    "EvalBatches",
    "InputAdapter",
    "Preprocess",
    "RawBatches",
    "SplitFile",
    "StreamImages",
    "TrainBatches",
    "choose_channels",
    "choose_size",
    "load_source",
    "parse_size",
    "spread",
    "unlabelled_images",
]
