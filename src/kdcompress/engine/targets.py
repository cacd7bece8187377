"""What frozen networks say about images, computed once and kept: distillation at the speed of the student alone.

Augmentation is a pure function of (seed, view, image). With a fixed number of views each network sees each of them
once, in large batches, before the first epoch that needs it; later epochs and later runs read what it said.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
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
from kdcompress.data import EvalBatches, TrainBatches
from kdcompress.engine.distributed import Place, anyone, everyone, from_main, gathered, host, summed
from kdcompress.engine.shared_folder import first_to_see
from kdcompress.errors import first_line

FORWARD_BATCH, CPU_BATCH = 512, 128  # what does not fit its caches makes a processor slower, by half and more
SEED = 0  # of the views, whatever that of the run: other runs then find them
HALF_MAX, CHECKED = 65504.0, 1024
TELL_SECONDS = 30.0

# what every module has, and what says where a network comes from; its name is in the key
NOT_SETTINGS = frozenset((*vars(nn.Module()), "_compiled_call_impl", "pretrained_cfg", "default_cfg"))

CachedBatch = tuple[Tensor, Tensor, dict[str, Tensor]]


def unpacked(batch: tuple[Tensor, Tensor] | CachedBatch) -> CachedBatch:
    """A batch with its cached targets, if only that there are none."""
    return batch if len(batch) == 3 else (*batch, {})


class Targets:
    """What frozen networks say about the images of a split, a view at a time: read, or computed and kept.

    All processes of a training use it together, and the main one writes. Where the store fails, which is said once,
    each view that it does not hold is computed anew when it is needed, and the results are the same. Networks that say
    the same are asked once.

    Args:
        networks: Name of an argument of the task -> network, on the device: images [B, C, H, W] to rows [B, W], such
            as logits.
        widths: W, by the same names.
        batches: Of the split.
        fingerprint: Of the data.
        note: Told where the store fails, and what takes long.
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

        def made() -> dict[str, dict[str, Any]]:
            images = {"data": fingerprint, **image_key(batches)}
            where = {"device": place.device.type, "precision": place.precision, "seed": SEED}
            return {name: {**network_key(network), **images, **where} for name, network in networks.items()}

        keys = from_main(made)  # other machines may have copies of the data that were written at another time
        places = {name: store.place(key) for name, key in keys.items()}
        self.same = {name: min(other for other in places if places[other] == places[name]) for name in places}
        # everybody locks in this order
        self.names = sorted(set(self.same.values()), key=lambda name: places[name])
        self.networks = {name: networks[name] for name in self.names}
        self.keys = {name: keys[name] for name in self.names}
        self.shapes = {name: (self.count, widths[name]) for name in self.names}
        self.writable = True
        self.keeper = first_to_see(store.folder.parent, place)  # writes what this process reads
        self.view: int | None = None
        self.rows: dict[str, np.ndarray] = {}

    def prepare(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Make a view ready; False if it was stopped on the way."""
        if view == self.view:
            return True
        self.view, self.rows = None, {}
        if not (self._read_all(view) or self._make(view, stopped)):
            return False
        self.view = view
        return True

    def rows_of(self, positions: np.ndarray) -> dict[str, Tensor]:
        """What was said about some images of the view that is ready: rows [B, W] by name, on the device."""
        found = {}
        for name, rows in self.rows.items():
            chosen = torch.from_numpy(rows[positions])
            if self.place.device.type == "cuda":
                chosen = chosen.pin_memory()
            found[name] = chosen.to(self.place.device, non_blocking=True).float()
        return {name: found[same] for name, same in self.same.items()}

    def _read_all(self, view: int) -> bool:
        """Take what the store holds of a view; whether every process has all of it now."""
        for name in self.names:
            if name not in self.rows and (rows := self._read(name, view)) is not None:
                self.rows[name] = rows
        return all(everyone(len(self.rows) == len(self.names)))

    def _read(self, name: str, view: int) -> np.ndarray | None:
        return self.store.open(self.keys[name], view, self.shapes[name])

    def _make(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Compute what a process lacks of a view; False if it was stopped on the way.

        Each computes its share, once, and one process of each store writes all of it: hosts may share a store or not.
        What no store takes stays in memory.
        """
        files: dict[str, np.ndarray] = {}
        problem, done = "", False
        try:
            with contextlib.suppress(_Discard), contextlib.ExitStack() as stack:
                problem = self._open(view, stack, files, stopped)
                # who held a lock before may have written meanwhile
                lacking = [name for name in self.names if name not in self.rows and self._read(name, view) is None]
                said = everyone((lacking, list(files), problem))
                arrays: dict[str, np.ndarray | None] = {}
                for name in self.names:
                    if any(name in theirs for theirs, _, _ in said):
                        arrays[name] = files.get(name)
                        if name in lacking and name not in files and name not in said[self.keeper][1]:
                            arrays[name] = self.rows[name] = np.empty(self.shapes[name], np.float16)
                done = not arrays or self._compute(view, arrays, stopped)
                if not done:
                    raise _Discard
        except OSError as error:
            problem = error.strerror or first_line(error)
        problems = everyone(problem)  # nobody reads before all files have their names
        if not done:
            self.rows = {}
            return False
        for rank, problem in enumerate(problems):
            self._give_up(problem, rank)
        return self._read_all(view) or self._compute_missing(view, stopped)

    def _open(
        self, view: int, stack: contextlib.ExitStack, files: dict[str, np.ndarray], stopped: Callable[[], bool]
    ) -> str:
        """Lock what the store lacks, and make files for it; what stands against it, if anything does.

        The main process waits for other runs that compute the same; further ones do without what is locked.

        Raises:
            _Discard: The main process was asked to stop.
        """
        tell = functools.cache(self.note)

        def waiting() -> None:
            tell("Another run computes these targets; waiting for it.")
            if not self.place.is_main or stopped():
                raise _Discard

        def take() -> tuple[str, bool]:
            lacking = [name for name in self.names if self.writable and name not in self.rows]
            try:
                with contextlib.ExitStack() as all_or_none:
                    for name in lacking:
                        all_or_none.enter_context(self.store.lock(self.keys[name], view, waiting))
                    for name in lacking:
                        if self._read(name, view) is None:  # who held the lock before may have written it
                            key, beside = self.keys[name], self.keys.values()
                            made = self.store.create(key, view, self.shapes[name], beside=beside)
                            files[name] = all_or_none.enter_context(made)
                    stack.enter_context(all_or_none.pop_all())
            except _Discard:
                files.clear()
                return "", True
            except OSError as error:
                files.clear()
                return error.strerror or first_line(error), False
            return "", False

        problem, halted = from_main(take)
        if halted:
            raise _Discard
        if self.place.is_main or self.keeper != self.place.rank:
            return problem if self.place.is_main else ""
        return take()[0]

    def _give_up(self, problem: str, rank: int) -> None:
        """Say it, once, and let the process of that rank keep nothing any more."""
        if problem and self.writable:
            where = self.store.folder if host(rank) == host(0) else f"{self.store.folder} on {host(rank)}"
            self.note(f"Warning: targets cannot be kept in {where}: {problem}. They are computed anew each epoch.")
            self.writable = rank != self.place.rank

    def _compute_missing(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Compute what a store has taken and does not show to all."""
        lacking = [name for name in self.names if name not in self.rows]
        wanted = set().union(*everyone(lacking))
        arrays: dict[str, np.ndarray | None] = {name: None for name in self.names if name in wanted}
        for name in lacking:
            arrays[name] = self.rows[name] = np.empty(self.shapes[name], np.float16)
        self._give_up("its files cannot be read by all processes", self.place.rank)
        return self._compute(view, arrays, stopped)

    def _compute(self, view: int, arrays: Mapping[str, np.ndarray | None], stopped: Callable[[], bool]) -> bool:
        """Ask the networks about a view; every process a share. False if it was stopped on the way."""
        count, world = self.count, self.place.world
        chunks = np.array_split(np.arange(count), -(-count // (forward_batch(self.place) * world)))
        parts = [chunk[self.place.rank :: world] for chunk in chunks]
        shown = time.monotonic()
        with torch.inference_mode(), self.place.autocast():
            for chunk, (x, _) in zip(chunks, self.batches.load(parts, SEED, view), strict=True):
                if anyone(stopped(), self.place):
                    return False
                for name, array in arrays.items():
                    said = self.networks[name](x).float().clamp(-HALF_MAX, HALF_MAX).half()
                    rows = gathered(said, len(chunk), self.place)
                    if array is not None:
                        array[chunk[0] : chunk[-1] + 1] = rows.cpu().numpy()
                if time.monotonic() - shown > TELL_SECONDS:
                    shown = time.monotonic()
                    self.note(f"targets of view {view + 1}: {(chunk[-1] + 1) / count:.0%} of the images")
        return True


class _Discard(Exception):
    """Leaves the context of a file that is not to be kept."""


@dataclass
class CachedBatches:
    """Batches of a fixed number of views, each with what frozen networks say about it.

    Attributes:
        views: Epoch e shows view e mod ``views``.
    """

    batches: TrainBatches
    targets: Targets
    views: int

    def __len__(self) -> int:
        return len(self.batches)

    def sizes(self) -> list[int]:
        return self.batches.sizes()

    def digest(self) -> str:
        return self.batches.digest()

    def prepare(self, epoch: int, stopped: Callable[[], bool]) -> bool:
        return self.targets.prepare(epoch % self.views, stopped)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[CachedBatch]:
        parts = self.batches.parts(epoch, first_step)
        loaded = self.batches.load(parts, SEED, epoch % self.views)
        return ((x, y, self.targets.rows_of(part)) for part, (x, y) in zip(parts, loaded, strict=True))


@dataclass
class CachedEval:
    """A split as it is, with what frozen networks say about it."""

    batches: EvalBatches
    targets: Targets

    def prepare(self, stopped: Callable[[], bool]) -> bool:
        """Make ready what all passes need; False if it was stopped on the way."""
        return self.targets.prepare(0, stopped)

    def __iter__(self) -> Iterator[CachedBatch]:
        self.prepare(lambda: False)
        parts = self.batches.parts()
        loaded = self.batches.load(parts)
        return ((x, y, self.targets.rows_of(part)) for part, (x, y) in zip(parts, loaded, strict=True))


def forward_batch(place: Place) -> int:
    """Images at a time for a network that only infers, whatever the training's batch."""
    return CPU_BATCH if place.device.type == "cpu" else FORWARD_BATCH


def precision_agreement(network: nn.Module, batches: TrainBatches, place: Place) -> float:
    """Share of about a thousand images about which a network says the same in the place's precision and in float32."""
    count = len(batches.images.ids)
    chosen = np.linspace(0, count - 1, min(count, CHECKED)).astype(int)  # of folders, the first are all of one class
    images = chosen[place.rank :: place.world]
    parts = np.array_split(images, -(-len(images) // forward_batch(place)))
    counts = torch.zeros(2, device=place.device)
    with torch.inference_mode():
        for x, _ in batches.load(parts, SEED, 0):
            with place.autocast():
                lower = network(x).argmax(1)
            counts += torch.stack([(lower == network(x).argmax(1)).sum(), torch.tensor(len(x), device=x.device)])
    same, count = summed(counts).tolist()
    return float(same / count)


def image_key(batches: TrainBatches | EvalBatches) -> dict[str, Any]:
    """What decides how a view of the images of a split looks: the images, and the code that makes views of them."""
    images = batches.images
    digest = hashlib.blake2b(np.ascontiguousarray(images.ids, dtype="<i8").tobytes(), digest_size=16)
    digest.update(images.content())
    for file in sorted(Path(inspect.getfile(TrainBatches)).parent.glob("*.py")):
        digest.update(file.read_bytes())
    prep = getattr(images, "prep", None)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("pillow", "torchvision")]
    return {
        "images": digest.hexdigest(),
        "input": asdict(prep) if prep is not None else None,
        "augment": getattr(batches, "augment", "none"),
        "loading": type(images).__name__,
        "read by": ", ".join(versions),
    }


def network_key(network: nn.Module) -> dict[str, Any]:
    """What decides what a network says: its structure and settings, its tensors, and the code that runs them."""
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, module in network.named_modules():
        settings = {key: _plain(value) for key, value in vars(module).items() if key not in NOT_SETTINGS}
        digest.update(f"{name} {sorted(settings.items())}".encode())
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    folders = {Path(file).parent for module in network.modules() for file in _code(type(module))}
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):  # what it calls may lie beside it
        digest.update(file.read_bytes())
    name = getattr(getattr(network, "model", network), "pretrained_cfg", {}).get("architecture", "")
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    return {"network": name, "fingerprint": digest.hexdigest(), "versions": versions}


def _content(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _plain(value: object) -> str:
    """A setting as text that is the same in every process: of what is no plain value, only what it is."""
    if isinstance(value, (bool, int, float, str, bytes, type(None), torch.dtype, torch.Size)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_plain(key)}: {_plain(found)}' for key, found in value.items()))}}}"
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
    """The files that a class is written in, but those of torch and timm, whose versions are known."""
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in ("torch", "timm", "builtins"):
            with contextlib.suppress(OSError, TypeError):  # defined in a shell
                yield inspect.getfile(base)
