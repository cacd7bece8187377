"""Messages between the processes of a job, where one of them leaves at a bad moment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from kdcompress.engine import distributed
from kdcompress.engine.contact import Contact
from kdcompress.errors import UserError

NO_MEMORY = """NCCL error in: NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details)
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-1 (size 9637888)"""


@pytest.fixture
def contact() -> Iterator[Contact]:
    """Process 0 of two, both of which are alive."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("lost", "")
    both = [Contact(store, rank=rank, world=2, seconds=1.0) for rank in (0, 1)]
    yield both[0]
    for each in both:
        each.left.set()


def test_a_peer_that_left_after_its_message_is_not_waited_for() -> None:
    """Between its message and its count, a process may be killed; the others would wait for that count forever."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    contact = Contact(store, rank=0, world=2, seconds=1.0)
    store.set("message/1/1", (1).to_bytes(4, "big") + b"the last words")
    try:
        assert contact.gather(b"mine") == [b"mine", b"the last words"]
    finally:
        contact.left.set()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "NCCL error: unhandled system error\nncclSystemError: no such device.\nLast error:\n\n",
            "data: ncclSystemError",
        ),
        (NO_MEMORY, "could not exchange data: Error while creating shared memory segment"),
        ("[gloo] Timed out waiting 1000ms for recv operation to complete", "not in step within 1 s"),
    ],
)
def test_a_failed_collective_is_no_late_peer(contact: Contact, error: str, told: str) -> None:
    """Whatever NCCL said, the remedy was to wait longer."""
    assert told in contact.lost(RuntimeError(error)).problem


@pytest.mark.parametrize(
    ("status", "is_lost", "exits"), [(0, False, []), (2, False, [2]), (0, True, [1]), (130, True, [130])]
)
def test_a_process_that_fails_does_not_wait_for_its_peers(
    contact: Contact, status: int, is_lost: bool, exits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL ends its communicator together with the peers, which wait for this process until the time-out."""
    left: list[int] = []
    monkeypatch.setattr(distributed._Peers, "status", 0)
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(contact, "leave", lambda: None)
    contact.is_lost = is_lost
    distributed.failed(status)
    distributed._leave(contact)
    assert left == exits


@pytest.mark.parametrize(("count", "local", "gpu"), [(8, 5, 5), (1, 5, 0), (4, 5, None)])
def test_each_process_has_a_gpu_of_its_own(
    count: int, local: int, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm may show each process one GPU alone, which is then number 0, whatever the number of the process."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if gpu is None:
        with pytest.raises(UserError, match="host-a runs more processes than its 4 GPU"):
            distributed._own_gpu(local, "host-a")
    else:
        assert distributed._own_gpu(local, "host-a") == gpu
