"""The global random generators: seeded for transforms of a user's data set, and put back for a user's own code."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(number: int) -> None:
    """Seed the global generators that transforms draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put the global generators back as they were, those of GPUs in use as well."""
    before = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def seeded(number: int) -> Iterator[None]:
    """Seed the global generators for a moment, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
