"""One process or many (``torchrun``): who am I, where do I compute, and what do all agree on."""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from kdcompress.engine.allocation import keep_memory
from kdcompress.engine.precision import cpu_precision, remembered
from kdcompress.errors import UserError, usage_error

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """This process among its peers.

    Attributes:
        rank, world: 0 and 1 outside torchrun.
        precision: ``fp32``, ``bf16`` or ``fp16``, resolved for the device.
    """

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def sum_dtype(self) -> torch.dtype:
        """What sums over many images are kept in: float64 where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def autocast(self) -> Any:
        """Context in which networks run."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def describe(self) -> str:
        """Name of the hardware, for reports of speed."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{_processor()}, {torch.get_num_threads()} threads" if self.device.type == "cpu" else self.device.type


def start(device: str = "auto", precision: str = "auto") -> Place:
    """Join the process group if there is one, and choose device and precision.

    Raises:
        UserError: A device that is not there, or a precision that it does not have.
    """
    from timm.utils.distributed import init_distributed_device_so, is_distributed_env

    name = _device(device)
    rank, world = 0, 1
    if is_distributed_env() or dist.is_initialized():
        if not dist.is_initialized():
            init_distributed_device_so(device=name)
            atexit.register(_leave)
        rank, world = dist.get_rank(), dist.get_world_size()
        name = f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name
    where = torch.device(name)
    if where.type == "cpu":
        keep_memory()
    return Place(where, _precision(precision, where), rank, world)


def from_main(make: Callable[[], T]) -> T:
    """Let the main process do something once, and give its result (or its error) to all."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return make()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [(make(), None)]
        except UserError as error:
            box = [(None, (*error.args, error.exit_code))]
    dist.broadcast_object_list(box, src=0)
    value, problem = box[0]
    if problem is not None:
        raise UserError(problem[0], problem[1], exit_code=problem[2])
    return value


def summed(values: Tensor) -> Tensor:
    """Sum over all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def gathered(rows: Tensor, total: int, place: Place) -> Tensor:
    """Rows of which process r holds r, r + world, r + 2 world …: all ``total`` of them, in every process."""
    if place.world == 1:
        return rows
    longest = -(-total // place.world)
    padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in range(place.world)]
    dist.all_gather(found, padded)
    return torch.stack(found, dim=1).flatten(0, 1)[:total]


def anyone(flag: bool, place: Place) -> bool:
    """Whether it holds for any process; all of them must ask."""
    return bool(summed(torch.tensor(float(flag), device=place.device)).item())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise usage_error(f"--device {name} is not available here.", "Use --device auto.")
    return name


def _precision(name: str, device: torch.device) -> str:
    if device.type == "cpu":
        if name == "fp16":
            raise usage_error("--precision fp16 needs a GPU.", "Use --precision bf16 or fp32.")
        return cpu_precision(name, lambda: from_main(remembered))  # a trial of each might end otherwise
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    import platform

    return platform.processor() or platform.machine()
