"""docs/scale.md: its figures are those that were measured, and its commands exist."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdcompress import options
from kdcompress.cli import COMMANDS
from kdcompress.option_set import flag

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()
FOUND: dict[str, Any] = json.loads((ROOT / "examples" / "results" / "state.json").read_text())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples" / "benchmarks")
    return importlib.import_module("bench_state")


def between(mark: str) -> list[str]:
    return PAGE.split(f"<!-- {mark}: begin -->\n")[1].split(f"\n<!-- {mark}: end -->")[0].splitlines()


def test_the_tables_are_those_of_the_figures(script: ModuleType) -> None:
    """Somebody would buy memory by a number that nobody has measured."""
    assert script._slopes(*FOUND["sizes"]) == FOUND["bytes_per_image"]
    assert between("state") == script.table(FOUND)
    assert between("state-large") == script.large(FOUND)


def test_no_object_is_kept_for_an_image() -> None:
    """Every worker process would copy the memory of each object that it looks at: 14 million of them."""
    slopes = FOUND["bytes_per_image"]
    assert slopes["shards"]["bytes"] < 24
    assert slopes["folder"]["bytes"] < 90
    assert slopes["split"]["bytes"] + slopes["order"]["bytes"] < 20
    together = sum(slopes[name]["bytes"] for name in ("folder", "shards", "split", "order"))
    assert slopes["processes"] < 1.5 * together, "two workers have copies of their own"


def test_commands_exist_with_their_options() -> None:
    """A user copies a line from the page and is told that there is no such option."""
    lines = [line for line in PAGE.splitlines() if line.startswith("kdcompress ")]
    assert lines
    for line in lines:
        _, command, *rest = line.split("#")[0].split()
        known = {flag(name) for name in getattr(options, COMMANDS[command][1]).__dataclass_fields__}
        assert {word for word in rest if word.startswith("--")} <= known, line
    every = {flag(name) for _, entry, _ in COMMANDS.values() for name in getattr(options, entry).__dataclass_fields__}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= every
