"""A method is one file and a row in each half of the table: the example of docs/adding-a-method.md, added by a user."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import kdcompress
from cli.conftest import Cli
from cli.shell import TINY
from kdcompress.api.recipes import RECIPES
from kdcompress.options import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
NAME = "total-variation"


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The method, for as long as a test takes."""
    before = dict(METHODS), dict(RECIPES)
    module = ModuleType("total_variation")
    monkeypatch.setitem(sys.modules, "total_variation", module)
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    yield NAME
    for table, former in zip((METHODS, RECIPES), before, strict=True):
        table.clear()
        table.update(former)  # type: ignore[arg-type]


def test_both_halves_of_the_table_have_the_same_rows() -> None:
    """A method that one half does not know would be trained as another, or fail after the data are loaded."""
    assert METHODS.keys() == RECIPES.keys()


def test_it_is_offered_and_trained(cli: Cli, here: Path, runs: Path, method: str) -> None:
    """Whoever adds a method would have to touch the parser, the checks and the loop."""
    shown = re.sub(r"[^\w-]+", " ", cli("distill", "--help").out)
    assert method in shown
    done = cli("distill", runs / "teacher", "--method", method, "--student", TINY, "--epochs", 1)
    assert done.result["method"] == method
    assert "train_variation" in (Path(done.result["run"]) / "metrics.csv").read_text()
    assert cli("eval", done.result["run"]).result["n"] == 360


@pytest.mark.parametrize(
    "options",
    [["--logit-loss", "dkd"], ["--from-teacher"], ["--scheme", "progressive"], ["--bank-size", 3], ["--grow"]],
)
def test_options_of_other_methods_are_refused(
    cli: Cli,
    here: Path,
    runs: Path,
    method: str,
    options: list[Any],
) -> None:
    """An option that changes nothing would be taken for the reason of a result."""
    command = ["distill", runs / "teacher", "--method", method, "--student", TINY]
    cli(*command, *options).error(str(options[0]), "no effect", method, status=2)
    cli("distill", "--method", method, "--student", TINY).error("needs a TEACHER", status=2)


def test_it_resumes_and_its_targets_are_cached(cli: Cli, here: Path, runs: Path, method: str) -> None:
    """A crash would cost a run of a new method, or each epoch the teacher's time."""
    given = {"method": method, "student": TINY, "epochs": 2, "device": "cpu", "precision": "fp32"}
    given |= {"teacher": str(runs / "teacher"), "target_views": "2", "cache_dir": str(here / "cache")}
    whole = kdcompress.distill(**given, out=str(here / "whole"))
    assert whole.target_views == 2
    assert list((here / "cache").rglob("view-*.npy"))

    class Stop:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        def epoch(self, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kdcompress.distill(**given, out=str(here / "cut"), reporter=Stop())  # type: ignore[arg-type]
    kdcompress.distill(**given, out=str(here / "cut"), resume=True)
    weights = [(here / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_an_unknown_name_fails_before_anything_is_loaded(cli: Cli, here: Path) -> None:
    """Plain KD would be trained under the name."""
    cli("distill", here / "nothing", "--method", NAME, "--student", TINY).error("--method", NAME, "kd", status=2)
    assert not (here / "runs").exists()
