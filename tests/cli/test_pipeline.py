"""The main job as a shell pipeline, and how the commands behave towards pipes, terminals and settings."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import select
import time
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Cli
from cli.forked import start
from cli.shell import ESCAPE, TINY, shell
from kdcompress import options
from kdcompress.cli import COMMANDS
from kdcompress.option_set import flag
from kdcompress.options import ShellOptions

COLOUR = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|9[0-7]|4[0-8])(?:;[\d;]*)?m")
ALWAYS = {"command", "run", "seconds"}
NETWORK = {"architecture", "num_classes", "input_size", "params", "macs", "flops"}
TAUGHT = {"teacher", "teacher_macs", "macs_ratio"}
TRAINED = {"method", "data", "epochs", "seed", "device", "precision", "split", "n", "top1", "top5", "loss"}
GATED = {"measure", "thresholds", "exit_rates", "expected_macs", "expected_macs_ratio", "full_top1", "gated_top1"}
SCORED = {"data", "split", "n", "top1", "top5", "loss", "images_per_second", "device", "precision"}


def test_the_pipeline_of_the_readme(cli: Cli, here: Path) -> None:
    """Else the tool's main job does not work as documented: JSON from link to link, and at last a plain path.

    The last two links are a shell's; tests/test_examples.py has five.
    """
    commands = (
        f"train-teacher --model {TINY} --data digits --epochs 2 --seed 3",
        f"distill - --method reskd --student {TINY} --epochs 1",
        f"add-res-student - --arch {TINY} --epochs 1",
    )
    told = ""
    for number, command in enumerate(commands, 1):
        link = cli(*command.split(), stdin=told)
        assert link.status == 0, link.err
        assert not ESCAPE.search(link.err)
        told = link.out
        (here / f"{number}.json").write_text(told)
    done = shell(
        """
        cat 3.json | kdcompress gate-calibrate - --max-drop 5 | tee 4.json \
          | sed 's/.*"run": "\\([^"]*\\)".*/\\1/' | python -m kdcompress eval -
        echo "${PIPESTATUS[@]}" >status
        """,
        here,
    )
    assert (here / "status").read_text().split() == ["0"] * 5, done.err
    assert not ESCAPE.search(done.err), "colour, or a redrawn line, off a terminal"
    assert "Traceback" not in done.err
    evaluated = done.result
    links = []
    for number in range(1, 5):
        lines = (here / f"{number}.json").read_text().splitlines()
        assert len(lines) == 1, "standard output carries the result and nothing else"
        links.append(json.loads(lines[0]))
    teacher, student, cascade, gated = links
    commands = [link["command"] for link in (*links, evaluated)]
    assert commands == ["train-teacher", "distill", "add-res-student", "gate-calibrate", "eval"]
    for link in (*links, evaluated):
        assert link.keys() >= ALWAYS | NETWORK
        assert os.path.isabs(link["run"])
        assert link["data"] == "digits"
        assert link["flops"] == 2 * link["macs"]
    for link in links:
        assert (Path(link["run"]) / "model.safetensors").is_file()
        assert Path(link["run"]).parent == here / "runs"
    for link in (teacher, student, cascade):
        assert link.keys() >= TRAINED
    for link in (student, cascade, gated, evaluated):
        assert link.keys() >= TAUGHT
        assert link["teacher"] == teacher["run"]
        assert link["teacher_macs"] == teacher["macs"]
        assert link["macs_ratio"] == pytest.approx(link["macs"] / teacher["macs"], abs=1e-6)
    assert len({link["run"] for link in links}) == 4
    assert gated.keys() >= GATED | {"curve", "split", "n", "members"}
    assert evaluated.keys() >= GATED | SCORED | {"members"}
    assert evaluated["run"] == gated["run"]
    assert evaluated["thresholds"] == gated["thresholds"]
    assert (evaluated["split"], evaluated["n"]) == ("test", 360)
    assert (gated["split"], gated["n"]) == ("calibration", cascade["n"])
    assert [member["macs"] for member in evaluated["members"]] == [teacher["macs"]] * 2
    expected = sum(rate * macs for rate, macs in zip(evaluated["exit_rates"], (1, 2), strict=True)) * teacher["macs"]
    assert evaluated["expected_macs"] == pytest.approx(expected, rel=1e-4)
    assert evaluated["expected_macs"] <= evaluated["macs"]
    assert gated["gated_top1"] >= gated["full_top1"] - 5
    assert evaluated["top1"] == evaluated["gated_top1"]
    assert len(cascade["energies"]) == 2


@pytest.mark.parametrize("form", ["path", "relative path", "JSON", "indented JSON", "log and JSON", "weights"])
def test_dash_reads_a_run_from_standard_input(form: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a pipeline from find, jq, tee or a notebook needs glue."""
    relative = os.path.relpath(runs / "gated", here)
    as_json = json.dumps({"command": "gate-calibrate", "run": str(runs / "gated")})
    text = {
        "path": f"{runs / 'gated'}\n",
        "relative path": relative,
        "JSON": as_json,
        "indented JSON": json.dumps(json.loads(as_json), indent=2) + "\n",
        "log and JSON": f"a line of somebody's log\n{as_json}\n",
        "weights": f"{runs / 'teacher' / 'model.safetensors'}\n",
    }[form]
    more = ["--arch", TINY] if form == "weights" else []
    result = cli("profile-flops", "-", *more, stdin=text).result
    if form == "weights":
        assert (result["run"], result["params"]) == (None, 5142)
    else:
        assert result["params"] == 2 * 5142
        assert os.path.isabs(result["run"])
        assert os.path.samefile(result["run"], runs / "gated")


