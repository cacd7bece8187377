"""Batches for training and evaluation, from memory or streamed.

Both kinds give (input [B, C, H, W] normalised, target [B]) on the device, and both are pure functions of (seed, epoch):
an epoch can be entered at any step. With several processes each takes its share of every batch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcompress.data.augment import crop_indices, image_seed, mirrored
from kdcompress.data.images import ArrayImages, ImageList, TensorItems, each_anew
from kdcompress.data.preprocess import Preprocess, bad_image, read_image
from kdcompress.data.seeded import seed_all
from kdcompress.data.workers import shared_memory_holds, with_parent
from kdcompress.errors import UserError

Batch = tuple[Tensor, Tensor]
AHEAD = 3  # batches of a worker that may wait in shared memory: PyTorch asks for two, and one is being read
FEW = 2000  # images that are read sooner than worker processes start (our choice)


@dataclass
class MemoryImages:
    """Decoded images on the device.

    Attributes:
        pixels: [N * H * W, C] uint8, so that a crop is one gather of whole pixels.
        labels: [N] int64.
        ids: [N] index of each image in its split, which its augmentation depends on.
    """

    pixels: Tensor
    labels: Tensor
    ids: np.ndarray
    prep: Preprocess

    def __post_init__(self) -> None:
        # made once: a tensor made on a GPU from Python numbers waits for it; of a row of pixels, as they lie in memory:
        # by channel, of which there are few, it takes a processor four times as long
        width = self.prep.size[1]
        mean, std = (torch.tensor(values).mul(255).repeat(width) for values in (self.prep.mean, self.prep.std))
        self.mean, self.std = mean.to(self.pixels.device), std.to(self.pixels.device)

    def content(self) -> memoryview:
        """The bytes that identify them."""
        return self.pixels.cpu().numpy().data

    def training(self, positions: np.ndarray, seed: int, view: int, augment: str) -> Batch:
        """The images at some positions, augmented."""
        height, width = self.prep.size
        if augment == "none":
            return self.plain(positions)
        rows, columns = crop_indices(
            seed, view, self.ids[positions], height, width, flip=augment.endswith("flip"), shift=augment != "flip"
        )
        return self._gather(positions, rows, columns)

    def plain(self, positions: np.ndarray) -> Batch:
        """The images at some positions, without augmentation."""
        height, width = self.prep.size
        return self._gather(positions, torch.arange(height)[None], torch.arange(width)[None])

    def _gather(self, positions: np.ndarray, rows: Tensor, columns: Tensor) -> Batch:
        height, width = self.prep.size
        chosen = torch.from_numpy(positions)
        index = ((chosen[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]).flatten()
        x = self.pixels.index_select(0, self._moved(index)).view(-1, width * self.prep.channels)
        x = x.float().sub_(self.mean).div_(self.std)
        x = x.view(len(positions), height, width, self.prep.channels).permute(0, 3, 1, 2)
        return x, self.labels.index_select(0, self._moved(chosen))

    def _moved(self, index: Tensor) -> Tensor:
        """To the pixels' device, without waiting for it."""
        device = self.pixels.device
        return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)


@dataclass
class MemoryTensors:
    """Inputs that are not images, on the device; a network gets them as they are.

    Attributes:
        inputs: [N, C, H, W] float32.
        labels: [N] int64.
        ids: [N] index of each in its split.
    """

    inputs: Tensor
    labels: Tensor
    ids: np.ndarray

    @classmethod
    def of(cls, items: TensorItems, indices: np.ndarray, device: torch.device) -> MemoryTensors:
        """Those at some indices of a split."""
        chosen = torch.from_numpy(indices)
        labels = torch.from_numpy(items.labels[indices])
        return cls(items.inputs[chosen].to(device), labels.to(device), indices)

    def content(self) -> memoryview:
        """The bytes that identify them."""
        return self.inputs.cpu().contiguous().numpy().data

    def training(self, positions: np.ndarray, seed: int, view: int, augment: str) -> Batch:
        """The inputs at some positions, as they are: what is not an image is not augmented."""
        return self.plain(positions)

    def plain(self, positions: np.ndarray) -> Batch:
        """The inputs at some positions."""
        chosen = torch.from_numpy(positions).to(self.inputs.device)
        return self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen)


