"""What a result says first on a terminal, and the command that follows it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Cli
from cli.shell import TINY
from kdcompress import options
from kdcompress.cli import COMMANDS
from kdcompress.cli.next_step import next_step
from kdcompress.cli.output import _table
from kdcompress.cli.summary import rows, scaled

NETWORK: dict[str, Any] = {
    "run": "/runs/x", "seconds": 1.0, "architecture": "resnet32_cifar", "num_classes": 10, "input_size": [3, 32, 32],
    "params": 464_154, "macs": 69_000_000, "flops": 138_000_000,
}  # fmt: skip
TAUGHT = {"teacher": "/runs/t", "teacher_macs": 138_000_000, "macs_ratio": 0.5, "teacher_params": 1_000_000}
TAUGHT |= {"params_ratio": 0.464154, "teacher_top1": 93.5, "points_lost": 1.25}
SCORED = {"data": "digits", "split": "test", "n": 360, "top1": 92.25, "loss": 0.3, "ece": 2.0}
MEASURED = {"bytes": 1_900_000, "latency_ms": {"p50": 2.314, "p95": 3.02}, "images_per_second": 1234.5}
PLACE = {"hardware": "CPU X, 2 threads", "device": "cpu", "precision": "fp32"}
MEMBERS = [{"architecture": "resnet8_cifar,width=0.5", "params": 1, "macs": 1}] * 2
GATED = {"measure": "margin", "thresholds": [0.5], "exit_rates": [0.75, 0.25], "expected_macs": 34_500_000.0}
GATED |= {"expected_macs_ratio": 0.25, "full_top1": 92.5, "gated_top1": 92.25, "speedup": 1.5, "members": MEMBERS}


def result(command: str, *parts: dict[str, Any]) -> dict[str, Any]:
    found = {"command": command, **NETWORK}
    for part in parts:
        found |= part
    return found


def test_eval_begins_with_accuracy_loss_and_cost() -> None:
    """People had to look for the accuracy in the 22nd of 31 rows, and for what it lost in another command."""
    shown = rows(result("eval", SCORED, TAUGHT, MEASURED, PLACE, GATED))
    assert shown[:8] == [
        ("top-1 (test)", "92.25 %  (360 test images)"),
        ("points lost", "1.25  (the teacher has 93.50 %)"),
        ("all members run", "92.50 %"),
        ("MACs per image", "34.5 M, 25 % of the teacher's, expected with the gate"),
        ("  all members run", "69 M, 50 % of the teacher's"),
        ("parameters", "464 k, 46.4 % of the teacher's"),
        ("size on disk", "1.9 MB"),
        ("latency", "2.31 ms for one image (p95 3.02 ms)"),
    ]
    assert shown[-1] == ("run", "/runs/x")
    assert len(shown) <= 17


def test_agreement_is_not_called_accuracy() -> None:
    """Without labels nobody knows the accuracy, and 100 % of the teacher's errors would look like none."""
    shown = rows(result("eval", SCORED, {"agreement": True}))
    assert shown[0] == ("top-1 (test)", "92.25 %  (360 test images), agreement with the teacher")


def test_a_student_that_gained() -> None:
    """A loss of -0.40 points reads like an error."""
    better = {**TAUGHT, "teacher_top1": 92.0, "points_lost": -0.25}
    assert rows(result("eval", SCORED, better))[1] == ("points lost", "none: 0.25 gained  (the teacher has 92.00 %)")
    equal = {**TAUGHT, "teacher_top1": 92.25, "points_lost": 0.0}
    assert rows(result("eval", SCORED, equal))[1] == ("points lost", "0.00  (the teacher has 92.25 %)")


def test_what_is_not_known_is_left_out() -> None:
    """Rows of dashes hide those that say something."""
    labels = [label for label, _ in rows(result("train-teacher", SCORED))]
    assert labels == ["top-1 (test)", "MACs per image", "parameters", "architecture", "input size", "data", "run"]
    assert rows({"command": "cache", "run": None, "bytes": 3}) == []


def test_calibration_accuracy_is_called_that() -> None:
    """It was chosen on these images; taken for test accuracy it ends in a paper."""
    values = result("distill", {**SCORED, "split": "calibration", "calibration_seen": True}, TAUGHT)
    shown = rows(values)
    assert shown[0][0] == "top-1 (calibration)"
    assert any("may be too high" in text for _, text in shown)


