"""torchrun restarts all processes after one of them has failed (``--max-restarts``): they resume their run."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kdcompress.engine.distributed import from_main, restarted
from kdcompress.errors import UserError
from kdcompress.options import OutputOptions
from kdcompress.runs import RECORD, RUNS, RunFolder

Some = TypeVar("Some", bound=OutputOptions)

JOB = "torchrun"  # in run.json: the launcher that started the run


def job_key() -> dict[str, str]:
    """Identifies in ``run.json`` the launcher that started a run; the same for all its processes on this host."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return {} if name is None else {JOB: f"{name} {socket.gethostname()} {os.getppid()}"}


def resuming(options: Some, command: str, note: Callable[[str], None]) -> Some:
    """The options; after a restart by torchrun, with those added that resume the run which this job started before.

    Args:
        command: Name of the command that runs.
        note: Called with a notice where no such run is found.
    """
    if not restarted() or options.resume:
        return options
    if options.out is not None:
        return dataclasses.replace(options, resume=True)
    out = from_main(lambda: _started(command))
    if out is None:
        note("Notice: torchrun has restarted the job, but no run of it is known on this host; a new run starts.")
        return options
    return dataclasses.replace(options, out=out, resume=True)


def _started(command: str) -> str | None:
    """The last run that this job started in a folder of its own choice."""
    started = []
    for record in Path(RUNS).absolute().glob(f"*/{RECORD}"):
        run = RunFolder(record.parent)
        try:
            content: dict[str, Any] = run.record()
        except UserError:
            continue
        if content.get("command") == command and content.get(JOB) == job_key().get(JOB, ""):
            started.append((record.stat().st_mtime, str(run.path)))
    return max(started)[1] if started else None
