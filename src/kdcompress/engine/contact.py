"""Heartbeats: which processes of a job are still alive, and the messages they exchange outside of collectives.

All of it goes through the store of the process group. Its calls can block forever where a link is cut, so a thread with
a connection of its own makes them, and whoever needs the answer waits for a limited time.
"""

from __future__ import annotations

import contextlib
import queue
import re
import shlex
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
WAITING = b" waiting"  # part of a heartbeat
FEW = 32  # processes; more of them check each other less often, so as not to overload the store
PART = 4 * 2**20  # bytes; the store limits the size of a value
POLL = 0.001, 0.05  # seconds between two polls for a message: the first, and the longest
PARTING_SECONDS = 10.0  # how long the process that hosts the store stays for those that still read from it


class Lost(UserError):
    """Contact with another process of the job is lost."""


class Contact:
    """Heartbeats and messages between this process and its peers.

    Each process sends a heartbeat every other second, however long its step takes. The heartbeat also says whether the
    process computes or waits for others; one that only waits counts as silent, so that two cannot wait for each other
    forever.

    Args:
        store: Of the process group.
        seconds: How long a peer may send no heartbeat; ``--dist-timeout``.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, seconds: float) -> None:
        self.rank, self.world, self.seconds = rank, world, seconds
        self.every = min(BEAT_SECONDS, seconds / 10)
        self.number = 0  # of the message: the same in all processes, for all send and receive in the same order
        self.waiting = self.is_lost = False
        self.run: Path | None = None
        self.left = threading.Event()
        self.calls: queue.SimpleQueue[tuple[Callable[[dist.Store], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        store.set(f"host/{rank}", socket.gethostname())
        store.set(f"beat/{rank}", "0")
        for serve in (self._serve_calls, self._beat):
            threading.Thread(target=serve, args=(store.clone(),), daemon=True).start()
        self.hosts = [str(rank) for rank in range(world)]

    def exchange_hosts(self) -> None:
        """Learn the host names of all processes; call it once all have joined."""
        names = [f"host/{rank}" for rank in range(self.world)]
        self.hosts = [name.decode() for name in self.call(lambda store: store.multi_get(names))]

    def call(self, call: Callable[[dist.Store], T], seconds: float | None = None) -> T:
        """The result of a call of the store.

        Args:
            seconds: How long to wait for it; None: ``--dist-timeout``.

        Raises:
            Lost: The call failed, or did not return in time.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.calls.put((call, answer))
        try:
            value, error = answer.get(timeout=self.seconds if seconds is None else seconds)
        except queue.Empty:
            raise self._lost([0], "it gives no sign of life") from None
        if error is not None:
            raise self._lost([0], "the connection broke") from error
        return value

    def send(self, key: str, value: bytes) -> None:
        """Store a message for :meth:`receive`, in parts of limited size."""
        parts = [value[start : start + PART] for start in range(0, len(value), PART)] or [b""]
        for number, part in enumerate(parts[1:]):
            self.call(partial(_set, key=f"{key}/part/{number}", value=part))
        self.call(partial(_set, key=key, value=len(parts).to_bytes(4, "big") + parts[0]))

    def gather(self, value: bytes) -> list[bytes]:
        """The message of each process, by rank.

        Raises:
            Lost: As :meth:`receive`.
        """
        self.number += 1
        keys = {rank: f"message/{self.number}/{rank}" for rank in range(self.world)}
        complete = f"message/{self.number}/all"
        self.send(keys[self.rank], value)
        if self.call(lambda store: store.add(f"message/{self.number}/count", 1)) == self.world:
            self.send(complete, b"")
        return self.receive(keys, complete)

    def _joined(self, key: str, first: bytes) -> bytes:
        """A message from its first part, which begins with the number of parts."""
        rest = range(int.from_bytes(first[:4], "big") - 1)
        return first[4:] + b"".join(self.call(partial(_get, key=f"{key}/part/{number}")) for number in rest)

    def receive(self, keys: dict[int, str], ready: str) -> list[bytes]:
        """The messages of peers; waits as long as those that have not sent theirs are alive.

        Args:
            keys: Key of the message, by rank.
            ready: The key that exists once all messages do.

        Raises:
            Lost: One of them has left, or sends no heartbeat.
        """
        names = list(keys.values())
        pause, looked = POLL[0], time.monotonic()
        since: dict[int, tuple[bytes, float]] = {}
        self.waiting = True
        try:
            while not self.call(partial(_has, key=ready)):
                if time.monotonic() - looked > self.every * max(1, self.world / FEW):
                    if not self._late(keys, since):
                        break  # one left between its message and its count
                    looked = time.monotonic()
                time.sleep(pause)
                pause = min(1.5 * pause, POLL[1])
            parts = self.call(lambda store: store.multi_get(names))
            return [self._joined(name, bytes(first)) for name, first in zip(names, parts, strict=True)]
        finally:
            self.waiting = False

    def _late(self, keys: dict[int, str], since: dict[int, tuple[bytes, float]]) -> list[int]:
        """The peers that have not sent their messages, all of which are alive.

        Raises:
            Lost: One of them is not.
        """
        late = self._without(keys)
        if self._gone(late):
            late = self._without({rank: keys[rank] for rank in late})  # one may have sent its message before it left
            if gone := self._gone(late):
                raise self._agreed_error(gone)
        now = time.monotonic()
        for rank, beat in zip(late, self._beats(late), strict=True):
            if rank not in since or (since[rank][0] != beat and not beat.endswith(WAITING)):
                since[rank] = beat, now
        if silent := [rank for rank in late if now - since[rank][1] > self.seconds]:
            raise self._agreed_error(silent)
        return late

    def lost(self, error: Exception) -> Lost:
        """The error to raise where a collective failed; it names the processes that send no heartbeat.

        Args:
            error: PyTorch's. If all processes are alive, and it is about no time-out, it is itself the problem.
        """
        others = [rank for rank in range(self.world) if rank != self.rank]
        self.is_lost = True
        try:
            before = self._beats(others)
            time.sleep(2.5 * self.every)
            after = self._beats(others)
            silent = [rank for rank, old, new in zip(others, before, after, strict=True) if old == new]
            return self._agreed_error(silent, error)
        except Lost as lost:
            return lost

    def _agreed_error(self, silent: list[int], failed: Exception | None = None) -> Lost:
        """The error about silent peers; all processes report the ones that the first to notice has named.

        Args:
            failed: The error of a collective, which is told where nobody is named.
        """
        text = ",".join(map(str, silent))
        first = self.call(lambda store: store.compare_set("lost", "", text or "-"), 2 * self.every).decode()
        named = [int(rank) for rank in first.split(",") if rank.isdigit()]
        self.is_lost = True
        if self.rank in named:
            problem = f"The other processes lost contact with process {self.rank} on {self.hosts[self.rank]} and left."
            return Lost(problem, self._saved())
        if not named and (cause := _cause(failed)):
            more = (
                "In a container, raise --shm-size; NCCL_DEBUG=INFO shows more. "
                if "nccl" in str(failed).lower()
                else ""
            )
            return Lost(f"The processes could not exchange data: {cause}", f"{more}{self._saved()}")
        if not named:
            problem = f"The processes are alive, but were not in step within {self.seconds:g} s."
            return Lost(problem, f"Give a longer --dist-timeout. {self._saved()}")
        ended = len(self._gone(named)) == len(named)
        return self._lost(named, "it has ended; its own message says why" if ended else "it gives no sign of life")

    def leave(self) -> None:
        """Announce that this process ends; rank 0, which may host the store, stays until all have announced it."""
        with contextlib.suppress(Lost, KeyboardInterrupt):
            self.call(lambda store: store.set(f"left/{self.rank}", "1"), 2 * self.every)
            names = [f"left/{rank}" for rank in range(self.world)]
            end = time.monotonic() + min(PARTING_SECONDS, self.seconds)
            while self.rank == 0 and time.monotonic() < end and not self.call(lambda store: store.check(names)):
                time.sleep(POLL[1])
        self.left.set()

    def _without(self, keys: dict[int, str]) -> list[int]:
        return [rank for rank, key in keys.items() if not self.call(partial(_has, key=key))]

    def _gone(self, ranks: Iterable[int]) -> list[int]:
        return [rank for rank in ranks if self.call(partial(_has, key=f"left/{rank}"))]

    def _beats(self, ranks: Iterable[int]) -> list[bytes]:
        names = [f"beat/{rank}" for rank in ranks]
        return self.call(lambda store: store.multi_get(names), None if self.waiting else 2 * self.every + 1)

    def _lost(self, ranks: list[int], why: str) -> Lost:
        self.is_lost = True
        who = " and ".join(f"process {rank} on {self.hosts[rank]}" for rank in ranks[:3])
        more = f" and {len(ranks) - 3} more" if len(ranks) > 3 else ""
        return Lost(f"Lost contact with {who}{more}: {why}.", self._saved())

    def _saved(self) -> str:
        if self.run is None:
            return "No run was in progress; run the same command again."
        out = shlex.quote(str(self.run))
        return f"The last saved state is in {self.run}: run the same command with --resume --out {out}"

    def _serve_calls(self, store: dist.Store) -> None:
        store.set_timeout(timedelta(seconds=self.seconds))
        while True:
            call, answer = self.calls.get()
            try:
                answer.put((call(store), None))
            except Exception as error:
                answer.put((None, error))

    def _beat(self, store: dist.Store) -> None:
        count = 0
        with contextlib.suppress(Exception):  # the next call will fail and say so
            while not self.left.wait(self.every):
                count += 1
                store.set(f"beat/{self.rank}", f"{count}{WAITING.decode() if self.waiting else ''}")


def _cause(failed: Exception | None) -> str:
    """What the error of a collective says; nothing if it is that a peer is late."""
    if failed is None or re.search(r"tim(e|ed)[ -]?out", str(failed), re.IGNORECASE):
        return ""
    told = [line.strip() for line in str(failed).splitlines()]
    return next((line for line in reversed(told) if line and line != "Last error:"), "")


def _set(store: dist.Store, key: str, value: bytes) -> None:
    store.set(key, value)  # type: ignore[arg-type]  # accepts bytes, too


def _get(store: dist.Store, key: str) -> bytes:
    return bytes(store.get(key))


def _has(store: dist.Store, key: str) -> bool:
    return bool(store.check([key]))
