"""Predictions as a CSV file."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from kdcompress.results import Prediction
from kdcompress.runs import atomic_file


@contextlib.contextmanager
def csv_writer(path: str | None, top_k: int) -> Iterator[Callable[[list[Prediction]], None]]:
    """A function that writes rows to a file, which appears when all of them are written."""
    if path is None:
        yield lambda rows: None
        return
    keys = ("label", "index", "probability")
    writing = atomic_file(
        Path(path).absolute(),
        elsewhere="Choose another place with --csv.",
        when_full="Free some space, or choose another place with --csv.",
    )
    with writing as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")  # names of files need not be UTF-8
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["path", *keys, "exit_stage", *(f"{key}_{rank}" for rank in range(2, top_k + 1) for key in keys)]
        )

        def write(rows: list[Prediction]) -> None:
            for row in rows:
                others = (value for each in row.top5[1:] for value in vars(each).values())
                writer.writerow([row.path, row.label, row.index, row.probability, row.exit_stage, *others])

        yield write
        text.flush()
        text.detach()
