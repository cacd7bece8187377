"""Manifests: files that name images, their labels and perhaps their splits. What is wrong in one is named by line."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdcompress.data.manifest_lines import KINDS, NEEDED, SPLIT
from kdcompress.errors import UserError, first_line

SHOWN = 3  # rows in an error
VALIDATION = "val"
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    VALIDATION: VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
}


@dataclass(frozen=True)
class Row:
    """An image.

    Attributes:
        line: Where it is named, counted from 1.
        path: As it is written there, without ``.`` and ``..``.
        label: Name of the class, without spaces around it; empty for none.
        split: ``train``, ``test``, ``val``, or None without a column ``split``.
    """

    line: int
    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest, all of which name a file that is there.

    Attributes:
        states: Size in bytes, and time of the last change in ns, of each file.
        unused: Columns that mean nothing here.
        repeated: How many rows were left out because they repeat another.
    """

    file: Path
    rows: list[Row]
    states: list[tuple[int, int]]
    unused: list[str]
    repeated: int

    @property
    def folder(self) -> Path:
        """The one that paths are relative to."""
        return self.file.parent

    @property
    def has_splits(self) -> bool:
        """Whether the rows say which split they belong to."""
        return bool(self.rows) and self.rows[0].split is not None

    def refuse(self, rows: Iterable[Row], what: str, remedy: str, *, labels: bool = False) -> None:
        """Raise an error that names the first few of some rows; does nothing if there are none.

        Args:
            what: Is wrong with them, for example ``no label``.
            labels: Whether to name their labels in place of their paths.
        """
        found = list(rows)
        if not found:
            return
        named = [f"{(row.label if labels else row.path)!r} (line {row.line})" for row in found[:SHOWN]]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"{self.file}: {what}: {', '.join(named)}{more}.", remedy)


def is_manifest(spec: str) -> bool:
    """Whether a data set is, or looks like, a manifest."""
    return Path(spec).suffix.lower() in KINDS


def read_manifest(spec: str) -> Manifest:
    """The rows of a manifest, checked.

    Raises:
        UserError: It cannot be read, lacks a column or a value, or names files that are not there, other splits than
            train, val and test, or an image twice with different labels.
    """
    file = Path(os.path.abspath(spec))
    kind = KINDS[file.suffix.lower()]
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            numbered = list(kind.read(file, opened))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {first_line(error)}", "Save it as UTF-8.") from error
    except OSError as error:
        problem = f"The manifest {file} cannot be read: {error.strerror or first_line(error)}."
        raise UserError(problem, "Check its path.") from error
    if not numbered:
        raise UserError(f"The manifest {file} names no images.", f"Write a line for each: {kind.example}")
    with_split = sum(SPLIT in values for _, values in numbered)
    if 0 < with_split < len(numbered):
        line = next(line for line, values in numbered if SPLIT not in values)
        raise UserError(f"{file}, line {line} has no split, but others have.", "Give all rows a split, or none.")
    rows, odd = list[Row](), list[Row]()
    for line, values in numbered:
        split = None
        if with_split:
            split = SPLITS.get(values[SPLIT].strip().lower())
            if split is None:
                odd.append(Row(line, values["path"], values[SPLIT], None))
        path = os.path.normpath(values["path"]) if values["path"] else ""
        rows.append(Row(line, path, values["label"].strip(), split))
    made = Manifest(file, rows, [], sorted({key for _, values in numbered for key in values} - {*NEEDED, SPLIT}), 0)
    remedy = "Splits are train, val and test; the calibration split is a part of train."
    made.refuse(odd, "unknown splits", remedy, labels=True)
    made.refuse((row for row in rows if not row.path), "no path", "Give the image's path, or remove these lines.")
    return _there(made)


def _there(manifest: Manifest) -> Manifest:
    """The same with each file once, all of which are there.

    Raises:
        UserError: Files are missing, or named twice with different labels or splits.
    """
    first: dict[str, Row] = {}
    states, gone, folders, conflicts = list[tuple[int, int]](), list[Row](), list[Row](), list[tuple[Row, Row]]()
    repeated = 0
    for row in manifest.rows:
        path = os.path.normpath(manifest.folder / row.path)
        if (before := first.setdefault(path, row)) is not row:
            repeated += 1
            if (before.label, before.split) != (row.label, row.split):
                conflicts.append((before, row))
            continue
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            gone.append(row)
            continue
        if os.path.isdir(path):
            folders.append(row)
        states.append((state.st_size, state.st_mtime_ns))
    remedy = f"Paths are relative to {manifest.folder}; mend them, or remove these lines."
    manifest.refuse(gone, f"{len(gone)} of {len(first)} files are not there", remedy)
    manifest.refuse(folders, "folders, not images", "Name each image, or give a folder of class folders as --data.")
    if conflicts:
        named = [
            f"{one.path!r} is {_said(one)} in line {one.line} and {_said(other)} in line {other.line}"
            for one, other in conflicts[:SHOWN]
        ]
        more = f" and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
        raise UserError(f"{manifest.file}: {'; '.join(named)}{more}.", "Remove the wrong lines.")
    return Manifest(manifest.file, list(first.values()), states, manifest.unused, repeated)


def _said(row: Row) -> str:
    return repr(row.label) if row.split is None else f"{row.label!r} ({row.split})"
