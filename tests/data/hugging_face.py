"""As much of the package ``datasets`` as timm's reader of ``hfds/…`` calls, with a data set in memory.

It takes the place of the package where this is not installed; the reader, and all that is above it, is the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class InMemory:
    """A split: encoded images and labels."""

    column_names = ("image", "label")

    def __init__(self, images: Sequence[bytes], labels: Sequence[int]) -> None:
        self.columns = {"image": [{"bytes": image, "path": None} for image in images], "label": list(labels)}
        names = [f"class {label}" for label in sorted(set(labels))]
        self.features = {"label": SimpleNamespace(names=names)}
        self.info = SimpleNamespace(features=self.features, splits=None)

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, key: int | str) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: self.columns[name][key] for name in self.columns}

    def cast_column(self, name: str, feature: Any) -> InMemory:
        return self


def provide(patch: pytest.MonkeyPatch, splits: dict[str, InMemory]) -> None:
    """Let ``load_dataset`` give these, whatever name is asked for."""
    package: Any = ModuleType("datasets")

    def load_dataset(name: str, split: str, cache_dir: str) -> InMemory:
        if split not in splits:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(splits)}.')
        return splits[split]

    package.load_dataset = load_dataset
    package.Image = lambda decode: None
    patch.setitem(sys.modules, "datasets", package)
    patch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
