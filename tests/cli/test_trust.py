"""Code runs where the user typed its name, never because a file or a pipe names it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from cli.conftest import Cli
from cli.shell import TINY, accept
from kdcompress.errors import UserError

pytestmark = pytest.mark.attack("code that a file or a pipe names")

EVIL = "py:evil:make"


@pytest.fixture
def mark(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once the code has run."""
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    (here / "evil.py").write_text(
        "from pathlib import Path\n"
        "import timm\n"
        "Path('ran').touch()\n"
        "def make(num_classes=10, in_chans=3, width=0.25):\n"
        "    return timm.create_model('resnet8_cifar', width=width, num_classes=num_classes, in_chans=in_chans)\n"
    )
    return here / "ran"


def changed(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))
    accept(path.parent)


def test_a_run_that_names_code(cli: Cli, here: Path, runs: Path, mark: Path) -> None:
    """Else a run folder from a colleague takes over the machine of who scores it."""
    shutil.copytree(runs / "teacher", here / "run")
    changed(here / "run" / "config.json", architecture=EVIL, model_args={})
    for command in (["eval"], ["profile-flops"], ["distill"], ["gate-calibrate", "--max-drop", 1]):
        cli(command[0], here / "run", *command[1:]).error(EVIL, "names code", "--trust-code", status=1)
    assert not mark.exists()
    assert cli("eval", here / "run", "--trust-code").result["n"] == 360
    assert mark.exists()


def test_data_and_teachers_that_are_code(cli: Cli, here: Path, runs: Path, mark: Path) -> None:
    """Else what a command inherits from a run is the way in."""
    shutil.copytree(runs / "single", here / "data")
    changed(here / "data" / "run.json", options={"data": EVIL})
    cli("eval", here / "data").error(EVIL, status=1)
    shutil.copytree(runs / "single", here / "taught")
    changed(here / "taught" / "run.json", teacher={"reference": EVIL})
    cli("add-res-student", here / "taught", "--arch", TINY, "--epochs", 1).error(EVIL, status=1)
    assert not mark.exists()


def test_a_pipe_that_names_code(cli: Cli, mark: Path) -> None:
    """Else whoever writes to the pipe runs code at its end."""
    cli("profile-flops", "-", stdin=json.dumps({"run": EVIL})).error(EVIL, status=1)
    assert not mark.exists()


NAMES = [
    "py:evil:make", " py:evil:make", "\tpy:evil:make", "py:evil:make ", "py: evil:make", "py:evil :make",
    "PY:evil:make",
    "Py:evil:make", "py:evil:make,width=0.25", " py:evil:make,width=0.25", "\u00a0py:evil:make", "\u2003py:evil:make",
    "\uff50\uff59:evil:make", "py\uff1aevil:make", "py:\uff45vil:make", "\ufeffpy:evil:make", "py\u200b:evil:make",
    "p\u0443:evil:make", "py:evil:make\u0000", "py:py:evil:make", "local-dir:py:evil:make", "hf-hub:py:evil:make",
    "residual_cascade,members=py:evil:make", "py:./evil:make", "py:os:system", " py:subprocess:getoutput,cmd=touch ran",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_that_disguises_code(cli: Cli, here: Path, mark: Path, name: str) -> None:
    """Else a blank before the name is the way past the check."""
    for command in (["eval"], ["profile-flops"], ["distill"], ["add-res-student", "--arch", TINY], ["polish"]):
        before = sorted(here.rglob("*"))
        assert cli(command[0], "-", *command[1:], stdin=json.dumps({"run": name})).status in (1, 2)
        assert cli(command[0], "-", *command[1:], stdin=f"{name}\n").status in (1, 2)
        assert sorted(here.rglob("*")) == before
    assert not mark.exists()


def test_a_config_file_that_names_code(cli: Cli, here: Path, mark: Path) -> None:
    """Else a colleague's study.yaml takes over the machine of who tries it."""
    (here / "study.yaml").write_text(f"model: {EVIL}\nepochs: 1\n")
    cli("train-teacher", "--config", "study.yaml").error(EVIL, "--trust-code", status=1)
    (here / "open.yaml").write_text(f"model: {EVIL}\nepochs: 1\ntrust_code: true\n")
    cli("train-teacher", "--config", "open.yaml").error("open.yaml", "--trust-code", status=2)
    assert not mark.exists()
    assert cli("train-teacher", "--config", "study.yaml", "--trust-code").status == 0


def test_what_the_user_types_is_run(cli: Cli, mark: Path) -> None:
    """Else a user's own network cannot be used, or not by the command after."""
    run = cli("train-teacher", "--model", EVIL, "--epochs", 1).result["run"]
    assert mark.exists()
    assert cli("eval", run).result["architecture"] == EVIL, "this process typed it before"


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("residual_cascade", {"members": [{"architecture": TINY.split(",")[0]}, {"architecture": EVIL}]}),
        ("student_assistant", {"model": {"architecture": EVIL}, "widths": [0.9, 0.3]}),
    ],
)
def test_a_network_within_another(
    cli: Cli, here: Path, mark: Path, architecture: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a folder that timm loads, or a model of a hub, has the code of whoever made it run."""
    told = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": {"num_classes": 10}}
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(json.dumps({**told, "model_args": arguments}))
    with pytest.raises(UserError, match="names code"):
        timm.create_model("local-dir:model")
    with pytest.raises(UserError, match="names code"):
        timm.create_model(architecture, **arguments)
    hub = {"num_classes": 10, "architecture": architecture}

    def found(*_: Any, **__: Any) -> tuple[dict[str, Any], str, dict[str, Any]]:
        return hub, architecture, arguments

    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", found)
    cli("profile-flops", "hf-hub:somebody/model").error("names code")
    assert not mark.exists()