def test_a_guarantee_is_said_in_words() -> None:
    """A dictionary of p-values is not what a person may rely on."""
    promise = {"max_drop": 0.5, "confidence_level": 0.95, "p_value": 0.01}
    shown = dict(rows(result("gate-calibrate", SCORED, GATED, {"promise": promise})))
    assert shown["guarantee"] == "at most 0.5 points below all members run, with confidence 0.95 on new images"
    shown = dict(rows(result("gate-calibrate", SCORED, GATED, {"promise": {**promise, "p_value": None}})))
    assert shown["guarantee"] == "none: every member runs"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (12_345, "12.3 k"), (999_600, "1 M"), (30_787_424, "30.8 M"),
     (4_111_512_576, "4.11 G"), (2.5e13, "25 T")],
)  # fmt: skip
def test_scales(number: float, text: str) -> None:
    """Nobody counts the digits of 4111512576."""
    assert scaled(number) == text


STEPS = [
    (result("train-teacher", SCORED), "distill /runs/x --method reskd --student resnet8_cifar"),
    (
        result("train-teacher", SCORED, {"architecture": "resnet8_cifar"}),
        "distill /runs/x --method reskd --student resnet8_cifar,width=0.5",
    ),
    (
        result("train-teacher", SCORED, {"architecture": "resnet8_cifar,width=0.25"}),
        "distill /runs/x --method reskd --student resnet8_cifar,width=0.125",
    ),
    (
        result("train-teacher", SCORED, {"input_size": [3, 224, 224], "macs": 5 * 10**9}),
        "distill /runs/x --method reskd --student resnet18",
    ),
    (
        result("train-teacher", SCORED, {"input_size": [3, 224, 224], "macs": 10**9}),
        "distill /runs/x --method reskd --student mobilenetv3_small_100",
    ),
    (
        result("distill", SCORED, TAUGHT, {"members": MEMBERS[:1]}),
        "add-res-student /runs/x --arch resnet8_cifar,width=0.5",
    ),
    (result("distill", SCORED, TAUGHT, {"members": MEMBERS}), "gate-calibrate /runs/x --max-drop 0.5"),
    (result("distill", SCORED, TAUGHT), "eval /runs/x"),
    (result("add-res-student", SCORED, TAUGHT, {"members": MEMBERS}), "gate-calibrate /runs/x --max-drop 0.5"),
    (result("gate-calibrate", SCORED, GATED), "eval /runs/x"),
    (result("polish", SCORED, GATED), "eval /runs/x"),
    (result("profile-flops"), "eval /runs/x"),
    (result("eval", SCORED), "distill /runs/x --method reskd --student resnet8_cifar"),
    (result("eval", SCORED, TAUGHT, {"members": MEMBERS}), "gate-calibrate /runs/x --max-drop 0.5"),
    (
        result("eval", SCORED, TAUGHT, {"members": MEMBERS[:1]}),
        "add-res-student /runs/x --arch resnet8_cifar,width=0.5",
    ),
    (result("eval", SCORED, TAUGHT, GATED), "polish /runs/x"),
    (
        {"command": "data", "run": None, "data": "photos of mine", "input_size": [3, 224, 224]},
        "train-teacher --data 'photos of mine' --model resnet50 --pretrained",
    ),
    ({"command": "data", "run": None, "data": "digits", "input_size": [1, 8, 8]},
     "train-teacher --data digits --model resnet32_cifar"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "command"), STEPS)
def test_the_next_step(values: dict[str, Any], command: str) -> None:
    """A newcomer has to find the order of ten commands in the documentation."""
    assert next_step(values) == f"kdcompress {command}"
    name, *given = shlex.split(command)
    fields = getattr(options, COMMANDS[name][1]).__dataclass_fields__
    assert {word[2:].replace("-", "_") for word in given if word.startswith("--")} <= set(fields)


def test_nothing_follows_where_nothing_can() -> None:
    """A command that fails at once is worse than none."""
    assert next_step(result("eval", SCORED, {"run": None})) is None
    assert next_step(result("eval", SCORED, TAUGHT)) is None
    assert next_step({"command": "verify", "run": "/runs/x"}) is None
    assert next_step({"command": "cache", "run": None}) is None
    assert next_step(result("export")) is None


def test_a_finished_model_is_exported_where_that_exists() -> None:
    """It is what the work was for."""
    assert next_step(result("eval", SCORED, TAUGHT), ["export"]) == "kdcompress export /runs/x"
    assert next_step(result("eval", SCORED, TAUGHT, GATED), ["export"]) == "kdcompress export /runs/x"


