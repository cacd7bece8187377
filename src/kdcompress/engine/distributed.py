"""One process or many (``torchrun``): rank, device, precision, and what the processes exchange."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdcompress.engine.allocation import keep_memory
from kdcompress.engine.attempt import clean_store
from kdcompress.engine.contact import Contact
from kdcompress.engine.precision import Process, bf16_support, cpu_precision
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.threads import share_cores, usable

T = TypeVar("T")

USUAL_TIMEOUT = 300.0
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")  # as timm reads them
# in the errors of gloo, NCCL and PyTorch when a peer does not respond
OF_PEERS = re.compile(
    r"gloo|NCCL|c10d|TCPStore|pair closure|Connection (closed|reset|refused)|Broken pipe", re.IGNORECASE
)


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
        """Whether this is process 0, which alone writes and prints."""
        return self.rank == 0

    @property
    def sum_dtype(self) -> torch.dtype:
        """For sums over many images: float64 where the device has it."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def autocast(self) -> Any:
        """Autocast context for this precision; does nothing in fp32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype) if dtype else contextlib.nullcontext()

    def describe(self) -> str:
        """Name of the hardware, reported beside speeds."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type != "cpu":
            return self.device.type
        threads = torch.get_num_threads()
        return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def start(device: str = "auto", precision: str = "auto", seconds: float = USUAL_TIMEOUT) -> Place:
    """Join the process group if there is one, and choose device and precision.

    Args:
        seconds: How long processes wait for one that gives no sign of life.

    Raises:
        UserError: The device is not available, it lacks the precision, or not all processes have joined in time.
    """
    from timm.utils.distributed import is_distributed_env

    name = _device(device)
    rank, world = 0, 1
    if not _Peers.hidden and (is_distributed_env() or dist.is_initialized()):
        if _Peers.contact is None:
            _join(name, seconds)
        rank, world = dist.get_rank(), dist.get_world_size()
        name = f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name
    where = torch.device(name)
    if where.type == "cpu":
        keep_memory()
    return Place(where, _precision(precision, where), rank, world)


class _Peers:
    """The other processes of this job."""

    contact: Contact | None = None
    hidden = False
    restarted = False
    status = 0


def _join(device: str, seconds: float) -> None:
    """Join the process group that torchrun, Slurm or the like describe in the environment, or that the caller made."""
    from timm.utils.distributed import world_info_from_env

    local, rank, world = world_info_from_env()
    before, by_caller, by_launcher = False, dist.is_initialized(), any(name in os.environ for name in LOCAL_RANKS)
    if by_caller:
        store, rank, world = dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
        contact = Contact(dist.PrefixStore("kdcompress", store), rank, world, seconds)
        contact.gather(b"")
    else:
        os.environ.update(LOCAL_RANK=str(local), RANK=str(rank), WORLD_SIZE=str(world))
        limit = timedelta(seconds=seconds)
        try:
            store, rank, world = next(dist.rendezvous("env://", timeout=limit))
            store, before = clean_store(store, rank, world, seconds)
            contact = Contact(dist.PrefixStore("kdcompress", store), rank, world, seconds)
            backend = "nccl" if device == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"The {world} processes of the job could not connect within {seconds:g} s: {first_line(error)}",
                "Start all of them with the same MASTER_ADDR and MASTER_PORT (torchrun: --rdzv-endpoint), or give a "
                "longer --dist-timeout.",
            ) from error
    Process.has_chosen_threads = True  # the launcher sets the number of threads per process
    contact.exchange_hosts()
    here = [other for other, name in enumerate(contact.hosts) if name == contact.hosts[rank]]
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(len(here)))
    _Peers.contact = contact
    # unlike atexit, this also runs in processes that multiprocessing has started
    Finalize(None, _leave, args=(contact,), exitpriority=10)
    gpu = ""
    if device == "cuda" and (by_launcher or not by_caller):
        torch.cuda.set_device(_own_gpu(local if by_launcher else here.index(rank), contact.hosts[rank]))
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    gpus, cores, again = zip(*gather_objects((gpu, usable(), before or restarted())), strict=True)
    if gpu and sum(gpus[other] == gpu for other in here) > 1:
        raise _too_few_gpus(contact.hosts[rank])
    share_cores(sum(not cores[rank].isdisjoint(cores[other]) for other in here))
    _Peers.restarted = any(again)


def _own_gpu(local: int, name: str) -> int:
    """The GPU of the process with this number on the host ``name``.

    Raises:
        UserError: It has more processes than GPUs.
    """
    count = torch.cuda.device_count()
    if count == 1:  # launchers may show each process its own only
        return 0
    if local >= count:
        raise _too_few_gpus(name)
    return local


def _too_few_gpus(name: str) -> UserError:
    return usage_error(f"{name} runs more processes than its {torch.cuda.device_count()} GPU(s).", "Start one on each.")


