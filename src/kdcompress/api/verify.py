"""``verify``: whether the files of a run are those that were written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kdcompress.api.reference import resolve
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError
from kdcompress.models.weights import read_weights
from kdcompress.options import VerifyOptions
from kdcompress.results import VerifyResult
from kdcompress.runs import CHECKPOINT, CONFIG, METRICS, RECORD, SPLIT, WEIGHTS, RunFolder

FILES = (CONFIG, WEIGHTS, METRICS, SPLIT, CHECKPOINT)


def verify(options: VerifyOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> VerifyResult:
    """Compare the files of a run, and of the runs within it, with their recorded digests.

    Args:
        options: All options at once; else give them by name (the fields of :class:`VerifyOptions`).
        reporter: Not used.

    Raises:
        UserError: There is no such run, or ``accept`` cannot write to it.

    Example:
        >>> kdcompress.verify(run="runs/gated").whole
        True
    """
    options = options or VerifyOptions.resolve(given)
    reference, began = resolve(options.run), time.perf_counter()
    path = Path(reference.removeprefix("local-dir:")).absolute()
    if not (path / RECORD).is_file():
        remedy = 'Give the folder that an earlier command printed as "run".'
        raise UserError(f"{path} is not a run: it has no {RECORD}.", remedy)
    runs = [RunFolder(path), *(RunFolder(file.parent) for file in sorted(path.glob(f"*/**/{RECORD}")))]
    if options.accept:
        for run in runs:
            _check_readable(run)
            run.accept()
    rows = [
        {"file": str((run.path / name).relative_to(path)), "state": state}
        for run in runs
        for name, state in _states(run).items()
    ]
    return VerifyResult(
        command="verify",
        run=str(path),
        seconds=round(time.perf_counter() - began, 3),
        whole=all(row["state"] == "whole" for row in rows),
        files=rows,
    )


def _check_readable(run: RunFolder) -> None:
    """Refuse to accept files that cannot be loaded.

    Raises:
        UserError: The weights or the config cannot be read.
    """
    if (run.path / WEIGHTS).exists():
        read_weights(run.path / WEIGHTS)
    if (run.path / CONFIG).exists():
        run.config()


def _states(run: RunFolder) -> dict[str, str]:
    """State of each file of a run: ``whole``, ``altered``, ``missing`` or ``no digest``."""
    try:
        known = run.digests()
    except UserError:
        return {RECORD: "altered"}
    states = {RECORD: "whole" if run.is_sealed else "no digest"}
    # other files of an unfinished run are written again when it is resumed
    done = [name for name in FILES if name != CHECKPOINT]  # a kill while a run is finished may leave that one
    for name in done if run.record().get("status") != "unfinished" else (CHECKPOINT, SPLIT):
        there = (run.path / name).is_file()
        if name not in known:
            states |= {name: "no digest"} if there else {}
            continue
        try:
            run.check(name)
            states[name] = "whole"
        except UserError:
            states[name] = "altered" if there else "missing"
    return states