def test_version_of_the_script_and_of_the_module(here: Path) -> None:
    """Else a bug report cannot say which version it is about."""
    version = shell("kdcompress --version; python -m kdcompress --version", here)
    assert re.fullmatch(r"(kdcompress \d+\.\d+\.\d+\S*\n)\1", version.out)


def test_reader_that_leaves(here: Path) -> None:
    """Else ``kdcompress … | head -0`` ends in a traceback of Python's own."""
    done = shell("(kdcompress profile-flops lenet5; echo $? >status) | true", here)
    assert "Traceback" not in done.err
    assert "BrokenPipe" not in done.err
    assert (here / "status").read_text().strip() in ("0", "1")


def terminal(arguments: list[str], cwd: Path, **more: str) -> tuple[int, str]:
    """Exit status and all that a command writes on a terminal."""
    main, other = os.openpty()
    device = Path(os.ttyname(other))
    process = start(arguments, cwd, device, device, given=device, COLUMNS="100", **more)
    shown, until = b"", time.monotonic() + 120
    try:
        while (ends := process.exitcode) is None and time.monotonic() < until:
            process.join(0.1)
            while select.select([main], [], [], 0)[0]:
                shown += os.read(main, 65536)
        assert ends is not None, "it does not end"
        return ends, shown.decode()
    finally:
        process.kill()
        os.close(other)
        os.close(main)


def test_terminal_gets_a_table_and_live_progress(here: Path) -> None:
    """Else people read raw JSON, and stare at a dead terminal for the hours of a training."""
    status, shown = terminal(["train-teacher", "--model", TINY, "--epochs", "1"], here)
    assert status == 0
    assert "│" in shown
    assert "top-1 (calibration)" in shown
    assert "Next: kdcompress distill" in shown
    assert '{"command"' not in shown
    assert "img/s" in shown
    assert COLOUR.search(shown)


def test_no_color_and_json_on_a_terminal(here: Path) -> None:
    """Else logs of a terminal session are full of escape codes though the user forbade them."""
    arguments = ["train-teacher", "--model", TINY, "--epochs", "1", "--json"]
    status, shown = terminal(arguments, here, NO_COLOR="1")
    assert status == 0
    assert not COLOUR.search(shown)
    assert "\x1b" not in shown, "animation under NO_COLOR"
    assert "epoch 1/1" in shown
    assert json.loads(shown.splitlines()[-1])["command"] == "train-teacher"


def test_table_into_a_pipe(cli: Cli) -> None:
    """Else --no-json into a file or a pager is not readable."""
    done = cli("profile-flops", "lenet5", "--no-json")
    assert done.status == 0
    result = cli("profile-flops", "lenet5").result
    assert f"{result['macs']:,}" in done.out
    assert f"convolution {100 * result['macs_by_operator']['convolution'] / result['macs']:.1f} %" in done.out
    assert result["macs"] > 1000
    assert not ESCAPE.search(done.out)


def test_quiet_and_verbose(cli: Cli) -> None:
    """Else cron sends a mail a night, or a log lacks what was asked for."""
    arguments = ["train-teacher", "--model", TINY, "--epochs", 2]
    assert cli(*arguments, "--quiet").err == ""
    assert cli(*arguments).err.count("epoch ") == 2


def test_two_runs_of_one_name(cli: Cli, here: Path, runs: Path) -> None:
    """Else the second experiment of the day overwrites the first."""
    results = [cli("gate-calibrate", runs / "cascade", "--threshold", 0.5).result["run"] for _ in range(3)]
    assert len(set(results)) == 3


# --- settings -----------------------------------------------------------------------------------------------------


