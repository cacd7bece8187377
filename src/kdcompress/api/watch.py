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
from kdcompress.runs import METRICS, RECORD, RunFolder

POLL = 1.0  # seconds between two looks at the folder


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
            goes_on = self.folder.is_being_written  # asked first: what is written before its end is still read
            for run in self._trainings():
                rows = run.metrics()
                if fresh := rows[seen[run.path] :]:
                    yield [self._row(run, row, rows) for row in fresh]
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

    def _trainings(self) -> list[RunFolder]:
        """The run, or those inside it; the one that changed last comes last."""
        inner = [path.parent for path in self.folder.path.glob(f"*/{METRICS}") if (path.parent / RECORD).is_file()]
        inner.sort(key=lambda path: (path / METRICS).stat().st_mtime)
        return [RunFolder(path) for path in inner] or [self.folder]

    def _row(self, run: RunFolder, row: dict[str, float], rows: list[dict[str, float]]) -> EpochRow:
        epochs = run.record().get("options", {}).get("epochs")
        number = int(row.get("epoch", 0))
        times = [each["seconds"] for each in rows if "seconds" in each]
        left = None
        if isinstance(epochs, int) and times:  # the first epoch may be longer: targets are cached in it
            left = round(statistics.median(times) * max(epochs - number, 0), 1)
        return EpochRow(
            run=run.path.name,
            epoch=number,
            epochs=epochs if isinstance(epochs, int) else None,
            loss=row.get("train_loss"),
            top1=row.get("calibration_top1"),
            images_per_second=row.get("images_per_second"),
            seconds_left=left,
        )
