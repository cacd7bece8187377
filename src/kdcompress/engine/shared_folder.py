"""Folders of several processes, on one host or many: which of them see the same one."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from kdcompress.engine.distributed import Place, everyone, from_main, host
from kdcompress.errors import UserError
from kdcompress.runs import RECORD, RunFolder

LOOK_SECONDS = 10.0  # a network file system may show a new folder late


def check_shared(run: RunFolder, place: Place) -> None:
    """Make sure that all processes see the folder that the main one has claimed.

    Raises:
        UserError: A host does not. A folder that was made for the run is taken back.
    """
    if place.world == 1:
        return

    def mark() -> tuple[Path, bool]:
        sign = run.path / f".shared.{secrets.token_hex(8)}.tmp"
        is_new = not (run.path / RECORD).exists()
        try:
            sign.touch()
        except OSError as error:
            raise UserError(f"{run.path} cannot be written: {error.strerror}.", "Choose another --out.") from error
        return sign, is_new

    sign, is_new = from_main(mark)
    blind = [rank for rank, sees in enumerate(everyone(_seen(sign))) if not sees]

    def take_back() -> None:
        sign.unlink(missing_ok=True)
        if blind and is_new:
            run.discard()

    from_main(take_back)
    if blind:
        raise UserError(
            f"{run.path} is not the same folder on {host(blind[0])} (process {blind[0]}) as on {host(0)}.",
            "Give --out on a file system that all hosts share.",
        )


def first_to_see(folder: Path, place: Place) -> int:
    """The first of the processes for which this folder is the same one; this process itself where it cannot write."""
    if place.world == 1:
        return place.rank
    sign = folder / f".kdcompress.{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        sign.touch()
    signs = everyone(sign.name)
    seen: list[str] = []
    with contextlib.suppress(OSError):
        seen = os.listdir(folder)
    everyone(None)
    with contextlib.suppress(OSError):
        sign.unlink(missing_ok=True)
    return next((rank for rank, name in enumerate(signs) if name in seen), place.rank)


def _seen(sign: Path) -> bool:
    """Whether a file is here, or comes within some time."""
    end = time.monotonic() + LOOK_SECONDS
    while not sign.exists():
        if time.monotonic() > end:
            return False
        for folder in sign.parents[:2]:  # lets a network file system look anew
            with contextlib.suppress(OSError):
                os.listdir(folder)
        time.sleep(0.2)
    return True
