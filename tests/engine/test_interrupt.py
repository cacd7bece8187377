"""Signals that end a training."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from kdcompress.engine import interrupt
from kdcompress.engine.interrupt import StopSignal, forget_workers


@pytest.fixture
def raising() -> Iterator[None]:
    """As PyTorch has it: raises where a worker is lost."""

    def lost(number: int, frame: object) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    former = signal.signal(signal.SIGCHLD, lost)
    yield
    signal.signal(signal.SIGCHLD, former)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("raising")
def test_a_signal_that_also_kills_a_worker(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the whole process group would sometimes end in a traceback."""
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    both = [number, signal.SIGCHLD]
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for each in both:  # to this thread: others of the process do not block them
            signal.pthread_kill(threading.get_ident(), each)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        assert stop.requested
    assert not complaints


def test_workers_that_die_while_they_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Python replaces a handler, it calls it for what is pending."""
    set_handler, deaths = signal.signal, iter(range(2))

    def after_deaths(number: int, handler: object) -> object:
        if next(deaths, None) is not None:
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")
        return set_handler(number, handler)  # type: ignore[arg-type]

    former = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(interrupt.signal, "signal", after_deaths)
    try:
        forget_workers()
        assert signal.getsignal(signal.SIGCHLD) not in (former, signal.SIG_DFL)
        assert next(deaths, None) is None
    finally:
        set_handler(signal.SIGCHLD, former)
