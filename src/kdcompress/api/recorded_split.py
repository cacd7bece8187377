"""The division of images that have none, as runs record it and as later commands find it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from kdcompress.data import DataSource, SplitFile
from kdcompress.data.manifest import is_manifest
from kdcompress.models.loading import Network
from kdcompress.options import DataOptions
from kdcompress.references import UNLABELLED
from kdcompress.runs import SPLIT, RunFolder


def recorded_split(network: Network | None, spec: str) -> SplitFile | None:
    """How the run of a network divided a folder or manifest, if it did.

    Raises:
        UserError: The record was altered or cannot be read.
    """
    if network is None or network.path is None:
        return None
    return _split_in(RunFolder(network.path), network.record, spec)


def split_of_resumed(options: DataOptions, spec: str) -> SplitFile | None:
    """How the run that is resumed divided its data, if it did.

    Raises:
        UserError: As for :func:`recorded_split`.
    """
    if not getattr(options, "resume", False) or not (out := getattr(options, "out", None)):
        return None
    run = RunFolder(Path(out).absolute())
    return _split_in(run, run.record(), spec) if (run.path / SPLIT).is_file() else None


def _split_in(run: RunFolder, record: dict[str, Any], spec: str) -> SplitFile | None:
    then = record.get("options", {}).get("data")
    answered = str(then).startswith(UNLABELLED)
    then, spec = (None if then is None else then.removeprefix(UNLABELLED)), spec.removeprefix(UNLABELLED)
    is_file = is_manifest(spec) and os.path.isfile(spec)
    if then is None or SPLIT not in run.digests() or not (is_file or os.path.isdir(spec)):
        return None
    same = os.path.realpath(then) == os.path.realpath(spec)
    if not same and os.path.exists(then):  # other data
        return None
    run.check(SPLIT)
    split = dataclasses.replace(SplitFile.read(run.path / SPLIT), answered=answered)
    return split if same or split.is_of(Path(spec).parent if is_file else Path(spec)) else None


def keep_split(run: RunFolder, source: DataSource) -> dict[str, str]:
    """Write into a run how the images were divided, where the folder does not say; its digest by the file's name."""
    return {} if source.split is None else {SPLIT: run.write_split(source.split.content())}
