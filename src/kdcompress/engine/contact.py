"""Signs of life: which processes of a job are still there, and what they tell each other outside of collectives.

All goes over the store that the process group was made by, whose calls can block for ever where a link is cut: so each
thread that asks it has a connection of its own, and the one that waits for an answer waits for a limited time.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from kdcompress.errors import UserError

T = TypeVar("T")

BEAT_SECONDS = 2.0
WAITING = b" waiting"  # in a sign of life
FEW = 32  # processes; more of them look for each other less often, lest the store has nothing else to do
PART = 4 * 2**20  # bytes
POLL = 0.001, 0.05  # seconds between two looks for what another process tells: the first, and the longest
PARTING_SECONDS = 10.0  # how long the process that holds the store stays for those that still read from it


class Lost(UserError):
    """Another process of the job cannot be reached any more."""


class Contact:
    """This process' line to its peers.

    Each gives a sign of life every other second, whatever its step takes. It also says whether the process is at work
    or waits for others: nobody waits for one that waits, lest two do so for each other for ever.

    Args:
        store: Of the process group.
        seconds: How long a peer may give no sign of life; ``--dist-timeout``.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, seconds: float) -> None:
        self.rank, self.world, self.seconds = rank, world, seconds
        self.every = min(BEAT_SECONDS, seconds / 10)
        self.number = 0  # of what is told: all processes count alike, for all take the same course
        self.waiting = self.is_lost = False
        self.run: Path | None = None
        self.left = threading.Event()
        self.asks: queue.SimpleQueue[tuple[Callable[[dist.Store], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        store.set(f"host/{rank}", socket.gethostname())
        store.set(f"beat/{rank}", "0")
        for serve in (self._answer, self._beat):
            threading.Thread(target=serve, args=(store.clone(),), daemon=True).start()
        self.hosts = [str(rank) for rank in range(world)]

    def know_hosts(self) -> None:
        """Once all are there."""
        names = [f"host/{rank}" for rank in range(self.world)]
        self.hosts = [name.decode() for name in self.ask(lambda store: store.multi_get(names))]

    def ask(self, call: Callable[[dist.Store], T], seconds: float | None = None) -> T:
        """What the store answers.

        Raises:
            Lost: It does not, or not in time.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.asks.put((call, answer))
        try:
            value, error = answer.get(timeout=self.seconds if seconds is None else seconds)
        except queue.Empty:
            raise self._lost([0], "it gives no sign of life") from None
        if error is not None:
            raise self._lost([0], "the connection broke") from error
        return value

    def tell(self, key: str, value: bytes) -> None:
        """For :meth:`awaited`; in parts, for the store takes only so much at once."""
        parts = [value[start : start + PART] for start in range(0, len(value), PART)] or [b""]
        for number, part in enumerate(parts[1:]):
            self.ask(partial(_set, key=f"{key}/part/{number}", value=part))
        self.ask(partial(_set, key=key, value=len(parts).to_bytes(4, "big") + parts[0]))

    def gather(self, value: bytes) -> list[bytes]:
        """What each process tells, by rank."""
        self.number += 1
        keys = {rank: f"told/{self.number}/{rank}" for rank in range(self.world)}
        all_told = f"told/{self.number}/all"
        self.tell(keys[self.rank], value)
        if self.ask(lambda store: store.add(f"told/{self.number}/count", 1)) == self.world:
            self.tell(all_told, b"")
        return self.awaited(keys, all_told)

    def _whole(self, key: str, said: bytes) -> bytes:
        rest = range(int.from_bytes(said[:4], "big") - 1)
        return said[4:] + b"".join(self.ask(partial(_get, key=f"{key}/part/{number}")) for number in rest)

    def awaited(self, keys: dict[int, str], ready: str) -> list[bytes]:
        """What peers tell, by their rank; waits for as long as those that have not yet are alive.

        Args:
            ready: The key that is there when all are.

        Raises:
            Lost: One of them has left, or gives no sign of life.
        """
        names = list(keys.values())
        pause, looked = POLL[0], time.monotonic()
        since: dict[int, tuple[bytes, float]] = {}
        self.waiting = True
        try:
            while not self.ask(partial(_has, key=ready)):
                if time.monotonic() - looked > self.every * max(1, self.world / FEW):
                    self._check_alive(keys, since)
                    looked = time.monotonic()
                time.sleep(pause)
                pause = min(1.5 * pause, POLL[1])
            first = self.ask(lambda store: store.multi_get(names))
            return [self._whole(name, bytes(said)) for name, said in zip(names, first, strict=True)]
        finally:
            self.waiting = False

    def _check_alive(self, keys: dict[int, str], since: dict[int, tuple[bytes, float]]) -> None:
        late = self._without(keys)
        if self._gone(late):
            late = self._without({rank: keys[rank] for rank in late})  # one may have told its last word meanwhile
            if gone := self._gone(late):
                raise self._agreed(gone)
        now = time.monotonic()
        for rank, beat in zip(late, self._beats(late), strict=True):
            if rank not in since or (since[rank][0] != beat and not beat.endswith(WAITING)):
                since[rank] = beat, now
        if silent := [rank for rank in late if now - since[rank][1] > self.seconds]:
            raise self._agreed(silent)

    def lost(self) -> Lost:
        """The error to raise where a collective failed: names those that give no sign of life."""
        others = [rank for rank in range(self.world) if rank != self.rank]
        self.is_lost = True
        try:
            before = self._beats(others)
            time.sleep(2.5 * self.every)
            return self._agreed(
                [rank for rank, old, new in zip(others, before, self._beats(others), strict=True) if old == new]
            )
        except Lost as error:
            return error

    def _agreed(self, silent: list[int]) -> Lost:
        """The error about some peers, or whom the first to find out has named: who believes it leaves, too."""
        text = ",".join(map(str, silent))
        first = self.ask(lambda store: store.compare_set("lost", "", text or "-"), 2 * self.every).decode()
        named = [int(rank) for rank in first.split(",") if rank.isdigit()]
        self.is_lost = True
        if self.rank in named:
            problem = f"The other processes have missed process {self.rank} on {self.hosts[self.rank]} and left."
            return Lost(problem, self._saved())
        if not named:
            problem = f"The processes did not meet within {self.seconds:g} s, though all of them are alive."
            return Lost(problem, f"Give a longer --dist-timeout. {self._saved()}")
        ended = len(self._gone(named)) == len(named)
        return self._lost(named, "it has ended; its own message says why" if ended else "it gives no sign of life")

    def leave(self) -> None:
        """Say that this process ends; the one whose process may hold the store stays until all have."""
        with contextlib.suppress(Lost, KeyboardInterrupt):
            self.ask(lambda store: store.set(f"left/{self.rank}", "1"), 2 * self.every)
            names = [f"left/{rank}" for rank in range(self.world)]
            end = time.monotonic() + min(PARTING_SECONDS, self.seconds)
            while self.rank == 0 and time.monotonic() < end and not self.ask(lambda store: store.check(names)):
                time.sleep(POLL[1])
        self.left.set()

    def _without(self, keys: dict[int, str]) -> list[int]:
        return [rank for rank, key in keys.items() if not self.ask(partial(_has, key=key))]

    def _gone(self, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if self.ask(partial(_has, key=f"left/{rank}"))]

    def _beats(self, ranks: Iterable[int]) -> list[bytes]:
        names = [f"beat/{rank}" for rank in ranks]
        return self.ask(lambda store: store.multi_get(names), None if self.waiting else 2 * self.every + 1)

    def _lost(self, ranks: list[int], why: str) -> Lost:
        self.is_lost = True
        who = " and ".join(f"process {rank} on {self.hosts[rank]}" for rank in ranks[:3])
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        return Lost(f"Lost contact with {who}{more}: {why}.", self._saved())

    def _saved(self) -> str:
        if self.run is None:
            return "No run was in work; run the same command again."
        return f"What was saved is in {self.run}: run the same command with --resume --out {self.run}"

    def _answer(self, store: dist.Store) -> None:
        store.set_timeout(timedelta(seconds=self.seconds))
        while True:
            call, answer = self.asks.get()
            try:
                answer.put((call(store), None))
            except Exception as error:
                answer.put((None, error))

    def _beat(self, store: dist.Store) -> None:
        count = 0
        with contextlib.suppress(Exception):  # who asks will notice
            while not self.left.wait(self.every):
                count += 1
                store.set(f"beat/{self.rank}", f"{count}{WAITING.decode() if self.waiting else ''}")


def _set(store: dist.Store, key: str, value: bytes) -> None:
    store.set(key, value)  # type: ignore[arg-type]  # takes bytes, too


def _get(store: dist.Store, key: str) -> bytes:
    return bytes(store.get(key))


def _has(store: dist.Store, key: str) -> bool:
    return bool(store.check([key]))
