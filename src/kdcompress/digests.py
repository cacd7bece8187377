"""Digests of files: a bit that flips on a disk, or a file put in another's place, is found before it is used.

They guard against accidents, not against who can write the record, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

CHUNK = 2**20  # bytes; what fits a core's cache is hashed while it is there


def digest_of(path: Path) -> str:
    """XXH3 of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def digest_of_json(content: Mapping[str, Any]) -> str:
    """The same of a JSON object, however it is spaced and ordered."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
