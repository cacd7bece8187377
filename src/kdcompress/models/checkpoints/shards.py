"""Weights in several files, as their index lists them (``model.safetensors.index.json``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError
from kdcompress.schema import Malformed, ShardIndex, read_object

SUFFIX = ".index.json"


def read_shards(index: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """All tensors of the files that an index names, which lie beside it.

    Args:
        read: Reads one of them.

    Raises:
        UserError: The index cannot be used, or a file is missing.
    """
    try:
        files = set(read_object(index.read_bytes(), ShardIndex)["weight_map"].values())
    except (Malformed, OSError) as error:
        raise UserError(f"{index} cannot be read: {error}", "Fetch the folder again.") from error
    tensors: dict[str, Any] = {}
    for name in sorted(files):
        if name != Path(name).name or name.startswith("."):
            raise UserError(f"{index} names a file outside its folder: {name!r}.", "Fetch the folder again.")
        if not (index.parent / name).is_file():
            remedy = f"Fetch it: the weights are in {len(files)} files."
            raise UserError(f"{index.parent / name} is missing, one of the files of {index.name}.", remedy)
        tensors.update(read(index.parent / name))
    return tensors