def load_into_memory(
    images: ImageList, indices: np.ndarray, prep: Preprocess, device: torch.device, *, workers: int, skip_bad: bool
) -> MemoryImages:
    """Decode images, resized where they differ from the network's size.

    Raises:
        UserError: Images that cannot be read, unless ``skip_bad``; all are named.
    """
    height, width = prep.size
    if isinstance(images, ArrayImages) and images.array.shape[1:] == prep.size and prep.channels == 1:
        array, kept = images.array[indices], indices
    else:
        array = np.empty((len(indices), height, width, prep.channels), dtype=np.uint8)
        good = np.zeros(len(indices), dtype=bool)
        reader = _Reader(images, indices, prep.channels, prep.eval_transform())
        problems = []
        for position, pixels, problem in _read_all(reader, workers):
            if problem:
                problems.append(problem)
            else:
                array[position], good[position] = pixels.transpose(1, 2, 0), True
        if problems and not skip_bad:
            raise bad_image(*problems)
        kept = indices
        if not good.all():
            array, kept = array[good], indices[good]
    pixels = torch.from_numpy(np.ascontiguousarray(array)).reshape(-1, prep.channels)
    return MemoryImages(pixels.to(device), torch.from_numpy(images.labels[kept]).to(device), kept, prep)


class _Reader(Dataset[Any]):
    """Position -> (position, uint8 [C, H, W] or None, what is wrong with the image)."""

    def __init__(
        self, images: ImageList, indices: np.ndarray, channels: int, transform: Callable[[Image.Image], Any]
    ) -> None:
        self.images, self.indices, self.channels, self.transform = images, indices, channels, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Any, str]:
        index = int(self.indices[position])
        try:
            return position, np.asarray(self.transform(read_image(self.images, index, self.channels))), ""
        except UserError as error:
            return position, None, error.problem.removeprefix("Unreadable image ")


def _read_all(reader: _Reader, workers: int) -> Iterator[tuple[int, Any, str]]:
    if len(reader) <= FEW:
        workers = 0
    # many at a time, and as arrays: handing over one tensor costs a worker more than reading a small image
    return itertools.chain.from_iterable(
        DataLoader(reader, batch_size=64, collate_fn=list, num_workers=workers, worker_init_fn=with_parent(workers))
    )


def _no_pixels(image: Image.Image) -> tuple[()]:
    """A transform that gives nothing, to see whether an image can be read; at top level so that it can be pickled."""
    return ()


@dataclass
class StreamImages:
    """Images that stay on the disk and are decoded by worker processes."""

    images: ImageList
    ids: np.ndarray
    prep: Preprocess
    device: torch.device
    workers: int

    def content(self) -> memoryview:
        """A digest of when the files were written; empty for other sources, since reading them all takes an epoch."""
        return memoryview(self.images.written)

    def loader(
        self,
        batches: Sequence[np.ndarray],
        transform: Callable[[Image.Image], Any],
        seed: int,
        view: int,
        *,
        flip: bool = False,
    ) -> Iterator[Batch]:
        """Batches of the images at given positions, read by worker processes; half of them mirrored on request."""
        from timm.data.loader import PrefetchLoader

        if not len(batches):  # an epoch that a signal stopped after its last step: some versions of timm fail
            return iter(())
        dataset = _ViewDataset(self.images, self.ids, self.prep.channels, transform, seed, view, flip)
        largest = max(map(len, batches)) * self.prep.channels * math.prod(self.prep.size)
        roomy = shared_memory_holds(AHEAD * self.workers * largest)
        loader = DataLoader(
            dataset,
            batch_sampler=_Lists(batches),
            num_workers=self.workers,
            collate_fn=_collate if roomy else _collate_arrays,
            worker_init_fn=with_parent(self.workers),
            pin_memory=self.device.type == "cuda",
        )
        prefetch = PrefetchLoader(
            _Checked(loader),  # type: ignore[arg-type]
            self.prep.mean,
            self.prep.std,
            channels=self.prep.channels,
            device=self.device,
        )
        if self.device.type == "cuda":
            prefetch.stream = _copy_stream(self.device)
        return iter(prefetch)


