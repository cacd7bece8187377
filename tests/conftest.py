"""Shared by all tests: one thread each, and a cache of their own."""

import os
from collections.abc import Iterator

import pytest
import torch

from kdcompress import trust
from kdcompress.engine.precision import Process, remembered


@pytest.fixture(autouse=True, scope="session")
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny networks run faster on one thread, and what tests try out must not be remembered for the user."""
    torch.set_num_threads(1)
    former = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if former is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = former


@pytest.fixture(autouse=True)
def _process_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that runs in this process must not leave the next test the belief that it is alone in it."""
    monkeypatch.setattr(Process, "is_ours", False)


@pytest.fixture(autouse=True)
def _nothing_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that one test names must not be trusted in the next."""
    monkeypatch.setattr(trust, "_typed", set())


@pytest.fixture(scope="session")
def bf16(_alone: None) -> None:
    """Only where the processor has it; where oneDNN must be told to do without AMX, it is too late in this process."""
    if remembered().runs != "native":
        pytest.skip("bf16 does not run in this process")
