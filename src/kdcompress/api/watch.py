"""``watch``: the epochs of a run that another process is training, as they end."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcompress.api.reference import resolve
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError
from kdcompress.options import WatchOptions
from kdcompress.results import EpochRow, Rows
from kdcompress.runs import METRICS, RECORD, RunFolder, inner_runs

POLL = 1.0  # seconds between two looks at the folder
PATIENCE = 3600.0  # seconds without a change after which a run in a read-only folder counts as interrupted


def watch(
    options: WatchOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> Iterator[EpochRow]:
    """Follow a run that another process trains.

    Args:
        options: All options at once; else give them by name (the fields of :class:`WatchOptions`).
        reporter: Receives notices; None for none.

    Returns:
        The epochs so far, then each as it ends; over when nothing is written any more.

    Raises:
        UserError: There is no such run.

    Example:
        >>> for row in kdcompress.watch(run="runs/student"):
        ...     print(row.epoch, row.top1)
    """
    return (row for rows in epochs_of(options, reporter=reporter, **given) for row in rows)


def epochs_of(options: WatchOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> Epochs:
    """As :func:`watch`, as rows that the command line prints."""
    options = options or WatchOptions.resolve(given)
    path = Path(resolve(options.run)).absolute()
    if not (path / RECORD).is_file():
        raise UserError(f"There is no run in {path}.", "Give the --out of a training that has begun.")
    return Epochs(RunFolder(path), reporter or Silent())


class Epochs(Rows):
    """The epochs of a run, or of the runs inside it where it is made of several."""

    def __init__(self, folder: RunFolder, reporter: Reporter) -> None:
        self.folder, self.reporter = folder, reporter
        self.run = str(folder.path)

    def __iter__(self) -> Iterator[list[EpochRow]]:
        seen, ended = Counter[Path](), set[Path]()
        while True:
            goes_on = self._goes_on()  # asked first: what is written before its end is still read
            for run in self._trainings():
                rows = run.metrics()
                if len(rows) > seen[run.path]:
                    yield _new(run, rows, seen[run.path])
                    seen[run.path] = len(rows)
                if run.is_finished and run.path not in ended:
                    ended.add(run.path)
                    self.reporter.note(f"{run.path.name} is finished.")
            if not goes_on:
                break
            time.sleep(POLL)
        if self.exit_status:
            self.reporter.note(
                f"{self.run} is unfinished, and nothing is writing it: run its command again with --resume and --out."
            )

    @property
    def exit_status(self) -> int:
        """1 if the run was interrupted, else 0."""
        return 0 if self.folder.is_finished else 1

    def _goes_on(self) -> bool:
        """Whether the run is being written; in a folder that is read-only here, by when anything in it changed."""
        written = self.folder.is_being_written
        if written is not None or self.folder.is_finished:
            return bool(written)
        changed = [(run.path / RECORD).stat().st_mtime for run in (self.folder, *inner_runs(self.folder.path))]
        changed += [(run.path / METRICS).stat().st_mtime for run in self._trainings() if run.metrics()]
        return time.time() - max(changed) < PATIENCE

    def _trainings(self) -> list[RunFolder]:
        """The run, or those inside it; the one that changed last comes last."""
        inner = [run for run in inner_runs(self.folder.path) if (run.path / METRICS).is_file()]
        return sorted(inner, key=lambda run: (run.path / METRICS).stat().st_mtime) or [self.folder]


def _new(run: RunFolder, rows: list[dict[str, float]], seen: int) -> list[EpochRow]:
    """The rows of a training after the first ``seen``."""
    planned = run.record().get("options", {}).get("epochs")
    epochs = max(planned, len(rows)) if isinstance(planned, int) else None
    made = []
    for count, row in enumerate(rows[seen:], seen + 1):
        left = None
        if epochs is not None and (times := [each["seconds"] for each in rows[:count] if "seconds" in each]):
            # the median, for the first epoch may be longer: targets are cached in it
            left = round(statistics.median(times) * (epochs - count), 1)
        made.append(
            EpochRow(
                run=run.path.name,
                epoch=count,
                epochs=epochs,
                loss=row.get("train_loss"),
                top1=row.get("calibration_top1"),
                images_per_second=row.get("images_per_second"),
                seconds_left=left,
            )
        )
    return made
