"""Rows that go to standard output while they are being computed: lines of JSON off a terminal, a table on it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from kdcompress.cli.output import one_line, print_error
from kdcompress.quantities import clock

if TYPE_CHECKING:
    from kdcompress.results import EpochRow, Prediction, PredictionRows, Rows

LABEL_WIDTH = 40  # columns of a terminal, at most


def print_rows(rows: Rows, output: TextIO, as_json: bool | None, *, show_progress: bool) -> OSError | None:
    """Print the rows of each batch as soon as it is done, and what cannot be read on standard error.

    Args:
        show_progress: Show a bar, where standard error is a terminal and the rows go elsewhere.

    Returns:
        What went wrong with standard output. The rows after that are lost; they are still computed where a file of
        them is being written.
    """
    from kdcompress.results import PredictionRows, Unreadable

    if as_json is None:
        as_json = not output.isatty()
    predictions = rows if isinstance(rows, PredictionRows) else None
    shown: Callable[[Any], str] = _as_json if as_json else _table(predictions) if predictions else _epochs()
    unreadable = done = 0
    failure: OSError | None = None
    with contextlib.ExitStack() as stack:
        bar = _bar(predictions) if predictions and show_progress and not output.isatty() else _no_bar()
        advance = stack.enter_context(bar)
        for batch in rows:
            for row in batch:
                if isinstance(row, Unreadable):
                    unreadable += 1
                    print_error(row.problem)
                elif failure is None:
                    failure = _written(f"{shown(row)}\n", output)
            failure = failure or _written("", output)
            done += len(batch)
            advance(len(batch))
            if failure is not None and not rows.goes_on:
                return failure
    if unreadable:
        print(f"{unreadable} of {done} inputs could not be read.", file=sys.stderr)
    return failure


def _written(text: str, output: TextIO) -> OSError | None:
    """Write, or with no text flush; returns the error instead of raising it."""
    try:
        if text:
            output.write(text)
        else:
            output.flush()
    except OSError as error:
        return error
    except ValueError as error:  # a file that was closed
        return OSError(0, str(error))
    return None


def _as_json(row: Prediction | EpochRow) -> str:
    return json.dumps(row.to_dict(), allow_nan=False)


def _table(rows: PredictionRows) -> Callable[[Prediction], str]:
    """Rows of a table; the header stands above the first one. The path comes last: it is never cut."""
    labels = rows.labels or ("class",)
    width = min(max(map(len, (*labels, "label"))), LABEL_WIDTH)
    exits = ("exit  ", "{stage:>4}  ") if rows.gated else ("", "")
    header = f"{'label':<{width}}  probability  {exits[0]}path\n"

    def shown(row: Prediction) -> str:
        nonlocal header
        label = one_line(str(row.index) if row.label is None else row.label)
        label = label if len(label) <= width else f"{label[: width - 1]}…"
        stage = exits[1].format(stage=row.exit_stage)
        line = f"{header}{label:<{width}}  {100 * row.probability:>9.2f} %  {stage}{one_line(row.path)}"
        header = ""
        return line

    return shown


def _epochs() -> Callable[[EpochRow], str]:
    """Rows of a table of epochs; a header stands above those of each run."""
    before = ""

    def shown(row: EpochRow) -> str:
        nonlocal before
        name = one_line(row.run)
        header = f"{name}\n  epoch     loss  calibration   img/s     left\n" if name != before else ""
        before = name
        number = f"{row.epoch}/{row.epochs or '?'}"
        left = "" if row.seconds_left is None else clock(row.seconds_left)
        top1 = f"{row.top1:.2f} %" if row.top1 is not None else ""
        values = f"{_digits(row.loss, 4):>9}{top1:>13}{_digits(row.images_per_second, 0):>8}"
        return f"{header}{number:>7}{values}{left:>9}"

    return shown


def _digits(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@contextlib.contextmanager
def _bar(rows: PredictionRows) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, if that is a terminal; yields a function to advance it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or os.environ.get("NO_COLOR"):
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Classifying", total=rows.total())
        yield lambda count: progress.update(task, advance=count)


@contextlib.contextmanager
def _no_bar() -> Iterator[Callable[[int], None]]:
    yield lambda count: None
