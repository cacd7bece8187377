"""The run folder that a command writes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdcompress.engine.cores import take_as_before
from kdcompress.engine.distributed import Place, forget, from_main, remember
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter
from kdcompress.engine.shared_folder import check_shared
from kdcompress.errors import UserError
from kdcompress.options import OutputOptions
from kdcompress.runs import RECORD, RunFolder, claim, release


@contextlib.contextmanager
def claimed(options: OutputOptions, stem: str, place: Place, reporter: Reporter) -> Iterator[RunFolder]:
    """Claim a run folder and lock it for the main process; all processes of the job must be able to see it.

    A resumed run uses as many threads as it began with.

    Args:
        stem: As for :func:`~kdcompress.runs.claim`.
    """
    run = from_main(lambda: claim(options.out, stem, resume=options.resume))
    try:
        check_shared(run, place)
        remember(run.path)
        take_as_before(place, from_main(run.record).get("threads"), reporter)
        try:
            yield run
        except KeyboardInterrupt as stop:
            if isinstance(stop, Interrupted) or not run.has_checkpoint:
                raise
            raise Interrupted(run.path) from stop
        forget(run.path)
    finally:
        release(run)


@contextlib.contextmanager
def discarding(run: RunFolder, place: Place) -> Iterator[None]:
    """After a user's error leave no folder that holds nothing yet, so that the same command can be given again."""
    begins = not (run.path / RECORD).exists()
    try:
        yield
    except UserError:
        if place.is_main and begins:
            with contextlib.suppress(OSError):  # of a disk that has turned read-only
                run.discard()
        raise
