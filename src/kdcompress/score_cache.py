"""Accuracies of teachers, kept in the cache: the same teacher is not scored again for every student.

A file that cannot be read or was altered is ignored, a folder that cannot be written changes nothing but time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompress.digests import check_plain, digest_of_json

SCORES = "scores"  # folder in the cache
MAX_BYTES = 2**16


def recall(cache: Path, key: Mapping[str, Any]) -> float | None:
    """The top-1 (percent) that :func:`remember` stored under ``key``."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        file = _file(cache, key)
        check_plain(file)
        with open(file, "rb") as opened:
            content = json.loads(opened.read(MAX_BYTES))
        entry = {"key": dict(key), "top1": content["top1"]}
        if content == {**entry, "digest": digest_of_json(entry)}:
            return float(content["top1"])
    return None


def remember(cache: Path, key: Mapping[str, Any], top1: float) -> None:
    """Store a top-1 (percent), if the cache can be written."""
    entry = {"key": dict(key), "top1": round(top1, 4)}
    with contextlib.suppress(OSError, RuntimeError):
        file = _file(cache, key)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**entry, "digest": digest_of_json(entry)}), encoding="utf-8")
        temporary.replace(file)


def count(cache: Path) -> tuple[int, int, float]:
    """Number of scores, their bytes, and when the last one was written (seconds since the epoch)."""
    states = []
    for file in (cache / SCORES).glob("*.json"):
        with contextlib.suppress(OSError):
            states.append(file.stat())
    return len(states), sum(each.st_size for each in states), max((each.st_mtime for each in states), default=0.0)


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    return cache / SCORES / f"{digest_of_json(key)}.json"