def restarted() -> bool:
    """Whether torchrun has restarted this job after one of its processes failed (``--max-restarts``)."""
    return _Peers.restarted or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def from_main(make: Callable[[], T]) -> T:
    """Call ``make`` in the main process only, and return its result (or raise its error) in all processes.

    The others wait as long as the main process is alive, however long the call takes.

    Raises:
        UserError: As ``make`` raised it.
        Lost: The main process has gone.
    """
    contact = _Peers.contact
    if contact is None or contact.world == 1:
        return make()
    contact.number += 1
    key = f"message/{contact.number}"
    if contact.rank != 0:
        value, problem = pickle.loads(contact.receive({0: key}, key)[0])
        if problem is not None:
            raise UserError(problem[0], problem[1], exit_code=problem[2])
        return value
    try:
        value = make()
    except UserError as error:
        contact.send(key, pickle.dumps((None, (error.problem, error.remedy, error.exit_code))))
        raise
    contact.send(key, pickle.dumps((value, None)))
    return value


def gather_objects(value: T) -> list[T]:
    """The values of all processes, by rank. Waits as :func:`from_main` does, without a time limit."""
    contact = _Peers.contact
    if contact is None or contact.world == 1:
        return [value]
    return [pickle.loads(message) for message in contact.gather(pickle.dumps(value))]


def barrier() -> None:
    """Wait for all processes: from here on they are in step, and ``--dist-timeout`` applies."""
    gather_objects(None)


def check_same(facts: Mapping[str, Any]) -> None:
    """Check that all processes have the same settings and data.

    Args:
        facts: Name -> value, compared with the main process.

    Raises:
        UserError: A value differs; names the first such one, and the process.
    """
    of_all = gather_objects(dict(facts))
    for rank, theirs in enumerate(of_all):
        for key, value in of_all[0].items():
            if theirs.get(key) != value:
                where = f"{theirs.get(key)} in process {rank} on {host(rank)}, {value} in process 0 on {host(0)}"
                problem = f"The processes differ: {key} is {where}."
                raise UserError(problem, "Give all processes the same options, and all hosts the same images.")


def host(rank: int) -> str:
    """Host name of a process."""
    return _Peers.contact.hosts[rank] if _Peers.contact is not None else "localhost"


def remember(run: Path) -> None:
    """Name a run as the one to resume if contact is lost; of nested runs, the outer one."""
    contact = _Peers.contact
    if contact is not None and (contact.run is None or contact.run not in run.parents):
        contact.run = run


def forget(run: Path) -> None:
    """The run is finished: an error need not name it any more."""
    if _Peers.contact is not None and _Peers.contact.run == run:
        _Peers.contact.run = None


def share_buffers(module: nn.Module) -> None:
    """Give a network in all processes the buffers of the first: each has BatchNorm statistics of its own images."""
    for buffer in module.buffers():
        with in_contact():
            dist.broadcast(buffer, 0)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process runs as the only one, while the others wait in :func:`from_main`."""
    contact, _Peers.contact, _Peers.hidden = _Peers.contact, None, True
    try:
        yield
    finally:
        _Peers.contact, _Peers.hidden = contact, False


@contextlib.contextmanager
def in_contact() -> Iterator[None]:
    """Inside, the error of a collective is replaced by one that names the processes that are gone.

    Raises:
        Lost: In place of PyTorch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if _Peers.contact is None or not OF_PEERS.search(str(error)):
            raise
        raise _Peers.contact.lost(error) from error


def summed(values: Tensor) -> Tensor:
    """Sum over all processes, in place; waits for them without a time limit."""
    if _Peers.contact is not None and _Peers.contact.world > 1:
        barrier()
        with in_contact():
            dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, total: int, place: Place) -> Tensor:
    """All ``total`` rows [N, ...], in every process, where process r holds rows r, r + world, r + 2 world …

    Args:
        rows: Those of this process.
    """
    if place.world == 1:
        return rows
    longest = -(-total // place.world)
    padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(place.world)]
    with in_contact():
        dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


def any_process(flag: bool, place: Place) -> bool:
    """Whether ``flag`` is set in any process; a collective, so all of them must call it, in step."""
    count = torch.tensor(float(flag), device=place.device)
    if place.world > 1:
        with in_contact():
            dist.all_reduce(count)
    return bool(count.item())


def failed(status: int) -> None:
    """Say that this process ends by an error, with this exit status."""
    _Peers.status = status


def _leave(contact: Contact) -> None:
    """At the end of the process."""
    if not contact.is_lost:
        contact.leave()
    if contact.is_lost or _Peers.status:
        # A normal exit would wait for peers: PyTorch's threads for a lost one, and NCCL for all of them to end its
        # communicator, while they wait for this process in a collective.
        for child in multiprocessing.active_children():
            child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_Peers.status or 1)
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available[name]:
        raise usage_error(f"--device {name} is not available here.", "Use --device auto.")
    return name


def _precision(name: str, device: torch.device) -> str:
    if device.type == "cpu":
        if name == "fp16":
            raise usage_error("--precision fp16 needs a GPU.", "Use --precision bf16 or fp32.")
        return cpu_precision(name, lambda: from_main(bf16_support))  # trials of their own might disagree
    if name != "auto":
        return name
    return from_main(lambda: _fastest(device))


def _fastest(device: torch.device) -> str:
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
