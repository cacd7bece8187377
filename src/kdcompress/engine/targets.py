"""What frozen networks say about images, computed once and kept: distillation at the speed of the student alone.

Augmentation is a pure function of (seed, view, image). With a fixed number of views each network sees each of them
once, in large batches, before the first epoch that needs it; later epochs and later runs read what it said.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from kdcompress.cache import ArrayStore
from kdcompress.data import EvalBatches, TrainBatches
from kdcompress.engine.distributed import Place, anyone, from_main, gathered, summed
from kdcompress.errors import first_line

FORWARD_BATCH, CPU_BATCH = 512, 128  # what does not fit its caches makes a processor slower, by half and more
SEED = 0  # of the views, whatever that of the run: other runs then find them
HALF_MAX, CHECKED = 65504.0, 1024

ToldBatch = tuple[Tensor, Tensor, dict[str, Tensor]]


def unpacked(batch: tuple[Tensor, Tensor] | ToldBatch) -> ToldBatch:
    """A batch with what is told about it, if only that nothing is."""
    return batch if len(batch) == 3 else (*batch, {})


class Targets:
    """What frozen networks say about the images of a split, a view at a time: read, or computed and kept.

    All processes of a training use it together, and the main one writes. Where the store fails, which is said once,
    each view is computed anew when it is needed, and the results are the same.

    Args:
        networks: Name of an argument of the task -> network, on the device: images [B, C, H, W] to rows [B, W], such
            as logits.
        widths: W, by the same names.
        batches: Of the split.
        fingerprint: Of the data.
        note: Told where the store fails.
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
        self.networks, self.batches, self.place, self.note = dict(networks), batches, place, note
        self.store: ArrayStore | None = store
        self.count = len(batches.images.ids)
        self.shapes = {name: (self.count, widths[name]) for name in self.networks}
        images = {"data": fingerprint, **image_key(batches)}
        where = {"device": place.device.type, "precision": place.precision, "seed": SEED}
        self.keys = {name: {**network_key(network), **images, **where} for name, network in self.networks.items()}
        self.view: int | None = None
        self.rows: dict[str, np.ndarray] = {}

    def prepare(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Make a view ready; False if it was stopped on the way."""
        if view == self.view:
            return True
        self.view, self.rows = None, {}
        if not self._keep(view, stopped):
            return False
        self.rows = self._kept(view)
        if len(self.rows) < len(self.networks):
            self._give_up("its files cannot be read by all processes")
            self.rows = {name: np.empty(shape, np.float16) for name, shape in self.shapes.items()}
            if not self._compute(view, self.rows, stopped):
                return False
        self.view = view
        return True

    def told(self, positions: np.ndarray) -> dict[str, Tensor]:
        """What was said about some images of the view that is ready: rows [B, W] by name, on the device."""
        found = {}
        for name, rows in self.rows.items():
            chosen = torch.from_numpy(rows[positions])
            if self.place.device.type == "cuda":
                chosen = chosen.pin_memory()
            found[name] = chosen.to(self.place.device, non_blocking=True).float()
        return found

    def _kept(self, view: int) -> dict[str, np.ndarray]:
        """What the store holds of a view for every process."""
        found = {}
        for name in self.keys:
            rows = self._read(name, view)
            if not anyone(rows is None, self.place) and rows is not None:
                found[name] = rows
        return found

    def _read(self, name: str, view: int) -> np.ndarray | None:
        return self.store.open(self.keys[name], view, self.shapes[name]) if self.store is not None else None

    def _keep(self, view: int, stopped: Callable[[], bool]) -> bool:
        """Let the store hold a view; False if it was stopped on the way."""
        if self.store is None or len(self._kept(view)) == len(self.networks):
            return True
        arrays: dict[str, np.ndarray | None] = {}
        problem, done = "", False
        try:
            with contextlib.suppress(_Discard), contextlib.ExitStack() as files:
                missing, problem = from_main(lambda: self._open(view, files, arrays))
                done = not problem and self._compute(view, {name: arrays.get(name) for name in missing}, stopped)
                if not done:
                    raise _Discard
        except OSError as error:
            problem = error.strerror or first_line(error)
        problem = from_main(partial(str, problem))  # nobody reads before the main process has named the files
        if problem:
            self._give_up(problem)
        return done or bool(problem)

    def _open(self, view: int, files: contextlib.ExitStack, arrays: dict[str, np.ndarray | None]) -> tuple[Any, str]:
        """Lock what is missing and make files for it; which, and why it cannot be done."""
        assert self.store is not None
        try:
            for name in sorted(self.keys):
                files.enter_context(self.store.lock(self.keys[name], view))
            # who held the lock before may have written them
            missing = [name for name in self.keys if self._read(name, view) is None]
            for name in missing:
                arrays[name] = files.enter_context(self.store.create(self.keys[name], view, self.shapes[name]))
        except OSError as error:
            return [], error.strerror or first_line(error)
        return missing, ""

    def _give_up(self, problem: str) -> None:
        if self.store is not None:
            self.note(
                f"Warning: targets cannot be kept in {self.store.folder}: {problem}. They are computed anew each epoch."
            )
            self.store = None

    def _compute(self, view: int, arrays: Mapping[str, np.ndarray | None], stopped: Callable[[], bool]) -> bool:
        """Ask the networks about a view; every process a share. False if it was stopped on the way."""
        count, world = self.count, self.place.world
        chunks = np.array_split(np.arange(count), -(-count // (forward_batch(self.place) * world)))
        parts = [chunk[self.place.rank :: world] for chunk in chunks]
        with torch.inference_mode(), self.place.autocast():
            for chunk, (x, _) in zip(chunks, self.batches.load(parts, SEED, view), strict=True):
                if anyone(stopped(), self.place):
                    return False
                for name, array in arrays.items():
                    said = self.networks[name](x).float().clamp(-HALF_MAX, HALF_MAX).half()
                    rows = gathered(said, len(chunk), self.place)
                    if array is not None:
                        array[chunk[0] : chunk[-1] + 1] = rows.cpu().numpy()
        return True


class _Discard(Exception):
    """Leaves the context of a file that is not to be kept."""


@dataclass
class ToldBatches:
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

    def prepare(self, epoch: int, stopped: Callable[[], bool]) -> bool:
        return self.targets.prepare(epoch % self.views, stopped)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[ToldBatch]:
        parts = self.batches.parts(epoch, first_step)
        loaded = self.batches.load(parts, SEED, epoch % self.views)
        return ((x, y, self.targets.told(part)) for part, (x, y) in zip(parts, loaded, strict=True))


@dataclass
class ToldEval:
    """A split as it is, with what frozen networks say about it."""

    batches: EvalBatches
    targets: Targets

    def __iter__(self) -> Iterator[ToldBatch]:
        self.targets.prepare(0, lambda: False)
        parts = self.batches.parts()
        return ((x, y, self.targets.told(part)) for part, (x, y) in zip(parts, self.batches.load(parts), strict=True))


def forward_batch(place: Place) -> int:
    """Images at a time for a network that only infers, whatever the training's batch."""
    return CPU_BATCH if place.device.type == "cpu" else FORWARD_BATCH


def precision_agreement(network: nn.Module, batches: TrainBatches, place: Place) -> float:
    """Share of about a thousand images about which a network says the same in the place's precision and in float32."""
    images = np.arange(min(len(batches.images.ids), CHECKED))[place.rank :: place.world]
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
    """What decides how a view of the images of a split looks, but the data themselves."""
    images = batches.images
    prep = getattr(images, "prep", None)
    return {
        "images": hashlib.sha256(np.ascontiguousarray(images.ids, dtype="<i8").tobytes()).hexdigest()[:20],
        "input": asdict(prep) if prep is not None else None,
        "augment": getattr(batches, "augment", "none"),
        "loading": type(images).__name__,
    }


def network_key(network: nn.Module) -> dict[str, Any]:
    """What decides what a network says: its structure, its tensors, and the code that runs them."""
    digest = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for file in sorted({file for module in network.modules() for file in _code(type(module))}):
        digest.update(Path(file).read_bytes())
    name = getattr(getattr(network, "model", network), "pretrained_cfg", {}).get("architecture", "")
    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    return {"network": name, "fingerprint": digest.hexdigest(), "versions": versions}


def _code(kind: type) -> Iterator[str]:
    """The files that a class is written in, but those of torch and timm, whose versions are known."""
    for base in kind.__mro__:
        if base.__module__.split(".")[0] not in ("torch", "timm", "builtins"):
            with contextlib.suppress(OSError, TypeError):  # defined in a shell
                yield inspect.getfile(base)
