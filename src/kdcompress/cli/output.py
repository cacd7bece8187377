"""What goes to standard output (the result) and to standard error (everything else)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from kdcompress.cli.next_step import next_step
from kdcompress.cli.summary import rows as summary_rows
from kdcompress.cli.summary import shares, short_path

if TYPE_CHECKING:
    from kdcompress.results import Result

LONGEST = 1000  # characters of a line on standard error
WIDE = ("contenders", "curve", "by_module", "members", "entries", "search", "files", "networks")
DETAILS = ("curve",)  # tables that only --verbose shows
BRIEF = {  # columns of tables that would not fit otherwise; --verbose shows all
    "contenders": ("form", "networks", "top1", "macs_ratio", "ms", "chosen"),
    "networks": ("network", "gated", "batch_size", "p50_ms", "p95_ms", "images_per_second", "time_ratio", "macs_ratio"),
}
OPTIONAL = ("ms",)  # columns that some rows may lack


class Unprinted(Exception):
    """Standard output took no result; the message says why."""


def print_result(result: Result, as_json: bool | None, verbose: bool = False, commands: Collection[str] = ()) -> None:
    """One line of JSON off a terminal, a table on it.

    Args:
        verbose: Every key of the JSON in the table, not only what a person looks for first.
        commands: Names of those that exist, one of which may be the next to run.

    Raises:
        Unprinted: Standard output is closed or full, or its reader has left.
    """
    values = result.to_dict()
    for key in result.not_finite():
        print(f"Notice: {key} is {getattr(result, key)}; in JSON it is null.", file=sys.stderr)
    if as_json is None:
        as_json = not sys.stdout.isatty()
    print_out(json.dumps(values, allow_nan=False) if as_json else _table(values, verbose, commands))


def print_out(text: str) -> None:
    """Print on standard output, and see that it has arrived.

    Raises:
        Unprinted: Standard output is closed or full, or its reader has left.
    """
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:  # ValueError: of a file that was closed
        raise Unprinted(getattr(error, "strerror", None) or str(error)) from error


def print_error(problem: str, remedy: str = "") -> None:
    """What is wrong, and how to mend it."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    label = "\033[1;31mError:\033[0m" if colour else "Error:"
    print(f"{label} {one_line(problem)}", file=sys.stderr)
    if remedy:
        print(one_line(remedy), file=sys.stderr)


def _table(values: dict[str, Any], verbose: bool, commands: Collection[str]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table(show_header=False, title=values["command"], title_justify="left")
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    summary = summary_rows(values)
    for label, text in summary:
        facts.add_row(label, Text(text))
    if verbose and summary:
        facts.add_section()
    if verbose or not summary:
        for key, value in values.items():
            if key not in WIDE and key != "command" and value not in (None, {}):
                facts.add_row(key, Text(_shown(key, value)))
    with console.capture() as shown:
        console.print(facts)
        for key in WIDE:
            if values.get(key) and (verbose or key not in DETAILS):
                console.print(_rows(key, values[key], None if verbose else BRIEF.get(key)))
        if command := next_step(values, commands):
            console.print(Text(f"Next: {command}"), soft_wrap=True)  # in one piece, or it could not be copied
    return shown.get().removesuffix("\n")


def _rows(title: str, rows: list[dict[str, Any]], keys: Collection[str] | None = None) -> Any:
    """A table.

    Args:
        keys: Of the columns; None for all, as where a row lacks one.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    known = list(dict.fromkeys(key for row in rows for key in row))
    if keys is None or not all(key in row for row in rows for key in keys if key not in OPTIONAL):
        keys = known
    keys = [key for key in keys if key in known]
    for key in keys:
        side: Any = "left" if any(isinstance(row.get(key), str) for row in rows) else "right"
        header = key.replace("_", " ") if title in BRIEF else key  # of several words, it takes several lines
        table.add_column(header, justify=side, overflow="fold")  # a spec cut short could not be copied
    for row in rows:
        table.add_row(*(Text(_shown(key, row.get(key))) for key in keys))  # brackets in names are no markup
    return table


def _shown(key: str, value: Any) -> str:
    if key == "network":
        return short_path(value)
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int) and key != "seed":
        return f"{value:,}"
    if isinstance(value, float):
        return (
            f"{value:,.0f}"
            if key.endswith(("macs", "images_per_second")) and abs(value) >= 10
            else f"{value:.4g}"
            if abs(value) < 10
            else f"{value:,.2f}"
        )
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value)) if key == "input_size" else ", ".join(_shown(key, part) for part in value)
    if isinstance(value, dict):
        if key == "unsupported_ops":
            return ", ".join(f"{name} x{count}" for name, count in value.items())
        if key == "macs_by_operator":
            return shares(value)
        return ", ".join(f"{name} {_shown(name, part)}" for name, part in value.items())
    return str(value)


def one_line(text: str) -> str:
    """Without what would steer a terminal, and not longer than a person reads."""
    line = " ".join(text.split())
    if len(line) > LONGEST:
        line = f"{line[: LONGEST * 2 // 3]} … {line[-LONGEST // 4 :]}"
    return "".join(part if part.isprintable() else ascii(part)[1:-1] for part in line)
