"""A clean store for each attempt of a job.

torchrun keeps one store for all attempts (``--max-restarts``), and PyTorch believes it new each time: processes of the
second attempt then read the addresses of dead ones there, and wait for them.
"""

from __future__ import annotations

import secrets
import time

import torch.distributed as dist

POLL_SECONDS = 0.02


def clean_store(store: dist.Store, rank: int, world: int, seconds: float) -> tuple[dist.Store, bool]:
    """A part of the store that holds nothing, the same for all processes; and whether there was an attempt before.

    The main process offers one. What another reads may be the offer of an earlier attempt, which nobody confirms any
    more: a confirmation repeats a word that is made up for it.

    Raises:
        RuntimeError: Not all processes have come in time.
    """
    end = time.monotonic() + seconds
    if rank == 0:
        before = store.check(["offer"])
        offer = secrets.token_hex(8)
        store.set("offer", offer)
        for peer in range(1, world):
            taken = f"{offer}/taken/{peer}"
            while not store.check([taken]):
                _wait(end, f"process {peer} has not come")
            store.set(f"{offer}/confirmed/{peer}", store.get(taken).decode())
        return dist.PrefixStore(offer, store), before
    word, offer = secrets.token_hex(8), ""
    while True:
        if store.check(["offer"]) and offer != (newest := store.get("offer").decode()):
            offer = newest
            store.set(f"{offer}/taken/{rank}", word)
        confirmed = f"{offer}/confirmed/{rank}"
        if offer and store.check([confirmed]) and store.get(confirmed).decode() == word:
            return dist.PrefixStore(offer, store), False
        _wait(end, "process 0 has not come")


def _wait(end: float, why: str) -> None:
    if time.monotonic() > end:
        raise RuntimeError(why)
    time.sleep(POLL_SECONDS)
