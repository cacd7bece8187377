"""The Python functions as notebooks and editors see them, and errors in the terms of their parameters."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcompress
from kdcompress import options
from kdcompress.cli import COMMANDS
from kdcompress.errors import UserError, usage_error
from kdcompress.python_layer import in_python, public
from kdcompress.results import EvalResult

ROOT = Path(__file__).parent.parent

APOSTROPHES = shlex.quote("/o'brien/b"), shlex.quote("o'b/it's")


def made_by(script: str) -> Any:
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_functions_are_listed_before_torch_is_loaded() -> None:
    """A notebook would complete nothing after ``kdcompress.``."""
    script = "import sys, kdcompress; print(*dir(kdcompress), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *names, has_torch = done.stdout.split()
    assert has_torch == "False"
    assert {"distill", "evaluate", "load", "UserError", "__name__"} <= set(names)
    assert {entry[0] for entry in COMMANDS.values()} <= set(kdcompress.__all__)


@pytest.mark.parametrize("command", COMMANDS)
def test_signatures_name_every_option(command: str) -> None:
    """``**given`` tells neither a person nor an editor what there is, or what a default is."""
    name, option_set, _ = COMMANDS[command]
    parameters = inspect.signature(getattr(kdcompress, name)).parameters
    fields = dataclasses.fields(getattr(options, option_set))
    assert set(parameters) == {"options", "reporter"} | {field.name for field in fields}
    assert all(parameters[field.name].default == field.default for field in fields)
    assert not [each for each in parameters.values() if each.kind is inspect.Parameter.VAR_KEYWORD]


def test_signatures_have_types_that_callers_need() -> None:
    """A checker would refuse a Path, a list of architectures or a number of pixels that is taken."""
    distill = inspect.signature(kdcompress.distill).parameters
    assert "os.PathLike[str]" in str(distill["teacher"].annotation)
    assert "os.PathLike" not in str(distill["opt"].annotation)
    assert "Sequence[str]" in str(distill["arch"].annotation)
    assert "'reskd'" in str(distill["method"].annotation)
    assert distill["input_size"].annotation == str | int | None
    assert distill["epochs"].annotation is int
    assert inspect.signature(kdcompress.evaluate).return_annotation is EvalResult


def test_help_explains_every_option() -> None:
    """help(kdcompress.polish) would send people to the source."""
    text = inspect.getdoc(kdcompress.polish)
    assert text is not None
    assert "Fine-tune all members" in text
    assert all(f"{field.name}: {field.metadata['help']}" in text for field in dataclasses.fields(options.PolishOptions))


def test_the_stub_is_up_to_date() -> None:
    """Editors would offer options that are gone; write it anew: python docs/make_stub.py."""
    made = made_by("make_stub")
    assert made.STUB.read_text() == made.stub()


@pytest.mark.parametrize(
    ("flags", "python"),
    [
        ("Say --max-drop POINTS, or --threshold X.", "Say max_drop=POINTS, or threshold=X."),
        ("--batch-size 1 is too small.", "batch_size=1 is too small."),
        ("--lr 'abc' is out of range.", "lr='abc' is out of range."),
        ("--method kd needs a TEACHER.", 'method="kd" needs a teacher.'),
        ("--arch is for res-students.", "arch= is for res-students."),
        ("E.g. --arch resnet8_cifar,width=0.5.", 'E.g. arch="resnet8_cifar,width=0.5".'),
        ("Add --search --max-macs 0.1.", "Add search=True, max_macs=0.1."),
        ("--trials has no meaning (no --search).", "trials= has no meaning (search=False)."),
        ("It was made with no --temperature.", "It was made with no temperature=."),
        ("Leave out --no-compile.", "Leave out compile=False."),
        ("Run kdcompress add-res-student first.", "Run kdcompress.add_res_student first."),
        ("kdcompress distill --method reskd, then", 'kdcompress.distill(method="reskd"), then'),
        ("Try kdcompress train-teacher --pretrained.", "Try kdcompress.train_teacher(pretrained=True)."),
        (
            "or fine-tune it: kdcompress train-teacher --model /tmp/odd --arch a,b=1 --data digits",
            'or fine-tune it: kdcompress.train_teacher(model="/tmp/odd", arch="a,b=1", data="digits")',
        ),
        (
            "`kdcompress data DATA --skip-bad-images` lists all.",
            "`kdcompress.describe_data(data=DATA, skip_bad_images=True)` lists all.",
        ),
        ("kdcompress verify /a/b --accept", 'kdcompress.verify(run="/a/b", accept=True)'),
        ("kdcompress verify '/a/my b' --accept", 'kdcompress.verify(run="/a/my b", accept=True)'),
        (
            f"kdcompress verify {APOSTROPHES[0]} --accept.",
            'kdcompress.verify(run="/o\'brien/b", accept=True).',
        ),
        (
            f"run the same command with --resume --out {APOSTROPHES[1]}",
            "run the same command with resume=True, out=\"o'b/it's\"",
        ),
        ("--out '/x/my b' exists already.", "out='/x/my b' exists already."),
        (r"--out 'C:\runs\new' exists already.", r"out='C:\\runs\\new' exists already."),
        ('--opt "o\'b" is unknown.', 'opt="o\'b" is unknown.'),
        ("kdcompress verify 'x", 'kdcompress.verify(run="x")'),
        ("/mnt/DATA/photos and out/RUN.txt cannot be read.", "/mnt/DATA/photos and out/RUN.txt cannot be read."),
        ("--input-size 3x32x32", 'input_size="3x32x32"'),
        ("Add --trust-code, or --max-restarts.", "Add --trust-code, or --max-restarts."),
        ("runs/a--lr and resnet8_cifar,width=0.5", "runs/a--lr and resnet8_cifar,width=0.5"),
        ("pip install 'kdcompress[plot]'", "pip install 'kdcompress[plot]'"),
    ],
)
def test_flags_become_parameters(flags: str, python: str) -> None:
    """The remedy could not be copied into the call that failed."""
    assert in_python(flags) == python


def test_the_callers_random_numbers_go_on() -> None:
    """A loop that draws between two calls would draw the same each time."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    kdcompress.profile_flops(model="lenet5,in_chans=1")
    with pytest.raises(UserError):
        kdcompress.profile_flops(model="lenet5", input_size="0")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_errors_of_functions_speak_python() -> None:
    """``--epochs`` is nothing that a notebook can be given."""
    with pytest.raises(UserError, match=r"^epochs=0 is out of range") as caught:
        kdcompress.train_teacher(epochs=0)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("epochs=0")
    with pytest.raises(UserError, match="'learning_rate'") as unknown:
        kdcompress.train_teacher(learning_rate=0.1)  # type: ignore[call-arg]
    assert unknown.value.remedy == "Did you mean 'lr'?"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("distill", "kdcompress.distill(teacher='runs/x', …)"),
        ("evaluate", "kdcompress.evaluate(run='runs/x', …)"),
        ("train_teacher", "kdcompress.train_teacher(model='runs/x', …)"),
        ("profile_flops", "kdcompress.profile_flops(model='runs/x', …)"),
        ("describe_data", "kdcompress.describe_data(data='runs/x', …)"),
    ],
)
@pytest.mark.parametrize("first", ["runs/x", Path("runs/x")])
def test_a_run_without_its_name_is_explained(name: str, wanted: str, first: object) -> None:
    """``evaluate("runs/x")`` is what one writes first; it ended in an AttributeError about our own code."""
    with pytest.raises(UserError, match=f"^{name} takes its options by name, not 'runs/x'") as caught:
        getattr(kdcompress, name)(first)
    assert wanted in caught.value.remedy


