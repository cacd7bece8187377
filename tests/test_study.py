"""What the studies under examples/ share: nothing is done twice, nothing is mixed up, and no path is kept."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdcompress.runs import WEIGHTS, RunFolder

Called = list[tuple[str, ...]]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, from its folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import study

    return study


@pytest.fixture
def called(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Called:
    """The commands that a study runs; each makes a finished run, and eval says how many there were before."""
    commands: Called = []

    def call(_: Any, *arguments: str) -> dict[str, Any]:
        commands.append(arguments)
        if arguments[0] == "eval":
            return {"run": arguments[1], "data": "/here", "top1": float(len(commands))}
        run = RunFolder(Path(arguments[arguments.index("--out") + 1]))
        run.path.mkdir()
        (run.path / WEIGHTS).touch()
        run.finish({"result": {"run": str(run.path), "top1": 1.0}, "teacher": {"reference": "/here", "seconds": 2.0}})
        return {}

    monkeypatch.setattr(study.Study, "call", call)
    return commands


def chain(path: Callable[[str], str]) -> dict[str, list[str]]:
    """Two runs, the second one on the first."""
    return {"first": ["distill"], "second": ["add-res-student", path("first")], "third": ["distill"]}


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_is_kept_is_not_done_again(study: ModuleType, called: Called, tmp_path: Path, jobs: int) -> None:
    """A study that is started again would train all that it knows; on another machine it could not go on at all."""
    kept = tmp_path / "kept.json"
    here = study.Study(tmp_path / "here", kept, jobs=jobs)
    here.run(chain(here.path))
    commands = [command[0] for command in called]
    assert sorted(commands) == ["add-res-student", "distill", "distill", "eval", "eval", "eval"]
    assert str(tmp_path) not in kept.read_text()
    assert "/here" not in kept.read_text()
    assert here.training("first") == {"top1": 1.0, "hardware": None, "teacher": {"seconds": 2.0}}
    called.clear()
    elsewhere = study.Study(tmp_path / "elsewhere", kept, jobs=jobs)
    elsewhere.run(chain(elsewhere.path))
    assert called == []
    assert elsewhere.result("second")["top1"] > 1


def test_a_base_that_is_gone_is_trained_again(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """A chain that was cut off could not be continued where only its results are."""
    kept = tmp_path / "kept.json"
    here = study.Study(tmp_path / "here", kept)
    here.run({"first": ["distill"]})
    score = here.result("first")
    called.clear()
    elsewhere = study.Study(tmp_path / "elsewhere", kept)
    elsewhere.run(chain(elsewhere.path))
    assert [command[0] for command in called] == ["distill", "add-res-student", "eval", "distill", "eval"]
    assert elsewhere.result("first") == score


def test_rows_of_other_settings_are_not_mixed(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """A table would compare ten epochs with four."""
    kept = tmp_path / "kept.json"
    study.Study(tmp_path, kept, settings={"epochs": 4}).run({"first": ["distill"]})
    with pytest.raises(SystemExit, match="'epochs': 4"):
        study.Study(tmp_path, kept, settings={"epochs": 10})


def test_what_chooses_is_not_scored(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """Something would be chosen on the test split."""
    one = study.Study(tmp_path, tmp_path / "kept.json")
    one.run({"first": ["distill"]}, score=False)
    assert [command[0] for command in called] == ["distill"]
    assert json.loads(one.kept.read_text())["runs"]["first"].keys() == {"training"}


def test_a_study_that_is_stopped_begins_nothing_more(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C would end the run in hand, and the next one begin; so would an error, for all that are left."""
    begun: list[str] = []

    def call(_: Any, *arguments: str) -> dict[str, Any]:
        begun.append(arguments[0])
        sys.exit(130)

    monkeypatch.setattr(study.Study, "call", call)
    with pytest.raises(SystemExit):
        study.Study(tmp_path, tmp_path / "kept.json").run({name: [name] for name in "abcdefgh"})
    assert begun == ["a"]
