"""What the studies under examples/studies/ share: nothing is done twice, nothing is mixed up, and no path is kept."""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import kdcompress
from kdcompress.runs import WEIGHTS, RunFolder

Called = list[tuple[str, ...]]
CALLABLE = {"eval", "train-teacher", "distill", "add-res-student", "gate-calibrate", "polish", "cascade"}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, from its folder."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples" / "studies")
    import study

    return study


def begun(arguments: Sequence[str]) -> RunFolder:
    """What a training has on the disk before its record."""
    run = RunFolder(Path(arguments[arguments.index("--out") + 1]))
    run.path.mkdir()
    (run.path / WEIGHTS).touch()
    return run


@pytest.fixture
def called(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Called:
    """The commands that a study runs; each makes a finished run, and eval says how many there were before."""
    commands: Called = []

    def call(_: Any, *arguments: str) -> dict[str, Any]:
        commands.append(arguments)
        if arguments[0] == "eval":
            return {"run": arguments[1], "data": "/here", "top1": float(len(commands))}
        run = begun(arguments)
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
    kept_of = {
        "top1": 1.0,
        "hardware": None,
        "data_fingerprint": None,
        "teacher": {"seconds": 2.0},
    }
    assert here.training("first") == kept_of
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


def test_what_is_measured_of_a_run_is_kept(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """A figure that needs the run's folder would stop a study that goes on elsewhere, or never be there again."""
    kept = tmp_path / "kept.json"
    here = study.Study(tmp_path / "here", kept)
    here.run(chain(here.path))
    called.clear()
    for place in ("here", "there", "elsewhere"):
        one = study.Study(tmp_path / place, kept)
        name = "oracle" if place != "elsewhere" else "another"
        one.measure(name, "second", chain(one.path), lambda path: {"top1": len(Path(path).name)})
        assert one.result(name) == {"top1": len("second")}
        assert [command[0] for command in called] == (["distill", "add-res-student"] if place == "elsewhere" else [])


def test_rows_of_other_settings_are_not_mixed(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """A table would compare ten epochs with four."""
    kept = tmp_path / "kept.json"
    study.Study(tmp_path, kept, settings={"epochs": 4}).run({"first": ["distill"]})
    with pytest.raises(SystemExit, match="'epochs': 4"):
        study.Study(tmp_path, kept, settings={"epochs": 10})


def test_a_caption_names_every_machine(study: ModuleType, tmp_path: Path) -> None:
    """Seeds in another precision, or seconds of another processor, would pass for those of the first."""
    one = study.Study(tmp_path, tmp_path / "kept.json")
    assert one.machines() == "not trained yet"
    for number, (precision, hardware) in enumerate([("bf16", "A"), ("fp32", "B"), ("bf16", "A"), (None, "C")]):
        run = begun(["--out", one.path(str(number))])
        run.finish({"result": {"run": str(run.path), "precision": precision}, "hardware": hardware})
        one.keep(str(number), None)
    assert one.machines() == "bf16, on A; fp32, on B"


def test_a_row_of_other_arguments_is_not_taken(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """A row would show what another student, or another teacher, has reached."""
    kept = tmp_path / "new" / "kept.json"
    study.Study(tmp_path / "here", kept).run({"first": ["distill", "/here/teacher", "--student", "resnet8_cifar"]})
    elsewhere = study.Study(tmp_path / "elsewhere", kept)
    elsewhere.run({"first": ["distill", "/there/teacher", "--student", "resnet8_cifar"]})
    with pytest.raises(SystemExit, match="first by other arguments: distill teacher --student resnet8_cifar"):
        elsewhere.run({"first": ["distill", "/there/teacher", "--student", "lenet5"]})


def test_what_chooses_is_not_scored(study: ModuleType, called: Called, tmp_path: Path) -> None:
    """Something would be chosen on the test split."""
    one = study.Study(tmp_path, tmp_path / "kept.json")
    one.run({"first": ["distill"]}, score=False)
    assert [command[0] for command in called] == ["distill"]
    assert json.loads(one.kept.read_text())["runs"]["first"].keys() == {"arguments", "training"}


def test_a_study_that_is_stopped_begins_nothing_more(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C would end the run in hand, and the next one begin; so would an error, for all that are left."""
    commands: list[str] = []

    def call(_: Any, *arguments: str) -> dict[str, Any]:
        commands.append(arguments[0])
        sys.exit(130)

    monkeypatch.setattr(study.Study, "call", call)
    with pytest.raises(SystemExit):
        study.Study(tmp_path, tmp_path / "kept.json").run({name: [name] for name in "abcdefgh"})
    assert commands == ["a"]


FOUND = {
    "top1": 70.0,
    "stage_top1": [69.0, 70.0],
    "full_top1": 71.0,
    "gated_top1": 70.0,
    "loss": 1.0,
    "ece": 2.0,
    "macs": 20,
    "undivided_macs": 21,
    "expected_macs": 11.0,
    "expected_macs_ratio": 0.11,
    "macs_ratio": 0.2,
    "seconds": 60.0,
    "members": [{"architecture": "resnet8_cifar", "macs": 9}, {"architecture": "found", "macs": 11}],
}


@pytest.fixture
def alike(study: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command finds the same."""

    def call(_: Any, *arguments: str) -> dict[str, Any]:
        assert arguments[0] in CALLABLE
        if "--out" in arguments:
            run = begun(arguments)
            run.write_metrics([{"epoch": 1, "seconds": 30.0}])
            teacher = {"reference": "/here", "seconds": 2.0, "softened_entropy": 0.5}
            run.finish({"result": FOUND, "hardware": "a processor", "teacher": teacher})
        return FOUND

    monkeypatch.setattr(study.Study, "call", call)


@pytest.mark.parametrize(
    ("script", "mark", "rows"),
    [
        ("rkd_study", "rkd-table", 20),
        ("views_study", "views", 2),
        ("reskd_study", "reskd-table", 35),
        ("search_study", "search-table", 3),
        ("lwkd_study", "lwkd-table", 7),
        ("pair_study", "pair-cifar10", 22),
    ],
)
def test_tables_are_made_of_what_was_found(
    study: ModuleType, alike: None, script: str, mark: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study would fail after the hours that its trainings take."""
    module = importlib.import_module(script)
    monkeypatch.setattr(kdcompress, "profile_flops", lambda model, **_: SimpleNamespace(macs=sum(map(ord, model))))
    if script == "reskd_study":
        monkeypatch.setattr(module, "_oracle", lambda _: {"top1": 80.0, "macs": 12.0})
    if script in ("reskd_study", "pair_study"):
        costs = {f"resnet{depth}_cifar,shortcut=A": depth // 4 for depth in (8, 14, 20)}  # of 20
        costs["resnet8_cifar,width=1.25,shortcut=A"] = 3
        monkeypatch.setattr(kdcompress, "profile_flops", lambda model, **_: SimpleNamespace(macs=costs[model]))
    table = tmp_path / "README.md"
    table.write_text(f"<!-- {mark}: begin -->\nold\n<!-- {mark}: end -->")
    arguments = [str(tmp_path / "out"), "--data", "photos", "--teacher", "a.safetensors", "--table", str(table)]
    arguments += ["--long-epochs", "40", "--pair-epochs", "41", "42"] if script == "reskd_study" else []
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    module.main()
    found = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(found) == rows + 2
    assert len({line.count("|") for line in found}) == 1
    assert sum("70.00" in line or "80.00" in line for line in found) >= rows
    if script == "views_study":
        marks = [f"<!-- {each}: {edge} -->" for each in ("views", "views-front") for edge in ("begin", "end")]
        table.write_text("\n".join(marks))
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--front", str(table)])
        module.main()
        assert "took 100% of the time" in table.read_text()
        assert "reached 70.00 ± 0.00 % top-1 instead of 70.00 ± 0.00 %." in table.read_text()
    if script == "reskd_study":
        figure = tmp_path / "figure.svg"
        monkeypatch.setattr(study.Study, "call", lambda *_: pytest.fail("it trains"))
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--so-far", "--seeds", "4", "--plot", str(figure)])
        module.main()
        assert "0.00 ± 0.00" in table.read_text(), "above the single student"
        assert "gated, `--target-macs 0.1`** (3 seeds) |" in table.read_text()
        assert figure.stat().st_size > 0
    if script == "rkd_study":
        weights = ["--weights", "1", "10", "--results", str(tmp_path / "weights.json"), "--also=--logit-weight 1"]
        weights.append("--also=--reuse-teacher-classifier")
        monkeypatch.setattr(sys, "argv", [script, *arguments, *weights])
        module.main()
        for row in ("`--transfer-weight 10`", "`--transfer-weight 1`, `--logit-weight 1`"):
            assert f"| {row} | 70.00 ± 0.00 | 70.00 ± 0.00 | 0.00 ± 0.00 | 3 |" in table.read_text()
        undivided = [each for each in json.loads((tmp_path / "weights.json").read_text())["runs"].values()
                     if "--undivided" in each["arguments"]]  # fmt: skip
        assert not any("--reuse-teacher-classifier" in each["arguments"] for each in undivided)
        few = ["--students", "resnet8_cifar", "--rows", "AT", "RKD + AT, end to end"]
        monkeypatch.setattr(sys, "argv", [script, *arguments, *few, "--so-far"])
        module.main()
        shown = [line.split("|")[2].strip() for line in table.read_text().splitlines() if line.startswith("|")]
        assert shown[2:] == few[-2:]
    if script == "pair_study":
        assert "| **15.0%: gated pair** | 70.00 ± 0.00 | 0.00 ± 0.00 | 0.0 |" in table.read_text(), "beside 3 of 20"
        assert "| **21.1%: gated pair** | 70.00 ± 0.00 | – |" in table.read_text(), "no single student costs about that"
        assert "R1 by --focus took 1.00 of one" in table.read_text()
    if script in ("rkd_study", "lwkd_study"):
        monkeypatch.setattr(study.Study, "call", lambda *_: pytest.fail("it trains"))
        monkeypatch.setattr(sys, "argv", [script, *arguments, "--so-far", "--seeds", "4"])
        module.main()
        assert "KD (3 seeds) |" in table.read_text()


def test_a_sweep_trains_its_default_once(alike: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours would go into the same run again."""
    module = importlib.import_module("lwkd_study")
    table, kept = tmp_path / "README.md", tmp_path / "kept.json"
    table.write_text("<!-- lwkd-table: begin -->\n<!-- lwkd-table: end -->")
    arguments = [str(tmp_path / "out"), "--data", "photos", "--sweep", "--results", str(kept), "--table", str(table)]
    monkeypatch.setattr(sys, "argv", ["lwkd_study", *arguments])
    module.main()
    rows = [line.split("|")[1:3] for line in table.read_text().splitlines() if "0.50 |" in line]
    assert [value.strip() for option, value in rows if "class-map" in option] == ["identity", "similar"]
    groups = {option for option, _ in rows}
    runs = json.loads(kept.read_text())["runs"]
    assert len(runs) == len(rows) - len(groups) + 1
    assert len({tuple(run["arguments"]) for run in runs.values()}) == len(runs)