def test_flags_beat_environment_beats_config_beats_defaults(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user cannot tell which of three settings is in force."""

    def classes(*arguments: str) -> int:
        return cli("profile-flops", "lenet5", *arguments).result["num_classes"]

    (here / "all.yaml").write_text("num_classes: 7\n")
    (here / "own.yaml").write_text("num-classes: 7\nprofile-flops:\n  num-classes: 8\neval:\n  batch_size: 3\n")
    (here / "own.json").write_text('{"profile-flops": {"num_classes": 9}}')
    assert classes() == 10
    assert classes("--config", "all.yaml") == 7
    assert classes("--config", "own.yaml") == 8
    assert classes("--config", "own.json") == 9
    monkeypatch.setenv("KDCOMPRESS_NUM_CLASSES", "6")
    assert classes("--config", "own.yaml") == 6
    assert classes("--config", "own.yaml", "--num-classes", "5") == 5
    monkeypatch.setenv("KDCOMPRESS_CONFIG", "own.yaml")
    monkeypatch.delenv("KDCOMPRESS_NUM_CLASSES")
    assert classes() == 8
    monkeypatch.setenv("KDCOMPRESS_JSON", "0")
    assert "│" in cli("profile-flops", "lenet5").out


def test_one_config_for_the_whole_pipeline(cli: Cli, here: Path) -> None:
    """Else a shared file of settings breaks every command that lacks one of them."""
    (here / "study.yaml").write_text(f"epochs: 1\nseed: 5\nmodel: {TINY}\nprecision: fp32\nmax_drop: 3\n")
    run = cli("train-teacher", "--config", "study.yaml").result
    assert (run["seed"], run["epochs"]) == (5, 1)
    assert cli("eval", run["run"], "--config", "study.yaml").result["precision"] == "fp32"


def test_environment_reaches_the_run(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else KDCOMPRESS_EPOCHS is accepted and ignored."""
    monkeypatch.setenv("KDCOMPRESS_EPOCHS", "1")
    monkeypatch.setenv("KDCOMPRESS_MODEL", TINY)
    result = cli("train-teacher", "--seed", "9").result
    assert (result["epochs"], result["seed"], result["architecture"]) == (1, 9, TINY)
    record = json.loads((Path(result["run"]) / "run.json").read_text())
    assert record["options"]["epochs"] == 1


# --- help ---------------------------------------------------------------------------------------------------------


def option_set(command: str) -> Any:
    return getattr(options, COMMANDS[command][1])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_and_an_example(command: str, cli: Cli) -> None:
    """Else there are options that nobody can find."""
    done = cli(command, "--help")
    assert done.status == 0
    assert done.err == ""
    assert f"Example: kdcompress {command}" in " ".join(done.out.split())
    for kind in (option_set(command), ShellOptions):
        for field in dataclasses.fields(kind):
            name = field.name.upper() if field.metadata["argument"] else flag(field.name)
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", done.out), f"{name} is not listed"
            words = field.metadata["help"].split()
            assert words, f"{name} has no help"
            if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
                listed = done.out[done.out.index(name + " ") :].replace("│", " ")  # the default may be on the next line
                assert f"(default: {field.default})" in " ".join(listed.split()), f"{name} has an unknown default"
    assert not ESCAPE.search(done.out)


def test_examples_of_the_help_are_real(cli: Cli) -> None:
    """Else the first thing that a newcomer copies fails: every flag of every example exists."""
    for command, (_, _, text) in COMMANDS.items():
        known = {flag(field.name) for field in dataclasses.fields(option_set(command))}
        for example in re.findall(r"Example: kdcompress (.*)", text):
            own = example.split(" | ")[0].split()  # those of the next link are options of another command
            assert own[0] == command
            assert {word for word in own if word.startswith("--")} <= known


def test_help_does_without_torch(here: Path) -> None:
    """Else --help takes seconds."""
    for arguments in ("--help", "distill --help", "--version", "nonsense"):
        done = shell(f"python -X importtime -m kdcompress {arguments}", here)
        modules = {line.rpartition("|")[2].strip().split(".")[0] for line in done.err.splitlines() if "|" in line}
        assert "kdcompress" in modules
        assert not modules & {"torch", "timm", "numpy", "sklearn", "PIL", "fvcore", "yaml"}, arguments


def test_a_piped_checkpoint_takes_arch(cli: Cli, here: Path, runs: Path) -> None:
    """Else what works with the path of a checkpoint does not work with '-'."""
    weights = runs / "teacher" / "model.safetensors"
    made = cli("distill", "-", "--arch", f"{TINY},in_chans=1", "--student", TINY, "--epochs", 1, stdin=f"{weights}\n")
    record = json.loads((Path(made.result["run"]) / "run.json").read_text())
    assert record["teacher"]["reference"] == str(weights)
    cli("distill", runs / "teacher", "--arch", TINY).error("--res-students")


def test_tensorboard_writes_events(cli: Cli, here: Path) -> None:
    """Else the flag is taken and the board stays empty."""
    run = Path(cli("train-teacher", "--model", TINY, "--epochs", 2, "--tensorboard").result["run"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(run.rglob("events.out.tfevents.*")).parent)).Reload()
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    tags = events.Tags()["scalars"]
    tag = next(tag for tag in tags if tag.endswith("top1") and "train" not in tag)
    values = [event.value for event in events.Scalars(tag)]
    key = next(key for key in rows[0] if key.endswith("top1") and "train" not in key)
    assert values == pytest.approx([float(row[key]) for row in rows], abs=1e-3)
