"""The run folder of a command whose trainings are run folders inside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from kdcompress.api.claimed import claimed, discarding
from kdcompress.api.gated import CALIBRATED
from kdcompress.api.job import INHERITED
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.fit import RECIPE
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter
from kdcompress.engine.restart import job_key
from kdcompress.options import OutputOptions
from kdcompress.results import Result
from kdcompress.runs import CONFIG, METRICS, RECORD, SPLIT, WEIGHTS, RunFolder, atomic_file


@contextlib.contextmanager
def nested(options: OutputOptions, command: str, stem: str, place: Place, reporter: Reporter) -> Iterator[RunFolder]:
    """Claim the outer run folder while its trainings run.

    An interruption names the outer run as the one to resume; an error before the first training leaves no folder.

    Args:
        stem: As for :func:`~kdcompress.runs.claim`.
    """
    with claimed(options, stem, place, reporter) as run, discarding(run, place):

        def begin() -> None:
            if not (run.path / RECORD).exists():
                threads = torch.get_num_threads()
                run.write_record({"command": command, "status": "unfinished", "threads": threads, **job_key()})

        from_main(begin)
        try:
            yield run
        except KeyboardInterrupt as interrupt:
            raise Interrupted(run.path) from interrupt


def adopt(run: RunFolder, inner: RunFolder, command: str, options: OutputOptions, result: Result) -> None:
    """Finish the outer run with the files of one of its trainings.

    Args:
        command, options, result: Of the outer run.
    """
    record = {key: value for key, value in inner.record().items() if key != RECIPE}  # each of its trainings has its own
    for name in (CONFIG, METRICS, WEIGHTS, SPLIT):
        if (inner.path / name).is_file():
            with atomic_file(run.path / name) as file:
                file.write((inner.path / name).read_bytes())
    inherited = {key: record["options"][key] for key in INHERITED if key in record["options"]}
    own = {"command": command, "options": {**options.to_dict(), **inherited}, "result": result.to_dict()}
    if "exit_rates" in (of_gate := record.get("result", {})):  # the result may be of the test split
        own[CALIBRATED] = {key: of_gate.get(key) for key in ("exit_rates", "expected_macs")}
    run.finish({**record, "training": record.get("training", record.get("result")), **own})
