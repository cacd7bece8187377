"""Digests of files, so that a flipped bit or a swapped file is noticed before the file is used.

They guard against accidents, not against somebody who can also write the record of the digests.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

CHUNK = 2**20  # bytes; fits a core's cache


def digest_of(path: Path) -> str:
    """XXH3 of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    check_plain(path)
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def check_plain(path: str | Path) -> None:
    """Refuse a pipe, which might block forever, a device, or a folder.

    Raises:
        OSError: It is not a regular file, or does not exist.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def digest_of_json(content: Mapping[str, Any]) -> str:
    """XXH3 of a JSON object, independent of white space and key order."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
