"""``report`` on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cli.conftest import Cli
from report.reading import Reading


def test_one_line_of_json_and_one_file(cli: Cli, here: Path, runs: Path) -> None:
    """A script could not find the file, or read what it says."""
    done = cli("report", runs / "gated", runs / "single", "--out", "report.html", "--no-time")
    assert done.result["file"] == str(here / "report.html")
    assert Reading((here / "report.html").read_text()).values == done.result
    cli("report", runs / "gated", "--out", "report.html", "--no-time").error("exists already")


def test_a_report_goes_on_in_the_pipe(cli: Cli, here: Path, runs: Path) -> None:
    """The next command would try to load the web page as a network."""
    run = shutil.copytree(runs / "gated", here / "gated")
    done = cli("report", "--no-time", stdin=json.dumps({"command": "gate-calibrate", "run": str(run)}))
    assert done.result["file"] == str(run / "report.html")
    assert cli("eval", "-", stdin=done.out).result["run"] == str(run)


def test_on_a_terminal(cli: Cli, here: Path, runs: Path) -> None:
    """A person would look for the file in a page of JSON."""
    shown = cli("report", runs / "gated", "--out", "r.html", "--no-time", "--no-json").out
    assert "r.html" in shown
    assert "points lost" in shown
    assert "subject" in shown
