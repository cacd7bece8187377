"""The run folder of several processes: the main one takes it, and all others must see it, too."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from kdcompress.engine.distributed import Place, everyone, from_main, host, remember
from kdcompress.errors import UserError
from kdcompress.runs import RECORD, RunFolder, claim

LOOK_SECONDS = 10.0  # a network file system may show a new folder late


def claim_together(out: str | None, stem: str, place: Place, *, resume: bool) -> RunFolder:
    """As :func:`~kdcompress.runs.claim`, for all processes.

    Raises:
        UserError: As there; a host does not see the folder. One that was made for it is taken back.
    """

    if place.world == 1:
        return claim(out, stem, resume=resume)

    def made() -> tuple[RunFolder, bool, Path]:
        run = claim(out, stem, resume=resume)
        is_new = not (run.path / RECORD).exists()
        sign = run.path / f".shared.{secrets.token_hex(8)}.tmp"
        try:
            sign.touch()
        except OSError as error:
            raise UserError(f"{run.path} cannot be written: {error.strerror}.", "Choose another --out.") from error
        return run, is_new, sign

    run, is_new, sign = from_main(made)
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
    remember(run.path)
    return run


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