@functools.cache
def _copy_stream(device: torch.device) -> Any:
    """The stream on which batches are copied. Memory that was used on one is kept for it: one for each pass adds up."""
    return torch.cuda.Stream(device)


class _Lists(Sampler[list[int]]):
    """Arrays of positions as lists, made when they are asked for."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


class _ViewDataset(Dataset[Any]):
    def __init__(
        self,
        images: ImageList,
        ids: np.ndarray,
        channels: int,
        transform: Callable[[Image.Image], Any],
        seed: int,
        view: int,
        flip: bool,
    ) -> None:
        self.images = each_anew(images)
        self.ids, self.channels, self.transform = ids, channels, transform
        self.seed, self.view, self.flip = seed, view, flip

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> tuple[Any, int, str]:
        index = int(self.ids[position])
        # transforms of timm and of the user's data set draw from the global generators: of each view the same
        seed_all(number := image_seed(self.seed, self.view, index))
        try:
            image = read_image(self.images, index, self.channels)
        except UserError as error:
            return None, 0, error.problem.removeprefix("Unreadable image ")
        seed_all(number)
        pixels = self.transform(image)
        if self.flip:
            pixels = torch.as_tensor(pixels)  # in a batch all of one type, mirrored or not
            pixels = pixels.flip(-1) if mirrored(self.seed, self.view, np.array([index]))[0] else pixels
        return pixels, int(self.images.labels[index]), ""


def _collate(items: list[tuple[Any, int, str]]) -> tuple[Tensor, Tensor, list[str]]:
    from timm.data.loader import fast_collate

    problems = [item[2] for item in items if item[2]]
    if problems:
        return torch.empty(0), torch.empty(0), problems
    images, targets = fast_collate([item[:2] for item in items])
    return images, targets, []


def _collate_arrays(items: list[tuple[Any, int, str]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A batch that a worker sends through a pipe: only tensors go through shared memory, and wait for it forever."""
    images, targets, problems = _collate(items)
    return images.numpy(), targets.numpy(), problems


