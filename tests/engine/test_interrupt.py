"""Signals that end a training."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from kdcompress.engine.interrupt import StopSignal


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
        for each in both:
            os.kill(os.getpid(), each)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        assert stop.requested
    assert not complaints
