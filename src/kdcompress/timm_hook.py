"""Registers our networks with timm as soon as both are imported, in either order.

After ``import kdcompress``, ``timm.create_model('local-dir:…')`` must know our cascades; but that import must not
import torch, or ``kdcompress --help`` would be slow. So the networks are registered at once if timm is already
imported, else right after its import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install() -> None:
    """Register now if timm is imported, else after its import."""
    if "timm" in sys.modules:
        importlib.import_module("kdcompress.models")
    else:
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm:
    """A finder of timm that wraps its loader, to register our networks after the import.

    It does not inherit from the abstract classes for finders, whose import takes longer than the rest of the command
    line's own code.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec


class _Loader:
    def __init__(self, inner: Any, finder: _AfterTimm) -> None:
        self.inner, self.finder = inner, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        # not earlier: some libraries only look for the spec, to see whether timm is installed
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self.finder]
        importlib.import_module("kdcompress.models")
