"""torchrun starts all processes anew where one of them has failed (``--max-restarts``): they go on with their run."""

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

JOB = "torchrun"  # in run.json: the launcher that began the run


def job_key() -> dict[str, str]:
    """What a run keeps of the launcher that began it: the same for all processes that this one starts on this host."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return {} if name is None else {JOB: f"{name} {socket.gethostname()} {os.getppid()}"}


def resuming(options: Some, command: str, note: Callable[[str], None]) -> Some:
    """The options, and after a restart those by which the run goes on that this job began before.

    Args:
        command: Of the run.
    """
    if not restarted() or options.resume:
        return options
    if options.out is not None:
        return dataclasses.replace(options, resume=True)
    out = from_main(lambda: _begun(command))
    if out is None:
        note(
            "Notice: torchrun has restarted the job, which had begun no run that is known on this host; it begins one."
        )
        return options
    return dataclasses.replace(options, out=out, resume=True)


def _begun(command: str) -> str | None:
    """The last run that this job began where the user chose no folder."""
    found = []
    for record in Path(RUNS).absolute().glob(f"*/{RECORD}"):
        run = RunFolder(record.parent)
        try:
            said: dict[str, Any] = run.record()
        except UserError:
            continue
        if said.get("command") == command and said.get(JOB) == job_key().get(JOB, ""):
            found.append((record.stat().st_mtime, str(run.path)))
    return max(found)[1] if found else None
