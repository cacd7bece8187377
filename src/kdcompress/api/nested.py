"""The run folder of a command whose trainings are run folders inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from kdcompress.api.claimed import claimed
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter
from kdcompress.engine.restart import job_key
from kdcompress.errors import UserError
from kdcompress.options import OutputOptions
from kdcompress.runs import RECORD, RunFolder


@contextlib.contextmanager
def nested(
    options: OutputOptions, command: str, stem: str, first: str, place: Place, reporter: Reporter
) -> Iterator[RunFolder]:
    """Claim the outer run folder while its trainings run.

    An interruption names the outer run as the one to resume; an error before the first training leaves no folder.

    Args:
        stem: As for :func:`~kdcompress.runs.claim`.
        first: Folder of the first training.
    """
    with claimed(options, stem, place, reporter) as run:

        def begin() -> bool:
            begins = not (run.path / RECORD).exists()
            if begins:
                threads = torch.get_num_threads()
                run.write_record({"command": command, "status": "unfinished", "threads": threads, **job_key()})
            return begins

        begins = from_main(begin)
        try:
            yield run
        except KeyboardInterrupt as interrupt:
            raise Interrupted(run.path) from interrupt
        except UserError:
            if place.is_main and begins and not (run.path / first).exists():
                with contextlib.suppress(OSError):  # of a disk that has turned read-only
                    run.discard()
            raise
