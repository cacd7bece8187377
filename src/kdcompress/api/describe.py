"""``data``: what a data set is, and a contact sheet of what a network sees of it."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.api.contact_sheet import sheet
from kdcompress.api.fitting import open_data
from kdcompress.data import Data, DataSource, EvalBatches, Preprocess, TrainBatches, choose_channels, choose_size
from kdcompress.data.leakage import copies_in_test
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError, usage_error
from kdcompress.options import DescribeDataOptions
from kdcompress.results import DataResult


def describe_data(
    options: DescribeDataOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> DataResult:
    """Count a data set and its splits, and draw a contact sheet of it, augmented or not.

    Test images that are copies of training images are counted and named, for accuracy on them is too good.

    Args:
        options: All options at once; else give them by name (the fields of :class:`DescribeDataOptions`).
        reporter: Receives notices, such as of images that are left out.

    Raises:
        UserError: No such data, data that are no images, a preview that exists or is of an unknown format, or
            ``find_copies`` without files of both splits.

    Example:
        >>> kdcompress.describe_data(data="synth-digits:100", preview="sheet.png").num_classes
        100
    """
    began = time.perf_counter()
    options = options or DescribeDataOptions.resolve(given)
    if options.preview is not None:
        _check_preview(options.preview)
    source = open_data(options)
    size = choose_size(source, options, (224, 224), fixed=False)
    channels = choose_channels(source, options)
    prep = Preprocess(size, channels, (0.0,) * channels, (1.0,) * channels)  # values stay in [0, 1]
    data = Data(source, prep, options, torch.device("cpu"), note=reporter.note if reporter is not None else None)
    trained_on = bool(len(source.train.labels))
    fit, calibration = ((data.usable(split) if trained_on else 0) for split in ("fit", "calibration"))
    test = data.usable("test") if source.test is not None else None
    copies, notes = copies_in_test(source, data.left_out.get("test", []), thorough=options.find_copies)
    if reporter is not None:
        for note in notes:
            reporter.note(note)
    if options.preview is not None:
        images, labels = _sample(data, source, options)
        _save(sheet(images, [_name(source, label) for label in labels.tolist()]), Path(options.preview))
    return DataResult(
        command="data",
        run=None,
        seconds=round(time.perf_counter() - began, 3),
        data=source.spec,
        num_classes=source.num_classes,
        class_names=list(source.class_names) if source.class_names else None,
        input_size=(channels, *size),
        fit=fit,
        calibration=calibration,
        test=test,
        unreadable=[name for names in data.left_out.values() for name in names],
        fingerprint=source.fingerprint,
        preview=str(Path(options.preview).absolute()) if options.preview is not None else None,
        test_copies=copies,
    )


def _check_preview(file: str) -> None:
    if Path(file).suffix.lower() not in Image.registered_extensions():
        raise usage_error(
            f"--preview {shlex.quote(file)} is of no image format that is known.", "Name it like sheet.png."
        )
    if Path(file).exists():
        raise usage_error(f"--preview {shlex.quote(file)} exists already.", "Choose another name.")


def _sample(data: Data, source: DataSource, options: DescribeDataOptions) -> tuple[Tensor, Tensor]:
    """Images [N, C, H, W] in [0, 1] and labels [N], of each class as many as of any other or one less."""
    if source.is_raw:
        raise UserError(f"The data {source.spec} are not images.", "Leave out --preview.")
    if options.split != "fit" and options.augment not in ("auto", "none"):
        raise usage_error("Only the fit split is augmented.", "Add --split fit, or leave out --augment.")
    each = -(-options.images // source.num_classes)
    if options.split == "fit":
        batches: TrainBatches | EvalBatches = data.training(options.images, options.seed, options.augment, each)
    else:
        batches = data.evaluation(options.split, options.images, each)
    order = np.random.default_rng(options.seed).permutation(len(batches.images.ids))
    return next(batches.load([np.sort(order[: options.images])], options.seed, 0))


def _name(source: DataSource, label: int) -> str:
    return source.class_names[label] if source.class_names else str(label)


def _save(picture: np.ndarray, file: Path) -> None:
    try:
        Image.fromarray(picture).save(file)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written: {error.strerror or error}.", "Choose another place.") from error
