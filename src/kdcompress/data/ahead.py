"""A thread that works ahead of the one that uses what it makes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
END = object()


def ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """The same items, drawn by a thread, at most ``count`` of them before they are asked for.

    What is ready is there at once, also while the thread waits for the next one. Errors are raised in their turn.
    """
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
    free, stopped = threading.Semaphore(count), threading.Event()

    def draw() -> None:
        iterator = iter(items)
        try:
            while True:
                free.acquire()
                if stopped.is_set():
                    return
                ready.put((next(iterator, END), None))
        except BaseException as error:
            ready.put((END, error))

    # a daemon: it may be waiting for a pipe when nobody wants more
    threading.Thread(target=draw, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is END:
                return
            free.release()
            yield item
    finally:
        stopped.set()
        free.release()
