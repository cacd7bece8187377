"""The run folder that a command writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdcompress.engine.distributed import from_main
from kdcompress.options import OutputOptions
from kdcompress.runs import RunFolder, claim, release


@contextlib.contextmanager
def claimed(options: OutputOptions, stem: str) -> Iterator[RunFolder]:
    """Claim it, and keep other processes from writing it meanwhile; the main process holds it for all.

    Args:
        stem: As for :func:`~kdcompress.runs.claim`.
    """
    run = from_main(lambda: claim(options.out, stem, resume=options.resume))
    try:
        yield run
    finally:
        release(run)
