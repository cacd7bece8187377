"""What the README says is true."""

import re
from pathlib import Path

import pytest

import kdcompress
from kdcompress import options
from kdcompress.cli import COMMANDS
from kdcompress.option_set import flag

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S)).replace("\\\n", " ")


def test_ci_runs_the_readme_test_command() -> None:
    """CI could be green while the command that the README gives to contributors fails."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line]
    assert len(commands) == 1
    pattern = re.search(r"sed -n '(s/.*/p)'", (ROOT / ".ci" / "run").read_text())
    assert pattern is not None
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_there_are_exactly_two_setup_commands() -> None:
    """A newcomer would have to piece the set-up together."""
    assert len(re.findall(r"^python3 -m venv", README, re.M)) == 2


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_explained(command: str) -> None:
    """A command exists that no reader of the README learns of."""
    assert f"| `{command}" in README


def test_commands_in_the_readme_exist_with_their_options() -> None:
    """A user copies a line from the README and is told that there is no such option."""
    seen = 0
    for line in SHELL.splitlines():
        for part in line.split("|"):
            words = part.split("#")[0].split()
            if "kdcompress" not in words:
                continue
            command, *rest = words[words.index("kdcompress") + 1 :]
            if command not in COMMANDS:
                assert line.startswith(("torchrun", "python3")), line
                continue
            known = {flag(name) for name in getattr(options, COMMANDS[command][1]).__dataclass_fields__}
            assert {word for word in rest if word.startswith("--")} <= known, part
            seen += 1
    assert seen >= 10


def test_python_functions_in_the_readme_exist() -> None:
    """A user copies the Python example and gets an AttributeError."""
    names = set(re.findall(r"kdcompress\.([a-z_]+)\(", README))
    assert names
    assert all(callable(getattr(kdcompress, name)) for name in names)


def test_the_readme_table_was_made() -> None:
    """The first screen shows no results."""
    table = README.split("<!-- cifar10-table: begin -->")[1].split("<!-- cifar10-table: end -->")[0]
    assert table.count("| **gated") >= 1


def test_no_path_of_a_machine_is_in_the_readme() -> None:
    """A reader meets paths that only one machine has."""
    assert not re.search(r"(^|[\s`'\"(=])/(root|home|work|tmp)/", README)
