"""The table on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from kdcompress.cli.output import _rows


def test_values_stand_under_their_own_keys() -> None:
    """A first row that lacks a key would leave that of the others without a name."""
    shown = io.StringIO()
    rows = [{"spec": "a", "macs": 1}, {"spec": "b", "sum_weight": 0.25, "macs": 2}]
    Console(file=shown, width=80).print(_rows("members", rows))
    lines = shown.getvalue().replace("┃", "│").split("\n")
    cells = [[cell.strip() for cell in line[1:-1].split("│")] for line in lines]
    assert ["spec", "macs", "sum_weight"] in cells
    assert ["a", "1", "-"] in cells
    assert ["b", "2", "0.25"] in cells
