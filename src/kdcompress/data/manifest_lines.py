"""The lines of a manifest: a CSV table with a header (RFC 4180), or JSONL with an object a line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError, first_line, kind_of

NEEDED, SPLIT = ("path", "label"), "split"
JSON_EXAMPLE = '{"path": "cat/1.jpg", "label": "cat"}'
Lines = Iterator[tuple[int, dict[str, str]]]  # number and values by column or key


def read_csv(file: Path, opened: Iterable[str]) -> Lines:
    """Line number and values by column; blank lines are left out."""
    reader = csv.reader(opened, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in NEEDED if name not in header]:
            remedy = "The first line names the columns, separated by commas: path,label or path,label,split."
            raise UserError(f"The manifest {file} has no column {' and no column '.join(missing)}.", remedy)
        if len(set(header)) < len(header):
            raise UserError(f"The manifest {file} has two columns of one name.", "Rename or remove one of them.")
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                problem = f"{file}, line {reader.line_num} has {len(values)} values, the header {len(header)}."
                raise UserError(problem, 'Put values with commas into quotes: "cat, black/1.jpg",cat')
            yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        problem = f"{file}, line {reader.line_num} is not valid CSV: {error}."
        raise UserError(problem, "Quotes inside of quoted values are doubled.") from error


def read_jsonl(file: Path, opened: Iterable[str]) -> Lines:
    """Line number and values by key; blank lines are left out."""
    remedy = f"Write one object a line: {JSON_EXAMPLE}"
    for number, line in enumerate(opened, 1):
        if not line.strip():
            continue
        try:
            found: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}, line {number} is not valid JSON: {first_line(error)}", remedy) from error
        if not isinstance(found, dict):
            raise UserError(f"{file}, line {number} is {kind_of(found)}, not an object.", remedy)
        if missing := [key for key in NEEDED if key not in found]:
            raise UserError(f"{file}, line {number} has no key {missing[0]!r}.", remedy)
        yield number, {key: _text(file, number, key, value) for key, value in found.items()}


def _text(file: Path, number: int, key: str, value: Any) -> str:
    if key not in (*NEEDED, SPLIT):
        return ""
    if isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(
                f"{file}, line {number}: {key} has half a character.", "Escape whole pairs, or write UTF-8."
            )
        return value
    if value is None or (key == "label" and isinstance(value, int) and not isinstance(value, bool)):
        return "" if value is None else str(value)  # a whole number is as good a name as its digits
    raise UserError(f"{file}, line {number}: {key} is {kind_of(value)}, not text.", f"Write {key} in quotes.")


@dataclass(frozen=True)
class Kind:
    """A kind of manifest.

    Attributes:
        read: Its lines, of the file and its text; blank ones are left out.
        example: A line.
    """

    read: Callable[[Path, Iterable[str]], Lines]
    example: str


KINDS = {".csv": Kind(read_csv, "cat/1.jpg,cat"), ".jsonl": Kind(read_jsonl, JSON_EXAMPLE)}
