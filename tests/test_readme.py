"""What the README says is true."""

import re
import subprocess
from pathlib import Path

import pytest

from kdcompress.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_readme_test_command() -> None:
    """CI could be green while the command that the README gives to contributors fails."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line]
    assert len(commands) == 1
    script = (ROOT / ".ci" / "run").read_text()
    (told,) = re.findall(r"^tests=.*$", script, re.M)
    assert "README.md" in told
    shell = ["bash", "-c", f'{told}\nprintf %s "$tests"']
    assert subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout == commands[0]
    assert re.search(r'^eval "\$tests"$', script, re.M), "the command is read and not run"


def test_there_are_exactly_two_setup_commands() -> None:
    """A newcomer would have to piece the set-up together."""
    assert len(re.findall(r"^python3 -m venv", README, re.M)) == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_explained(command: str) -> None:
    """A command exists that no reader of the README learns of."""
    assert f"| `{command}" in README


def test_the_readme_table_was_made() -> None:
    """The first screen shows no results."""
    table = README.split("<!-- cifar10-table: begin -->")[1].split("<!-- cifar10-table: end -->")[0]
    assert table.count("| **gated") >= 1
