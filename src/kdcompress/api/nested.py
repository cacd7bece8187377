"""The run of a command whose trainings are runs of their own in its folder."""

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
    """Claim the folder of the whole, for as long as its trainings take.

    A stop names the whole as what can be resumed, and what is refused before the first training began leaves nothing.

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
