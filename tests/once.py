"""What tests need a thousand times over, and the same each time: done once for all of them in a process."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import sklearn.datasets
from PIL import Image
from torch import nn

from kdcompress.data import synth_digits
from kdcompress.engine import latency
from kdcompress.flops import Profile, profile

PROFILED = ("api.cost", "api.compress.candidates", "engine.muon", "models.separate")
PLAIN = (bool, int, float, str, tuple, type(None))


def patched(patch: pytest.MonkeyPatch) -> None:
    """Let commands count, and read or draw digits, once; and let no file wait for the disk: no test cuts the power.

    tests/test_flops.py and tests/models/test_separate.py call the count itself, tests/data/test_synth_digits.py draws.
    """
    counted = _counted_once()
    for module in PROFILED:
        patch.setattr(importlib.import_module(f"kdcompress.{module}"), "profile", counted)
    patch.setattr("sklearn.datasets.load_digits", functools.cache(sklearn.datasets.load_digits))
    patch.setattr(synth_digits, "draw", _drawn_once())
    patch.setattr(latency, "RUNS", 5)  # each eval of a gated network times single images
    patch.setattr(os, "fsync", lambda descriptor: None)


def _counted_once() -> Callable[..., Profile]:
    known: dict[Any, Profile] = {}

    def counted(model: nn.Module, input_size: Any) -> Profile:
        modules = [(name, type(each), _plain(each)) for name, each in model.named_modules()]
        tensors = [(name, tuple(each.shape), each.dtype) for name, each in model.state_dict().items()]
        key = (repr(model), repr(modules), repr(tensors), len(list(model.parameters())), tuple(input_size))
        if key not in known:
            known[key] = profile(model, input_size)
        return known[key]

    return counted


def _drawn_once() -> Callable[..., Image.Image]:
    """Numbers of ``synth-digits``; a copy each time, for who asks may write on it."""
    known = functools.lru_cache(16_384)(synth_digits.draw)  # more than an epoch of the default size has

    def drawn(number: int, digits: int, size: int, seed: int, index: int) -> Image.Image:
        return known(number, digits, size, seed, index).copy()

    return drawn


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module knows, besides its modules and tensors."""
    own = vars(module).items()
    return sorted((key, value) for key, value in own if key != "training" and isinstance(value, PLAIN))


def exported_once(export: Callable[..., Any]) -> Callable[..., Any]:
    """The export of a member, done once for the same weights."""
    known: dict[Any, Any] = {}

    def exported(model: nn.Module, input_size: Any, opset: int, name: str) -> Any:
        tensors = (*model.parameters(), *model.buffers())  # an adapter's scale is a buffer, but no part of the state
        content = b"".join(each.detach().contiguous().numpy().tobytes() for each in tensors)
        key = (repr(model), hashlib.sha256(content).hexdigest(), tuple(input_size), opset, name)
        if key not in known:
            known[key] = export(model, input_size, opset, name)
        return copy.deepcopy(known[key])

    return exported