def test_paths_can_be_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A space in a path, a line that is broken at 80 columns, or markup in a name would need mending by hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    run = tmp_path / "my [bold]runs" / ("x" * 90)
    values = result("gate-calibrate", SCORED, GATED, {"run": str(run)})
    last = _table(values, False, COMMANDS).splitlines()[-1]
    assert last == f"Next: kdcompress eval 'my [bold]runs/{'x' * 90}'"
    outside = result("gate-calibrate", SCORED, GATED, {"run": "/elsewhere/x"})
    assert _table(outside, False, COMMANDS).splitlines()[-1] == "Next: kdcompress eval /elsewhere/x"


@pytest.mark.parametrize("width", [40, 80])
def test_the_table_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that wrap in a terminal cannot be read."""
    monkeypatch.setenv("COLUMNS", str(width))
    values = result("eval", SCORED, TAUGHT, MEASURED, PLACE, GATED)
    *lines, _ = _table(values, False, COMMANDS).splitlines()
    assert max(map(len, lines)) <= width


def test_verbose_shows_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a script reads must be to be seen by a person, too."""
    monkeypatch.setenv("COLUMNS", "120")
    values = result("eval", SCORED, TAUGHT, MEASURED, PLACE, GATED, {"curve": [{"top1": 1.0}]})
    brief, whole = _table(values, False, COMMANDS), _table(values, True, COMMANDS)
    for key in values.keys() - {"command"}:
        assert re.search(rf"(?m)(^│ | ){re.escape(key)} |^{re.escape(key)}\s*$", whole), key
    assert "curve" not in brief
    assert "macs_ratio" not in brief
    assert len(brief.splitlines()) < len(whole.splitlines()) - 25


def test_eval_of_a_gated_cascade(cli: Cli, runs: Path) -> None:
    """The keys that other programs read, and the same numbers on the screen."""
    found = cli("eval", runs / "gated").result
    assert found["points_lost"] == pytest.approx(found["teacher_top1"] - found["top1"], abs=1e-3)
    assert found["params_ratio"] == pytest.approx(2.0)
    assert found["bytes"] == (runs / "gated" / "model.safetensors").stat().st_size
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    shown = cli("eval", runs / "gated", "--no-json").out
    assert f"{found['top1']:.2f} %" in shown.splitlines()[2]
    assert "points lost" in shown.splitlines()[3]
    assert re.search(r"Next: kdcompress (polish|export) \S*gated$", shown.strip())


def test_a_student_is_told_what_it_lost(cli: Cli, runs: Path) -> None:
    """After each training people scored the teacher by hand."""
    teacher = cli("eval", runs / "teacher", "--split", "calibration").result
    assert "teacher_top1" not in teacher
    student = cli("distill", runs / "teacher", "--student", TINY, "--epochs", 1).result
    assert student["teacher_top1"] == pytest.approx(teacher["top1"], abs=1e-3)
    assert student["points_lost"] == pytest.approx(student["teacher_top1"] - student["top1"], abs=1e-3)
    gated = cli("gate-calibrate", runs / "cascade", "--threshold", 0.5).result
    assert gated["teacher_top1"] == student["teacher_top1"]
    assert gated["points_lost"] == pytest.approx(gated["teacher_top1"] - gated["gated_top1"], abs=1e-3)


def test_the_verdict_fits_on_a_screen() -> None:
    """What a person waited an hour for would be a column of single letters."""
    contenders = [
        {"form": "teacher", "networks": "/runs/t", "top1": 93.5, "macs": 1.0, "macs_ratio": 1.0, "chosen": False},
        {"form": "pair", "networks": "resnet8_cifar,shortcut=A + resnet20_cifar,shortcut=A", "epochs": 60, "top1": 92.0,
         "points_lost": 1.5, "macs": 1.0, "macs_ratio": 0.25, "within": True, "chosen": True},
    ]  # fmt: skip
    found = result("compress", TAUGHT, SCORED, GATED, {"form": "pair", "met": True, "contenders": contenders})
    text = _table(found, False, COMMANDS)
    assert max(map(len, text.splitlines())) <= 80
    assert "a gated pair of students" in text
    assert re.search(r"pair +│ resnet8_cifar,shortcut=A", text)
    assert "a gated pair of students, over the budget" in _table({**found, "met": False}, False, COMMANDS)
