"""``cache``: lists or removes what is cached for later runs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from kdcompress.cache import cache_dir, cached_entries, clear
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError
from kdcompress.options import CacheCommandOptions
from kdcompress.results import CacheResult


def manage_cache(
    options: CacheCommandOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> CacheResult:
    """List, or remove, what is cached for later runs: targets of frozen networks and lightweight teachers.

    Args:
        options: All options at once; else give them by name (the fields of :class:`CacheCommandOptions`).

    Raises:
        UserError: Something could not be removed.

    Example:
        >>> kdcompress.manage_cache(clear=True).entries
        []
    """
    began = time.perf_counter()
    options = options or CacheCommandOptions.resolve(given)
    folder = cache_dir(options.cache_dir)
    entries, freed = cached_entries(folder), None
    if options.clear:
        freed = sum(entry.bytes for entry in entries)
        try:
            clear(folder)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be removed: {error.strerror}.", "Remove it by hand.") from error
        entries = cached_entries(folder)
    return CacheResult(
        command="cache",
        run=None,
        seconds=round(time.perf_counter() - began, 3),
        folder=str(folder),
        bytes=sum(entry.bytes for entry in entries),
        freed=freed,
        entries=[
            {
                "kind": entry.kind,
                "network": entry.key.get("network", "unreadable"),
                "views": entry.arrays if entry.kind == "targets" else None,
                "bytes": entry.bytes,
                "used": datetime.fromtimestamp(entry.used).isoformat(" ", "seconds"),
                "folder": entry.folder.name,
            }
            for entry in entries
        ],
    )
