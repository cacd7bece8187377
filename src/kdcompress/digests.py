"""Digests of files: a bit that flips on a disk, or a file put in another's place, is found before it is used.

They guard against accidents, not against who can write the record, too.
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

CHUNK = 2**20  # bytes; what fits a core's cache is hashed while it is there


def digest_of(path: Path) -> str:
    """XXH3 of a file's content, 32 hexadecimal digits.

    Raises:
        OSError: It cannot be read, or is no plain file.
    """
    check_plain(path)
    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def check_plain(path: str | Path) -> None:
    """Refuse a pipe, which would keep us waiting for ever, a device, or a folder.

    Raises:
        OSError: It is no plain file, or not there.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))


def digest_of_json(content: Mapping[str, Any]) -> str:
    """The same of a JSON object, however it is spaced and ordered."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