def test_options_of_another_function_are_refused() -> None:
    """Their fields would be missed somewhere inside."""
    with pytest.raises(UserError, match="not options of the kind EvalOptions") as caught:
        kdcompress.distill(options.EvalOptions(run="runs/x"))  # type: ignore[arg-type]
    assert "one DistillOptions" in caught.value.remedy


def test_an_unknown_word_stands_beside_its_parameter() -> None:
    """``opt= adammm is unknown`` is read twice."""
    assert in_python("--opt 'adammm' is unknown.") == "opt='adammm' is unknown."


def test_the_command_line_speaks_flags() -> None:
    """Else its remedy could not be typed."""
    with pytest.raises(UserError, match=r"^--epochs 0 is out of range"):
        importlib.import_module("kdcompress.api").train_teacher(epochs=0)


def test_an_interruption_says_how_to_go_on_from_python() -> None:
    """``--resume`` is a flag."""

    def stopped(**given: Any) -> None:
        stop = KeyboardInterrupt()
        stop.remedy = "run the same command with --resume --out /runs/x"  # type: ignore[attr-defined]
        raise stop

    with pytest.raises(KeyboardInterrupt) as caught:
        public(stopped)()
    assert caught.value.remedy == 'run the same command with resume=True, out="/runs/x"'  # type: ignore[attr-defined]


def test_errors_keep_their_kind() -> None:
    """A caller that tells a diverged training from a wrong option no longer could."""

    class Special(UserError):
        pass

    def fails() -> None:
        raise Special("--lr is too high") from usage_error("cause")

    with pytest.raises(Special, match="lr= is too high") as caught:
        public(fails)()
    assert isinstance(caught.value.__cause__, UserError)
