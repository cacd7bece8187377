"""A thread that works ahead."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from kdcompress.data.ahead import ahead


def test_items_keep_their_order() -> None:
    """Rows are of other images than they say."""
    assert list(ahead(iter(range(100)), 3)) == list(range(100))
    assert list(ahead([], 1)) == []


def test_no_more_is_drawn_than_asked_for() -> None:
    """All images of a folder are read into memory while the first ones are classified."""
    drawn: list[int] = []
    enough = threading.Event()

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            if number == 2:
                enough.set()
            yield number

    with contextlib.closing(ahead(items(), 2)) as numbers:
        assert next(numbers) == 0
        assert enough.wait(10), "nothing is read ahead"
        assert drawn == [0, 1, 2]
        assert next(numbers) == 1
        assert len(drawn) <= 4


def test_what_is_ready_does_not_wait() -> None:
    """Rows of images that came through a pipe are held back until more of them come."""
    more = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2 if more.wait(10) else 0

    numbers = ahead(items(), 2)
    assert next(numbers) == 1
    more.set()
    assert next(numbers) == 2, "the first one was held back until the second one was given up"


def test_errors_come_in_their_turn() -> None:
    """An error in the list of images loses the rows before it, or is lost itself."""

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    numbers = ahead(items(), 5)
    assert next(numbers) == 1
    with pytest.raises(ValueError, match="broken"):
        next(numbers)


def test_the_thread_ends_with_its_user() -> None:
    """A thread of every call that was left early stays for ever."""
    before = threading.active_count()
    numbers = ahead(iter(range(100)), 1)
    next(numbers)
    assert threading.active_count() == before + 1
    mine = [thread for thread in threading.enumerate() if thread.daemon and thread.name.endswith("(draw)")]
    assert mine
    numbers.close()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