class _Checked:
    """Raises bad images that a worker met in the main process, where the error keeps its two lines."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for images, targets, problems in self.loader:
            if problems:  # other batches may have more: to read all of a large data set now would take an epoch
                error = bad_image(*problems)
                raise UserError(error.problem, f"{error.remedy} `kdcompress data DATA --skip-bad-images` lists all.")
            yield torch.as_tensor(images), torch.as_tensor(targets)

    def __len__(self) -> int:
        return len(self.loader)


def find_good(images: ImageList, indices: np.ndarray, channels: int, workers: int) -> np.ndarray:
    """Those of ``indices`` whose images can be read (a pass over all of them)."""
    return indices[~np.isin(indices, list(find_bad(images, indices, channels, workers)))]


def find_bad(images: ImageList, indices: np.ndarray, channels: int, workers: int) -> dict[int, str]:
    """``name: reason`` of those of ``indices`` whose images cannot be read (a pass over all of them)."""
    read = _read_all(_Reader(images, indices, channels, _no_pixels), workers)
    return {int(indices[position]): problem for position, _, problem in read if problem}


Images: TypeAlias = MemoryImages | MemoryTensors | StreamImages


@dataclass
class TrainBatches:
    """The fit split in the order of an epoch.

    An epoch is cut into batches whose sizes differ by one image at most, and each batch into equal shares of the
    processes: no image is dropped, and no batch is left with a single image, which BatchNorm could not take.

    Attributes:
        chosen: Positions of the images that are trained on; None for all.
    """

    images: Images
    batch_size: int
    seed: int
    augment: str
    transform: Callable[[Image.Image], Any] | None = None
    rank: int = 0
    world: int = 1
    chosen: np.ndarray | None = None

    @property
    def _positions(self) -> np.ndarray:
        return np.arange(len(self.images.ids)) if self.chosen is None else self.chosen

    def __len__(self) -> int:
        images = len(self._positions)
        count = -(-images // self.batch_size)
        if images // count < 2 * self.world:  # a process would be left with one image
            count = max(images // self.batch_size, 1)
        return count

    def sizes(self) -> list[int]:
        """Images of each batch over all processes."""
        return [len(part) for part in np.array_split(self._positions, len(self))]

    def digest(self) -> str:
        """A digest of the images and their labels, the same in all processes of a training."""
        if self.chosen is None:
            return _digest(self.images)
        chosen = hashlib.blake2b(np.ascontiguousarray(self.chosen, dtype="<i8").tobytes(), digest_size=8).hexdigest()
        return f"{len(self.chosen)} ({chosen}) of {_digest(self.images)}"

    def partly_labelled(self) -> bool:
        """Whether some images have no label: theirs is -1."""
        return bool((_labels(self.images) < 0).any())

    @property
    def views(self) -> int | None:
        """How many different views there are; None: every epoch has its own."""
        return None

    def prepare(self, epoch: int, stopped: Callable[[], bool]) -> bool:
        """Prepare an epoch; False if it was stopped on the way. Nothing to do here."""
        return True

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This process' share of each batch of an epoch, from step ``first_step`` on."""
        return self.load(self.parts(epoch, first_step), self.seed, epoch)

    def parts(self, epoch: int, first_step: int = 0) -> list[np.ndarray]:
        """This process' share of each batch of an epoch, as positions in the split."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self._positions)
        return [part[self.rank :: self.world] for part in np.array_split(order, len(self))][first_step:]

    def load(self, parts: Sequence[np.ndarray], seed: int, view: int) -> Iterator[Batch]:
        """The images at some positions, as a view shows them."""
        if isinstance(self.images, StreamImages):
            assert self.transform is not None
            return self.images.loader(parts, self.transform, seed, view, flip=self.augment.endswith("flip"))
        return (self.images.training(part, seed, view, self.augment) for part in parts)


def _labels(images: Images) -> np.ndarray:
    return images.images.labels[images.ids] if isinstance(images, StreamImages) else images.labels.cpu().numpy()


def _digest(images: Images) -> str:
    labels = _labels(images)
    digest = hashlib.blake2b(np.ascontiguousarray(images.ids, dtype="<i8").tobytes(), digest_size=8)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return f"{len(labels)} images ({digest.hexdigest()})"


@dataclass
class EvalBatches:
    """A split in its own order, without augmentation; each process takes its share."""

    images: Images
    batch_size: int
    rank: int = 0
    world: int = 1

    def digest(self) -> str:
        """As for :class:`TrainBatches`."""
        return _digest(self.images)

    def prepare(self, stopped: Callable[[], bool]) -> bool:
        """Prepare all passes; False if it was stopped on the way. Nothing to do here."""
        return True

    def __iter__(self) -> Iterator[Batch]:
        return self.load(self.parts())

    def parts(self) -> list[np.ndarray]:
        """This process' share, batch by batch, as positions in the split."""
        mine = np.arange(len(self.images.ids))[self.rank :: self.world]
        return [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]

    def load(self, parts: Sequence[np.ndarray], seed: int = 0, view: int = 0) -> Iterator[Batch]:
        """The images at some positions."""
        if isinstance(self.images, StreamImages):
            return self.images.loader(parts, self.images.prep.eval_transform(), seed, view)
        return (self.images.plain(part) for part in parts)
