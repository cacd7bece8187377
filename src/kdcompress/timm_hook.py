"""Registers our networks with timm as soon as both are imported, in whichever order.

``import kdcompress`` has to be enough for ``timm.create_model('local-dir:…')`` to know a cascade, yet it must not
import torch by itself, or the command line could not answer ``--help`` at once. So: register now if timm is there
already, else right after its import.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install() -> None:
    """Register now, or arrange for it."""
    if "timm" in sys.modules:
        importlib.import_module("kdcompress.models")
    else:
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm:
    """Finds timm as everyone does, with one thing to do after it is loaded.

    A finder and a loader by their methods alone: the abstract classes for them take longer to import than the rest of
    the command line's own code.
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
        # only now: to find is not to import, and some libraries merely ask whether timm is there
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self.finder]
        importlib.import_module("kdcompress.models")
