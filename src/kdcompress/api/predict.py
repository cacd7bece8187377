"""``predict``: the classes of images, in a stream: what is done is handed on, and not kept."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kdcompress.api.classified import Row, classified
from kdcompress.api.classifier import Classifier, open_classifier
from kdcompress.api.csv_rows import csv_writer
from kdcompress.api.reference import resolve
from kdcompress.data.find_images import STDIN, find_images
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.options import PredictOptions
from kdcompress.results import Prediction, PredictionRows, Unreadable


def predict(
    run: str | os.PathLike[str] = "-",
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    *,
    options: PredictOptions | None = None,
    reporter: Reporter | None = None,
    **given: Any,
) -> list[Prediction]:
    """Classify images.

    Args:
        run: Any reference that ``eval`` takes.
        images: Files, and folders with all that is below them.
        options: All options at once, these two included; else give them by name.
        reporter: Receives notices; None for none.

    Returns:
        One row per image, in the order of ``images``. Those that cannot be read have none; a warning names them.

    Raises:
        UserError: No such network, or none of the images can be read.

    Example:
        >>> kdcompress.predict("runs/gated", "photos/")[0].label
        'cat'
    """
    named = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    options = options or PredictOptions.resolve({"run": run, "images": named, **given})
    rows: list[Prediction] = []
    unreadable: list[Unreadable] = []
    for batch in predictions(options, reporter=reporter):
        for row in batch:
            if isinstance(row, Prediction):
                rows.append(row)
            else:
                unreadable.append(row)
    if unreadable and not rows:
        more = f" ({len(unreadable)} inputs cannot be read)" if len(unreadable) > 1 else ""
        raise UserError(f"{unreadable[0].problem}{more}", "Give files of images, or folders with some.")
    for each in unreadable:
        warnings.warn(each.problem, stacklevel=2)
    return rows


def predictions(
    options: PredictOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> Predictions:
    """The same as rows that come batch by batch, in constant memory.

    Raises:
        UserError: No such network, no images named, or a ``csv`` that exists.
    """
    options = options or PredictOptions.resolve(given)
    _check(options)
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    reporter = (reporter if place.is_main else None) or Silent()
    reference = resolve(options.run)
    take_free_cores(place, reporter)
    classifier = open_classifier(reference, options, place, reporter.note)
    if classifier.labels is None:
        reporter.note("Notice: the names of the classes are not known; label is null.")
    if not place.is_main:
        options = dataclasses.replace(options, images=(), csv=None)
    return Predictions(classifier, options, reporter)


def _check(options: PredictOptions) -> None:
    """Before the work that would be lost."""
    if not options.images:
        remedy = "Name files or folders after RUN, or '-' for paths on standard input."
        raise usage_error("No images were named.", remedy)
    readers = [*options.images, options.run].count(STDIN)
    if readers > 1:
        raise usage_error("'-' can be given once: standard input is read once.", "Name the run, or the images.")
    if options.null and STDIN not in options.images:
        raise usage_error("--null is about paths on standard input.", "Give '-' as IMAGES, or leave --null out.")
    if options.csv is not None:
        file = Path(options.csv).absolute()
        if not file.parent.is_dir():
            raise usage_error(f"There is no folder {file.parent} for --csv.", "Make it, or choose another.")
        if file.exists():
            raise usage_error(f"--csv {shlex.quote(options.csv)} exists already.", "Choose another name.")


class Predictions(PredictionRows):
    """The rows of ``predict``; iterated once."""

    def __init__(self, classifier: Classifier, options: PredictOptions, reporter: Reporter) -> None:
        self.classifier, self.options, self.reporter = classifier, options, reporter
        self.run = str(classifier.path) if classifier.path is not None else None
        self.labels, self.gated = classifier.labels, classifier.stages > 0
        self.goes_on = options.csv is not None
        self.unread, self.exits = Counter[str](), Counter[int | None]()
        self.failed = 0

    def __iter__(self) -> Iterator[list[Row]]:
        began = time.perf_counter()
        options = self.options
        names = find_images(options.images, self.unread, options.null)
        with csv_writer(options.csv, min(options.top_k, self.classifier.num_classes)) as write:
            for rows in classified(names, self.classifier, options.batch_size, options.top_k):
                done = [row for row in rows if isinstance(row, Prediction)]
                self.exits.update(row.exit_stage for row in done)
                self.failed += len(rows) - len(done)
                write(done)
                yield rows
        self._sum_up(time.perf_counter() - began)

    def total(self) -> int | None:
        """Number of files to read; None if standard input names them."""
        if STDIN in self.options.images:
            return None
        return sum(1 for _ in find_images(self.options.images, Counter()))

    @property
    def exit_status(self) -> int:
        """1 if an image could not be read, else 0."""
        return 1 if self.failed else 0

    def _sum_up(self, seconds: float) -> None:
        if self.unread:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.unread.items()))
            self.reporter.note(f"Notice: files of these types are not read: {counts}. Convert them to .jpg or .png.")
        if count := self.exits.total():
            text = f"{count} image{'s' * (count > 1)} classified, {count / seconds:.0f} per second"
            if self.gated:
                shares = (f"{100 * self.exits[stage] / count:.1f} %" for stage in range(self.classifier.stages))
                text += f"; exits by stage: {', '.join(shares)}"
            self.reporter.note(f"{text}.")
