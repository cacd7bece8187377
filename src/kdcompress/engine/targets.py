"""Cached targets: outputs of frozen networks, computed once, so that distillation runs at the speed of the student.

Augmentation is a pure function of (seed, view, image). With a fixed number of views, each network computes its outputs
for each view once, in large batches, before the first epoch that needs them; later epochs and later runs read them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from kdcompress.cache import ArrayStore
from kdcompress.data import EvalBatches, Preprocess, TrainBatches
from kdcompress.engine.distributed import Place, any_process, from_main, gather_objects, gather_rows, host, summed
from kdcompress.engine.shared_folder import first_to_see
from kdcompress.errors import first_line

FORWARD_PIXELS, SMALLEST_FORWARD = 256 * 224 * 224, 16  # of a batch: a ConvNeXt-L in fp32 takes some 5 GB for as many
FORWARD_BATCH, CPU_BATCH = 512, 128  # larger batches do not fit the caches of a CPU, which is then half as fast or less
SEED = 0  # of the views, whatever the seed of the run, so that other runs can use them
HALF_MAX, CHECKED = 65504.0, 256
REPORT_SECONDS = 30.0  # between two progress notes

# attributes of every module, and of where a network comes from; its name is in the key
NOT_SETTINGS = frozenset((*vars(nn.Module()), "_compiled_call_impl", "pretrained_cfg", "default_cfg"))

CachedBatch = tuple[Tensor, Tensor, dict[str, Tensor]]


def unpacked(batch: tuple[Tensor, Tensor] | CachedBatch) -> CachedBatch:
    """A batch with its cached targets; an empty dictionary where it has none."""
    return batch if len(batch) == 3 else (*batch, {})


class Targets:
    """Outputs of frozen networks for the images of a split, one view at a time: read from the cache, or computed and
    written to it.

    All processes of a training use it together. Where the cache cannot be used, which is reported once, each missing
    view is computed again when it is needed, with the same results. Of identical networks only one is run.

    Args:
        networks: Name of an argument of the task -> network, on the device: images [B, C, H, W] to rows [B, W], such
            as logits.
        widths: W, by the same names.
        batches: Of the split.
        fingerprint: Of the data.
        store: The cache.
        note: Called with warnings about the cache, and with progress.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        widths: Mapping[str, int],
        batches: TrainBatches | EvalBatches,
        fingerprint: str,
        store: ArrayStore,
        place: Place,
        note: Callable[[str], None],
    ) -> None:
        self.batches, self.place, self.store, self.note = batches, place, store, note
        self.count = len(batches.images.ids)

        def cache_keys() -> dict[str, dict[str, Any]]:
            images = {"data": fingerprint, **image_key(batches)}
            where = {"device": place.device.type, "precision": place.precision, "seed": SEED}
            return {name: {**network_key(network), **images, **where} for name, network in networks.items()}

        keys = from_main(cache_keys)  # copies of the data on other machines may have other modification times
        places = {name: store.place(key) for name, key in keys.items()}
        self.same = {name: min(other for other in places if places[other] == places[name]) for name in places}
        # all processes take locks in this order
        self.names = sorted(set(self.same.values()), key=lambda name: places[name])
        self.networks = {name: networks[name] for name in self.names}
        self.keys = {name: keys[name] for name in self.names}
        self.shapes = {name: (self.count, widths[name]) for name in self.names}
        self.writable = True
        self.writer = first_to_see(store.folder.parent, place)  # rank that writes the files which this process reads
        self.view: int | None = None
        self.rows: dict[str, np.ndarray] = {}

    def prepare(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Load or compute the targets of a view; False if it was stopped before the end.

        Args:
            stopped: Whether the user has asked to stop.
        """
        if view == self.view:
            return True
        self.view, self.rows = None, {}
        if not (self._read_all(view) or self._compute_and_write(view, stopped)):
            return False
        self.view = view
        return True

    def rows_of(self, positions: np.ndarray) -> dict[str, Tensor]:
        """Targets of some images of the prepared view: rows [B, W] by name, float32, on the device.

        Args:
            positions: [B], in the split.
        """
        of_batch = {}
        for name, rows in self.rows.items():
            chosen = torch.from_numpy(rows[positions])
            if self.place.device.type == "cuda":
                chosen = chosen.pin_memory()
            of_batch[name] = chosen.to(self.place.device, non_blocking=True).float()
        return {name: of_batch[same] for name, same in self.same.items()}

    def _read_all(self, view: int) -> bool:
        """Read what the cache has of a view; whether every process now has all of it."""
        for name in self.names:
            if name not in self.rows and (rows := self._read(name, view)) is not None:
                self.rows[name] = rows
        return all(gather_objects(len(self.rows) == len(self.names)))

    def _read(self, name: str, view: int) -> np.ndarray | None:
        return self.store.open(self.keys[name], view, self.shapes[name])

    def _compute_and_write(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Compute what any process lacks of a view; False if it was stopped before the end.

        Each process computes its share once, and for each cache folder one process writes all of it (hosts may share a
        folder or not). What cannot be written stays in memory.
        """
        files: dict[str, np.ndarray] = {}
        problem, done = "", False
        try:
            with contextlib.suppress(_Discard), contextlib.ExitStack() as stack:
                problem = self._open(view, stack, files, stopped)
                # whoever held a lock before may have written the file
                lacking = [name for name in self.names if name not in self.rows and self._read(name, view) is None]
                of_all = gather_objects((lacking, list(files), problem))
                arrays: dict[str, np.ndarray | None] = {}
                for name in self.names:
                    if any(name in theirs for theirs, _, _ in of_all):
                        arrays[name] = files.get(name)
                        if name in lacking and name not in files and name not in of_all[self.writer][1]:
                            arrays[name] = self.rows[name] = np.empty(self.shapes[name], np.float16)
                done = not arrays or self._compute(view, arrays, stopped)
                if not done:
                    raise _Discard
        except OSError as error:
            if not done and not stopped():  # it is the images that could not be read, not the cache
                raise
            problem = error.strerror or first_line(error)
        problems = gather_objects(problem)  # no process reads before all files have their final names
        if not done:
            self.rows = {}
            return False
        for rank, problem in enumerate(problems):
            self._stop_writing(problem, rank)
        return self._read_all(view) or self._compute_missing(view, stopped)

    def _open(
        self, view: int, stack: contextlib.ExitStack, files: dict[str, np.ndarray], stopped: Callable[[], bool]
    ) -> str:
        """Lock what the cache lacks, and create files for it.

        The main process waits for other runs that compute the same targets; other processes skip what is locked.

        Args:
            stack: Receives the locks and files.
            files: Receives the arrays to fill, by name.

        Returns:
            Why nothing can be written; "" if it can.

        Raises:
            _Discard: The main process was asked to stop.
        """
        note_once = functools.cache(self.note)

        def waiting() -> None:
            note_once("Another run is computing these targets; waiting for it.")
            if not self.place.is_main or stopped():
                raise _Discard

        def lock_and_create() -> tuple[str, bool]:
            lacking = [name for name in self.names if self.writable and name not in self.rows]
            try:
                with contextlib.ExitStack() as all_or_none:
                    for name in lacking:
                        all_or_none.enter_context(self.store.lock(self.keys[name], view, waiting))
                    for name in lacking:
                        if self._read(name, view) is None:  # whoever held the lock before may have written it
                            key, spared = self.keys[name], self.keys.values()
                            created = self.store.create(key, view, self.shapes[name], spared=spared)
                            files[name] = all_or_none.enter_context(created)
                    stack.enter_context(all_or_none.pop_all())
            except _Discard:
                files.clear()
                return "", True
            except OSError as error:
                files.clear()
                return error.strerror or first_line(error), False
            return "", False

        problem, halted = from_main(lock_and_create)
        if halted:
            raise _Discard
        if self.place.is_main or self.writer != self.place.rank:
            return problem if self.place.is_main else ""
        return lock_and_create()[0]

    def _stop_writing(self, problem: str, rank: int) -> None:
        """Warn, once, that the process of that rank cannot write to the cache, and let it write no more."""
        if problem and self.writable:
            where = self.store.folder if host(rank) == host(0) else f"{self.store.folder} on {host(rank)}"
            self.note(f"Warning: targets cannot be cached in {where}: {problem}. They are recomputed in each epoch.")
            self.writable = rank != self.place.rank

    def _compute_missing(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Compute what has been written, but cannot be read by all processes."""
        lacking = [name for name in self.names if name not in self.rows]
        wanted = set().union(*gather_objects(lacking))
        arrays: dict[str, np.ndarray | None] = {name: None for name in self.names if name in wanted}
        for name in lacking:
            arrays[name] = self.rows[name] = np.empty(self.shapes[name], np.float16)
        self._stop_writing("its files cannot be read by all processes", self.place.rank)
        return self._compute(view, arrays, stopped)

    def _compute(self, view: int, arrays: Mapping[str, np.ndarray | None], stopped: Callable[[], bool]) -> bool:
        """Run the networks on a view, every process on its share; False if it was stopped before the end.

        Args:
            arrays: Filled with the outputs [N, W], by name; None where this process needs none.
        """
        count, world = self.count, self.place.world
        size = forward_batch(self.place, _input(self.batches))
        chunks = np.array_split(np.arange(count), -(-count // (size * world)))
        parts = [chunk[self.place.rank :: world] for chunk in chunks]
        shown = time.monotonic()
        with torch.inference_mode(), self.place.autocast():
            for chunk, (x, _) in zip(chunks, self.batches.load(parts, SEED, view), strict=True):
                if any_process(stopped(), self.place):
                    return False
                for name, array in arrays.items():
                    outputs = self.networks[name](x).float().clamp(-HALF_MAX, HALF_MAX).half()
                    rows = gather_rows(outputs, len(chunk), self.place)
                    if array is not None:
                        array[chunk[0] : chunk[-1] + 1] = rows.cpu().numpy()
                if time.monotonic() - shown > REPORT_SECONDS:
                    shown = time.monotonic()
                    self.note(f"Caching targets of view {view + 1}: {(chunk[-1] + 1) / count:.0%} of the images")
        return True


class _Discard(Exception):
    """Leaves the context of a file without keeping it."""


@dataclass
class CachedBatches:
    """Training batches of a fixed number of views, with their cached targets.

    Attributes:
        views: Epoch e uses view e mod ``views``.
    """

    batches: TrainBatches
    targets: Targets
    views: int

    def __len__(self) -> int:
        return len(self.batches)

    def sizes(self) -> list[int]:
        """Size of each batch of an epoch, over all processes."""
        return self.batches.sizes()

    def digest(self) -> str:
        """Identifies the images of the split."""
        return self.batches.digest()

    def partly_labelled(self) -> bool:
        """Whether some images have no label."""
        return self.batches.partly_labelled()

    def prepare(self, epoch: int, stopped: Callable[[], bool]) -> bool:
        """Load or compute the targets of an epoch; False if it was stopped before the end."""
        return self.targets.prepare(epoch % self.views, stopped)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[CachedBatch]:
        """Images [B, C, H, W], labels [B], and cached targets [B, W] by name, from a step on; after :meth:`prepare`."""
        parts = self.batches.parts(epoch, first_step)
        loaded = self.batches.load(parts, SEED, epoch % self.views)
        return ((x, y, self.targets.rows_of(part)) for part, (x, y) in zip(parts, loaded, strict=True))


@dataclass
class CachedEval:
    """A split without augmentation, with its cached targets."""

    batches: EvalBatches
    targets: Targets

    def prepare(self, stopped: Callable[[], bool]) -> bool:
        """Load or compute the targets; False if it was stopped before the end."""
        return self.targets.prepare(0, stopped)

    def __iter__(self) -> Iterator[CachedBatch]:
        self.prepare(lambda: False)
        parts = self.batches.parts()
        loaded = self.batches.load(parts)
        return ((x, y, self.targets.rows_of(part)) for part, (x, y) in zip(parts, loaded, strict=True))


def forward_batch(place: Place, prep: Preprocess | None) -> int:
    """Batch size for inference, whatever that of the training: smaller for large images, on which a GPU would run out.

    Args:
        prep: Input of the networks; None where that is no image.
    """
    if place.device.type == "cpu":
        return CPU_BATCH
    pixels = math.prod(prep.size) if prep is not None else 1
    return max(SMALLEST_FORWARD, min(FORWARD_BATCH, FORWARD_PIXELS // pixels))


def _input(batches: TrainBatches | EvalBatches) -> Preprocess | None:
    """What the networks take; None where that is no image."""
    return getattr(batches.images, "prep", None)


def precision_error(network: nn.Module, batches: TrainBatches, place: Place) -> float:
    """How far a network's logits in the place's precision are from those in float32, on 256 images.

    Returns:
        Root mean square of the difference over that of the logits, both without their mean over the classes, which
        means nothing. Classes of low margin may change places by far less than a student can learn, so they do not
        count.
    """
    count = len(batches.images.ids)
    chosen = np.linspace(0, count - 1, min(count, CHECKED)).astype(int)  # the first images may all be of one class
    images = chosen[place.rank :: place.world]
    size = forward_batch(place, _input(batches))
    parts = np.array_split(images, -(-len(images) // size)) if len(images) else []
    squares = torch.zeros(2, device=place.device)
    with torch.inference_mode():
        for x, _ in batches.load(parts, SEED, 0):
            with place.autocast():
                lower = network(x).float()
            exact = network(x).float()
            for number, each in enumerate((lower - exact, exact)):
                squares[number] += (each - each.mean(1, keepdim=True)).square().sum()
    error, size = summed(squares).tolist()
    return math.sqrt(error / size) if size else float(error > 0)


def image_key(batches: TrainBatches | EvalBatches) -> dict[str, Any]:
    """The part of a cache key that identifies a split's views: its images, and the code that augments them."""
    images = batches.images
    digest = hashlib.blake2b(np.ascontiguousarray(images.ids, dtype="<i8").tobytes(), digest_size=16)
    digest.update(images.content())
    for file in sorted(Path(inspect.getfile(TrainBatches)).parent.glob("*.py")):
        digest.update(file.read_bytes())
    prep = _input(batches)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("pillow", "torchvision")]
    return {
        "images": digest.hexdigest(),
        "input": asdict(prep) if prep is not None else None,
        "augment": getattr(batches, "augment", "none"),
        "loading": type(images).__name__,
        "read by": ", ".join(versions),
    }


def network_key(network: nn.Module) -> dict[str, Any]:
    """The part of a cache key that identifies a network's outputs: its structure, settings, tensors and code."""
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, module in network.named_modules():
        settings = {key: _plain(value) for key, value in vars(module).items() if key not in NOT_SETTINGS}
        digest.update(f"{name} {sorted(settings.items())}".encode())
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    folders = {Path(file).parent for module in network.modules() for file in _code(type(module))}
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):  # files may call others beside them
        digest.update(file.read_bytes())
    name = getattr(getattr(network, "model", network), "pretrained_cfg", {}).get("architecture", "")
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    return {"network": name, "fingerprint": digest.hexdigest(), "versions": versions}


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _plain(value: object) -> str:
    """A setting as text that is the same in every process; of an object that is not a plain value, only its type."""
    if isinstance(value, (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_plain(key)}: {_plain(part)}' for key, part in value.items()))}}}"
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(_content(value)).hexdigest()}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.blake2b(value.tobytes()).hexdigest()}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, functools.partial):
        return _plain((value.func, value.args, value.keywords))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__qualname__} {_plain(vars(value))}"
    return getattr(value, "__qualname__", type(value).__qualname__)


def _code(kind: type) -> Iterator[str]:
    """The source files of a class and its bases, except those of torch and timm, whose versions are in the key."""
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in ("torch", "timm", "builtins"):
            with contextlib.suppress(OSError, TypeError):  # defined in an interactive session
                yield inspect.getfile(base)
