"""The run folder of several processes: the main one takes it, and all others must see it, too."""

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
