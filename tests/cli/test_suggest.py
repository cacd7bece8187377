"""What is suggested for a command or an option that does not exist."""

from __future__ import annotations

import dataclasses

import pytest

from cli.conftest import Cli
from kdcompress import options, suggest
from kdcompress.cli import COMMANDS

KNOWN = {
    name: {field.name for field in dataclasses.fields(getattr(options, entry[1]))} for name, entry in COMMANDS.items()
}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train", "train-teacher"), ("evaluate", "eval"), ("test", "eval"), ("profile", "profile-flops"),
        ("flops", "profile-flops"), ("distil", "distill"), ("destill", "distill"), ("gate", "gate-calibrate"),
        ("add_res_student", "add-res-student"), ("TRAIN-TEACHER", "train-teacher"), ("polsh", "polish"),
        ("verfy", "verify"), ("xyz", None), ("", None),
    ],
)  # fmt: skip
def test_commands(typed: str, meant: str | None) -> None:
    """A newcomer types what other tools call it."""
    assert suggest.command(typed, COMMANDS) == meant


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("train-teacher", "--learning-rate", "lr"), ("train-teacher", "--batch", "batch_size"),
        ("train-teacher", "--lr-schedule", "sched"), ("train-teacher", "--scheduler", "sched"),
        ("train-teacher", "--optimizer", "opt"), ("train-teacher", "-b", "batch_size"),
        ("train-teacher", "--epoch", "epochs"), ("train-teacher", "--img-size", "input_size"),
        ("train-teacher", "--wd", "weight_decay"), ("train-teacher", "--num-workers", "workers"),
        ("train-teacher", "--student", "model"), ("distill", "--model", "student"), ("eval", "--model", "run"),
        ("distill", "--temp", "temperature"), ("distill", "--output-dir", "out"), ("eval", "--dataset", "data"),
        ("gate-calibrate", "--drop", "max_drop"), ("gate-calibrate", "--budget", "target_macs"),
        ("eval", "--learning-rate", None), ("eval", "--xyz", None), ("verify", "--batch", None),
    ],
)  # fmt: skip
def test_options(command: str, typed: str, meant: str | None) -> None:
    """What is suggested must be an option of this very command."""
    assert suggest.option(typed, KNOWN[command]) == meant


def test_the_tables_name_what_exists() -> None:
    """A suggestion of an option that is gone sends people in a circle."""
    assert set(suggest.COMMANDS.values()) <= set(COMMANDS)
    assert not set(suggest.COMMANDS) & set(COMMANDS)
    every = set().union(*KNOWN.values())
    for name, others in suggest.OPTIONS.items():
        assert set(others) <= every, name
        assert name not in others


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (["train"], "There is no command 'train'.", "Did you mean kdcompress train-teacher? See kdcompress --help."),
        (["xyz"], "There is no command 'xyz'.", "See kdcompress --help."),
        (
            ["train-teacher", "--learning-rate", "0.1"],
            "There is no option --learning-rate in kdcompress train-teacher.",
            "Did you mean --lr? See kdcompress train-teacher --help.",
        ),
        (
            ["train-teacher", "-lr", "0.1"],
            "There is no option -lr in kdcompress train-teacher.",
            "Did you mean --lr? See kdcompress train-teacher --help.",
        ),
        (
            ["distill", "--teacher", "runs/x"],
            "There is no option --teacher in kdcompress distill.",
            "Give TEACHER without a flag: kdcompress distill TEACHER.",
        ),
        (["eval", "--jsn"], "There is no option --jsn in kdcompress eval.", "Did you mean --json? See kdcompress eval"),
        (["eval", "--xyz"], "There is no option --xyz in kdcompress eval.", "See kdcompress eval --help."),
    ],
)
def test_the_command_line_says_it(arguments: list[str], problem: str, remedy: str, cli: Cli) -> None:
    """A usage error without a suggestion sends people to a help text of a hundred lines."""
    done = cli(*arguments)
    assert done.error(status=2) == f"Error: {problem}"
    assert done.err.splitlines()[1].startswith(remedy)


@pytest.mark.parametrize("arguments", [["help"], ["help", "eval"]])
def test_help_is_a_command(arguments: list[str], cli: Cli) -> None:
    """It is what people type first."""
    done = cli(*arguments)
    assert (done.status, done.err) == (0, "")
    assert "Usage:" in done.out
    assert ("profile-flops" in done.out) == (len(arguments) == 1)
