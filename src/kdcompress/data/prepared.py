"""A data source prepared for the input of a network: divided, read, augmented, in batches."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kdcompress.data.batches import (
    EvalBatches,
    Images,
    MemoryTensors,
    StreamImages,
    TrainBatches,
    find_bad,
    find_good,
    load_into_memory,
)
from kdcompress.data.images import FileImages, ImageList, TensorItems
from kdcompress.data.preprocess import NAMED, Preprocess, bad_image, parse_size, read_image
from kdcompress.data.source import DataSource
from kdcompress.data.splits import fit_calibration, rank_in_class
from kdcompress.data.unlabelled import NONE, MixedImages, Unlabelled
from kdcompress.errors import UserError, usage_error
from kdcompress.options import DataOptions
from kdcompress.threads import share

HOLDOUT = 0.1


SMALL_SIDE = 64
MAX_MEMORY_BYTES = 512 * 2**20
# images from which on random resized crops serve better than shifted ones, and as small ones as ImageNet's (our choice)
FEW, MANY = 20_000, 200_000
MILD_SCALE, FULL_SCALE = (0.35, 1.0), (0.08, 1.0)  # share of the image that a crop shows


@dataclass
class Data:
    """A data source prepared for the input of a network.

    Attributes:
        prep: What batches are made for.
        note: Receives what was assumed about the source, and which images are left out, once per split.
        unlabelled: Images without labels, which the fit split has at its end; their labels are -1.
        holdout: Share of the training split that is the calibration split.
        left_out: Images of each split that cannot be read, as far as it was read.
        good: Indices of those that can be read, by split and number of images, where a pass was made to know.
    """

    source: DataSource
    prep: Preprocess
    options: DataOptions
    device: torch.device
    rank: int = 0
    world: int = 1
    note: Callable[[str], None] | None = None
    noted: set[str] = field(default_factory=set)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    good: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    unlabelled: Unlabelled | None = None

    def __post_init__(self) -> None:
        if self.source.size == self.prep.size:  # images made for this size: to enlarge and crop them would only harm
            self.prep = dataclasses.replace(self.prep, crop_pct=1.0)
        if self.note is not None:
            self.source.tell(self.note)

    @property
    def holdout(self) -> float:
        """Share of the training split that is for calibration."""
        return self.options.holdout or HOLDOUT

    @property
    def workers(self) -> int:
        """Processes that read images."""
        if self.options.workers is not None:
            return self.options.workers
        return min(share(), 8)

    def groups_of(self, ids: np.ndarray) -> torch.Tensor | None:
        """[N] a number that copies among training images of these ids share; None where no copies are known."""
        return None if self.source.groups is None else torch.from_numpy(self.source.groups[ids])

    def fit_size(self) -> int:
        """Number of images in the fit split."""
        return len(self._select("fit")[1])

    @property
    def streams(self) -> bool:
        """Whether the images of the fit split are read again for every epoch."""
        images, indices = self._select("fit")
        return not isinstance(images, TensorItems) and not self._fits(len(indices))

    def seconds_to_read(self, photos: int = 24) -> float:
        """Seconds per image of reading and augmenting images from the disk, by all workers; 0 where they are in memory.

        Args:
            photos: From all over the fit split, that are read.
        """
        if not self.streams:
            return 0.0
        images, indices = self._select("fit")
        transform, times = _stream_transform(self.prep, "rrc-flip", len(indices)), list[float]()
        for index in indices[np.linspace(0, len(indices) - 1, min(photos, len(indices))).astype(int)]:
            began = time.perf_counter()
            with contextlib.suppress(UserError):  # a bad image is told when it is met
                transform(read_image(images, int(index), self.prep.channels))
                times.append(time.perf_counter() - began)
        return statistics.median(times) / max(self.workers, 1) if times else 0.0

    def usable(self, split: str) -> int:
        """How many images of a split are used: all, or with ``--skip-bad-images`` those that can be read."""
        images, indices = self._select(split)
        if not self.options.skip_bad_images or isinstance(images, TensorItems):
            return len(indices)
        kept = self._good(split, images, indices)
        self._tell_left_out(split, images, indices, kept)
        return len(kept)

    def training(
        self,
        batch_size: int,
        seed: int,
        augment: str,
        per_class: int | None = None,
        *,
        mild: bool = False,
        chosen: np.ndarray | None = None,
    ) -> TrainBatches:
        """The fit split, shuffled and augmented.

        Args:
            per_class: Only the first so many images of each class.
            mild: Whether ``auto`` leaves crops out.
            chosen: Positions in the split of the images to train on; None for all.

        Raises:
            UserError: An augmentation that this kind of loading does not offer, or an unreadable image.
        """
        images = self._images("fit", per_class)
        in_memory = not isinstance(images, StreamImages)
        if isinstance(images, MemoryTensors):
            if augment not in ("auto", "none"):
                raise usage_error(
                    f"--augment {augment} needs images.", f"The inputs of {self.source.spec} are not images."
                )
            augment = "none"
        if augment == "auto":
            augment = self._suitable(in_memory, mild)
        if augment == "rrc-flip" and in_memory:
            remedy = "Add --loading stream, or use --augment crop-flip."
            raise usage_error("--augment rrc-flip needs the full images, but these are held in memory.", remedy)
        transform = None if in_memory else _stream_transform(self.prep, augment, self.fit_size())
        return TrainBatches(images, batch_size, seed, augment, transform, self.rank, self.world, chosen)

    def _suitable(self, in_memory: bool, mild: bool) -> str:
        """The augmentation that suits the images."""
        few = in_memory or self.fit_size() < FEW
        if why := self.source.why_not_flipped:
            if self.source.flip:  # not known beforehand
                self._say("augment", f"Augmentation without flips: {why} (--augment crop-flip mirrors them)")
            return "none" if mild and few else "crop"
        if not few:
            return "rrc-flip"
        return "flip" if mild else "crop-flip"

    def _say(self, key: str, text: str) -> None:
        """A notice, once."""
        if self.note is not None and key not in self.noted:
            self.noted.add(key)
            self.note(text)

    def alone(self) -> Data:
        """The same for a process that reads all images, whatever the others do."""
        return dataclasses.replace(self, rank=0, world=1)

    def evaluation(self, split: str, batch_size: int, per_class: int | None = None) -> EvalBatches:
        """A split (``fit``, ``calibration`` or ``test``) as it is.

        Args:
            per_class: Only the first so many images of each class.

        Raises:
            UserError: The source has no test split, or an unreadable image.
        """
        return EvalBatches(self._images(split, per_class), batch_size, self.rank, self.world)

    def _images(self, split: str, per_class: int | None = None) -> Images:
        images, indices = self._select(split)
        if per_class is not None:
            indices = indices[rank_in_class(images.labels[indices]) < per_class]
        if isinstance(images, TensorItems):
            return MemoryTensors.of(images, indices, self.device)
        wanted = indices
        loaded: Images
        if self._fits(len(indices)):
            skip_bad, workers = self.options.skip_bad_images, self.workers
            try:
                loaded = load_into_memory(images, indices, self.prep, self.device, workers=workers, skip_bad=skip_bad)
            except UserError as error:
                raise self._bad_images(split) or error from None
        else:
            if self.options.skip_bad_images:
                indices = self._good(split, images, indices)
            loaded = StreamImages(images, indices, self.prep, self.device, self.workers)
        self._tell_left_out(split, images, wanted, loaded.ids)
        if not len(wanted):
            remedy = "A class needs three images or more: one to train on, one to calibrate on, one to test on."
            raise UserError(f"The {split} split of {self.source.spec} is empty.", remedy)
        if not len(loaded.ids):
            remedy = "Two images a class or more are needed, in a format that Pillow reads."
            raise UserError(f"The {split} split of {self.source.spec} has no image that can be read.", remedy)
        return loaded

    def _good(self, split: str, images: ImageList, indices: np.ndarray) -> np.ndarray:
        """Those of the indices whose images can be read, after a pass over all of them, once."""
        key = split, len(indices)
        if key not in self.good:
            self.good[key] = find_good(images, indices, self.prep.channels, self.workers)
        return self.good[key]

    def _fits(self, count: int) -> bool:
        """Whether so many images are kept in memory."""
        height, width = self.prep.size
        small = max(height, width) <= SMALL_SIDE and count * height * width * self.prep.channels <= MAX_MEMORY_BYTES
        return self.options.loading == "memory" or (self.options.loading == "auto" and small)

    def _bad_images(self, split: str) -> UserError | None:
        """The error that names the unreadable images of all splits, those of ``split`` first."""
        others = ["fit", "calibration"] if len(self.source.train.labels) else []
        others += ["test"] if self.source.test is not None else []
        problems: list[str] = []
        for name in dict.fromkeys([split, *others]):
            images, indices = self._select(name)
            if not isinstance(images, TensorItems):
                where = (
                    "" if name != "test" or isinstance(images, FileImages) else "test "
                )  # numbers count from 0 again
                bad = find_bad(images, indices, self.prep.channels, self.workers)
                problems += [where + problem for problem in bad.values()]
        return bad_image(*problems) if problems else None

    def _tell_left_out(self, split: str, images: ImageList, wanted: np.ndarray, kept: np.ndarray) -> None:
        """Say, once, which images could not be read, and which classes have none left."""
        if len(kept) == len(wanted) or split in self.left_out:
            return
        left = np.setdiff1d(wanted, kept)
        self.left_out[split] = [images.name(int(index)) for index in left]
        if self.note is None:
            return
        first = ", ".join(self.left_out[split][:NAMED])
        first += f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
        self.note(f"Notice: {len(left)} of {len(wanted)} images of the {split} split are left out: {first}")
        for gone in np.setdiff1d(images.labels[wanted], np.append(images.labels[kept], NONE)):
            name = self.source.class_names[gone] if self.source.class_names else gone
            self.note(f"Notice: the class {name} has no image left in the {split} split.")

    def _select(self, split: str) -> tuple[ImageList, np.ndarray]:
        if split == "test":
            if self.source.test is None:
                remedy = "Add a test/ folder, or evaluate on --split calibration."
                raise UserError(f"The data {self.source.spec} have no test split.", remedy)
            return self.source.test, np.arange(len(self.source.test.labels))
        if not len(self.source.train.labels):
            remedy = "Add a train/ folder; data without one are for kdcompress eval."
            raise UserError(f"The data {self.source.spec} have no training split.", remedy)
        fit, calibration = self._division
        if split != "fit" or self.unlabelled is None:
            return self.source.train, fit if split == "fit" else calibration
        mixed = MixedImages.of(self.source.train, self.unlabelled.images)
        return mixed, np.concatenate([fit, np.arange(len(self.source.train.labels), len(mixed.labels))])

    @cached_property
    def _division(self) -> tuple[np.ndarray, np.ndarray]:
        return fit_calibration(self.source.train.labels, self.holdout, self.source.groups)


def _stream_transform(prep: Preprocess, augment: str, count: int) -> Any:
    """Augmentation of ``count`` full images but for flips, timm's where timm has it."""
    from timm.data import create_transform
    from timm.data.transforms import ToNumpy
    from torchvision import transforms

    if augment in ("none", "flip"):
        return prep.eval_transform()
    if augment == "rrc-flip":
        return create_transform(
            (prep.channels, *prep.size),
            is_training=True,
            scale=FULL_SCALE if count >= MANY else MILD_SCALE,
            interpolation=prep.interpolation,
            color_jitter=0.0,
            hflip=0.0,
            use_prefetcher=True,
        )
    larger = (round(prep.size[0] * 1.125), round(prep.size[1] * 1.125))
    enlarge = dataclasses.replace(prep, size=larger, crop_pct=1.0).eval_transform()
    steps = [*enlarge.transforms[:-1], transforms.RandomCrop(prep.size), ToNumpy()]  # type: ignore[attr-defined]
    return transforms.Compose(steps)


def choose_size(source: DataSource, options: DataOptions, default: tuple[int, int], fixed: bool) -> tuple[int, int]:
    """(H, W) that a new network sees.

    The user's word first; else the images' own size where they are alike and no larger than what the architecture was
    made for; else that. Architectures of a fixed input size keep theirs.
    """
    if source.is_raw and source.size is not None:
        if options.input_size is not None:
            raise usage_error(f"--input-size has no meaning for {source.spec}.", "Its inputs are taken as they are.")
        return source.size
    if options.input_size is not None:
        return parse_size(options.input_size)[1:]
    if not fixed and source.size is not None and source.size[0] <= default[0] and source.size[1] <= default[1]:
        return source.size
    return default


def choose_channels(source: DataSource, options: DataOptions) -> int:
    """The user's word (``--input-size CxHxW``), else the images' own."""
    if options.input_size is not None and (channels := parse_size(options.input_size)[0]) is not None:
        if channels not in (1, 3):
            raise usage_error(f"--input-size {options.input_size} asks for {channels} channels.", "Images have 1 or 3.")
        return channels
    return source.channels
