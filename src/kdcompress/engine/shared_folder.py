"""Which of several processes, on one host or many, see the same folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from kdcompress.engine.distributed import Place, from_main, gather_objects, host
from kdcompress.errors import UserError
from kdcompress.runs import RECORD, RunFolder

LOOK_SECONDS = 10.0  # on a network file system, a new folder may become visible late


def check_shared(run: RunFolder, place: Place) -> None:
    """Check that all processes see the run folder that the main process has claimed.

    Raises:
        UserError: A host does not see it (a folder that was made for the run is removed), or it cannot be written.
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
    without = [rank for rank, sees in enumerate(gather_objects(_sees(sign))) if not sees]

    def clean_up() -> None:
        sign.unlink(missing_ok=True)
        if without and is_new:
            run.discard()

    from_main(clean_up)
    if without:
        raise UserError(
            f"{run.path} is not the same folder on {host(without[0])} (process {without[0]}) as on {host(0)}.",
            "Give --out on a file system that all hosts share.",
        )


def first_to_see(folder: Path, place: Place) -> int:
    """The lowest rank that shares this folder with this process; its own rank where it cannot write to the folder."""
    if place.world == 1:
        return place.rank
    sign = folder / f".kdcompress.{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        sign.touch()
    signs = gather_objects(sign.name)
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder)
    gather_objects(None)
    with contextlib.suppress(OSError):
        sign.unlink(missing_ok=True)
    return next((rank for rank, name in enumerate(signs) if name in names), place.rank)


def _sees(sign: Path) -> bool:
    """Whether a file is visible here, or becomes so within some time."""
    end = time.monotonic() + LOOK_SECONDS
    while not sign.exists():
        if time.monotonic() > end:
            return False
        for folder in sign.parents[:2]:  # makes a network file system refresh its listing
            with contextlib.suppress(OSError):
                os.listdir(folder)
        time.sleep(0.2)
    return True
