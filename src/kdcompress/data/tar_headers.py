"""The members of a tar file, by its headers alone: several times as fast as ``tarfile``, and strict.

``tarfile`` takes a damaged header for the end of the archive without a word, so some of the images would be missing.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
BUFFER = 8 * BLOCK  # what lies between two images (a header, a label, a header), but not much of an image
LONG_NAME, EXTENDED, REGULAR = b"L", b"x", (b"0", b"\0", b"7")
ADLER = 65521
PAX = re.compile(rb"\d+ (path|size)=([^\n]*)\n")


class Damaged(Exception):
    """A tar file that is cut off or altered; the message says where."""


class Member(NamedTuple):
    """A regular file in a tar file: its data are ``size`` bytes from ``offset``."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """All regular files in a tar file, in order.

    The position in ``file`` may be changed between two of them.

    Raises:
        Damaged: It is cut off, or a header is not what its checksum says.
    """
    end, position, stated = os.fstat(file.fileno()).st_size, 0, dict[bytes, bytes]()
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise Damaged(f"cut off after {end:,} bytes")
        if not any(header):
            return
        size, kind = _checked(header, position)
        size = int(stated.get(b"size", size))
        offset = position + BLOCK
        position = offset + -(-size // BLOCK) * BLOCK
        if offset + size > end:
            raise Damaged(f"cut off after {end:,} bytes")
        if kind == LONG_NAME:
            stated[b"path"] = file.read(size).rstrip(b"\0")
        elif kind == EXTENDED:
            stated.update(PAX.findall(file.read(size)))
        else:
            if kind in REGULAR:
                yield Member(os.fsdecode(stated.get(b"path") or name_in(header)), offset, size)
            stated.clear()


def name_in(header: bytes) -> bytes:
    """The name in a header; of a longer one, as much as has room."""
    name = header[:100].partition(b"\0")[0]
    if not header[345] or header[257:263] != b"ustar\0":
        return name
    return header[345:500].partition(b"\0")[0] + b"/" + name


def _checked(header: bytes, position: int) -> tuple[int, bytes]:
    """Size and kind of what follows."""
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        long = header[124] == 0x80  # GNU's, of 8 GiB or more
        size = int.from_bytes(header[125:136], "big") if long else int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        raise Damaged(f"damaged at byte {position:,}") from None
    # Adler-32 begins with the sum of all bytes, and one; the field itself counts as blanks
    if (checksum + sum(header[148:156]) - 8 * ord(" ") + 1) % ADLER != zlib.adler32(header) & 0xFFFF:
        raise Damaged(f"damaged at byte {position:,}")
    return size, header[156:157]
