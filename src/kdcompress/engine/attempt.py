"""A clean store for each attempt of a job.

torchrun keeps one store for all attempts (``--max-restarts``), but PyTorch assumes that it is empty: processes of the
second attempt would read the addresses of dead ones there, and wait for them.
"""

from __future__ import annotations

import secrets
import time

import torch.distributed as dist

POLL_SECONDS = 0.02


def clean_store(store: dist.Store, rank: int, world: int, seconds: float) -> tuple[dist.Store, bool]:
    """An unused prefix of the store, the same for all processes; and whether there was an attempt before.

    The main process offers a prefix, each other process answers with a random token, and the main process confirms by
    repeating that token. So an offer left over from an earlier attempt is never taken for the current one.

    Args:
        seconds: How long to wait for all processes.

    Raises:
        RuntimeError: Not all processes have joined in time.
    """
    end = time.monotonic() + seconds
    if rank == 0:
        before = store.check(["offer"])
        offer = secrets.token_hex(8)
        store.set("offer", offer)
        for peer in range(1, world):
            taken = f"{offer}/taken/{peer}"
            while not store.check([taken]):
                _wait(end, f"process {peer} has not joined")
            store.set(f"{offer}/confirmed/{peer}", store.get(taken).decode())
        return dist.PrefixStore(offer, store), before
    token, offer = secrets.token_hex(8), ""
    while True:
        if store.check(["offer"]) and offer != (newest := store.get("offer").decode()):
            offer = newest
            store.set(f"{offer}/taken/{rank}", token)
        confirmed = f"{offer}/confirmed/{rank}"
        if offer and store.check([confirmed]) and store.get(confirmed).decode() == token:
            return dist.PrefixStore(offer, store), False
        _wait(end, "process 0 has not joined")


def _wait(end: float, problem: str) -> None:
    if time.monotonic() > end:
        raise RuntimeError(problem)
    time.sleep(POLL_SECONDS)
