"""The search for a student and its res-student at one budget: what competes, what a kill costs, and what comes out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from chains import record_of, same_weights, stopped
from heard import Steps
from kdcompress.api import pair_search
from kdcompress.api.pair_search import LEAST_RUN, MOST_FIRST, members_of, pairs
from kdcompress.errors import UserError
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.candidates import Candidate, Series, draw, parameters
from kdcompress.results import TrainResult
from kdcompress.runs import WEIGHTS

optuna = pytest.importorskip("optuna")

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 2, "batch_size": 256}
FEW = [
    Series("resnet", "8", ("resnet8_cifar,width=0.25", "resnet8_cifar,width=0.375")),
    Series("lenet", "5", ("lenet5,width=0.25", "lenet5,width=0.5")),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "teacher"
    kdcompress.train_teacher(model="resnet8_cifar", out=path, **COMMON)
    return path


@pytest.fixture(autouse=True, scope="module")
def _few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_search, "series_for", lambda size: FEW)
        yield


def found(teacher: Path, out: Path, **given: Any) -> TrainResult:
    pair = {"method": "reskd", "student": "auto", "search": True, "target_macs": 0.15, "trials": 2, "out": out}
    return kdcompress.distill(teacher=teacher, **{**COMMON, **pair, **given})


def test_pairs_are_what_a_budget_allows() -> None:
    """A res-student that no image could reach would be trained for nothing."""
    sizes = {"a": 10, "b": 40, "c": 90, "d": 400}
    known = [Candidate("x", name, name, macs) for name, macs in sizes.items()]
    space = pairs(known, known, budget=50.0)
    assert [each.spec for each in space] == ["a + a", "a + b", "a + c", "b + b"]
    for each in space:
        first, second = (sizes[name] for name in members_of(each.spec))
        assert first <= MOST_FIRST * 50
        assert first + LEAST_RUN * second <= 50
        assert each.macs == first + second
    for each in space:
        trial: Any = optuna.trial.FixedTrial(parameters(each, space))
        assert draw(trial, space) == each, "a sampler can draw every pair"


def test_the_best_pair_is_trained_in_full(teacher: Path, tmp_path: Path) -> None:
    """The user would get networks that were trained for an epoch, or others than the table's best."""
    steps = Steps()
    result = found(teacher, tmp_path / "found", reporter=steps)
    assert result.search is not None
    assert len(result.search) == 2
    best = result.search[0]
    assert best["expected_macs_ratio"] <= 0.15, "behind its gate"
    first, second = members_of(best["spec"])
    assert result.members is not None
    assert [each["architecture"] for each in result.members] == [first, second]
    assert [each[:2] for each in steps.shown] == [(1, 2), (2, 2), (2, 2)], "trials, then R1"
    assert record_of(result.run)["result"]["search"] == result.search
    by_hand = kdcompress.distill(
        teacher=teacher, method="reskd", student=first, res_students=1, arch=(second,), out=tmp_path / "hand", **COMMON
    )
    assert same_weights(result.run, by_hand.run)
    gate = kdcompress.gate_calibrate(run=result.run, target_macs=0.15, device="cpu")
    assert gate.expected_macs_ratio is not None
    assert gate.expected_macs_ratio <= 0.15


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return found(teacher, tmp_path_factory.mktemp("searched") / "whole", epochs=6)


@pytest.mark.filterwarnings("error:The reported value is ignored")
@pytest.mark.parametrize("steps", [3, 12])
def test_a_killed_search_of_pairs_goes_on(
    teacher: Path, whole: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Trials that took hours would be repeated, or another pair come out: killed after 1 epoch of 5 steps, or later."""
    assert whole.search is not None
    assert {row["epochs"] for row in whole.search} <= {1, 3}
    assert max(row["epochs"] for row in whole.search) == 3
    left = [path.parent.name for path in (Path(str(whole.run)) / "search").rglob(WEIGHTS)]
    assert left == [], "weights of no trial are kept"
    with stopped(ResKdTask, steps, signal.SIGINT, monkeypatch):
        found(teacher, tmp_path / "cut", epochs=6)
    assert (tmp_path / "cut" / "search").is_dir()
    resumed = found(teacher, tmp_path / "cut", epochs=6, resume=True)
    assert resumed.search == whole.search
    assert same_weights(whole.run, resumed.run)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"search": False, "trials": None}, "searches for a student and its res-student"),
        (
            {"method": "kd", "search": False, "trials": None, "target_macs": None},
            "searches for the members of a cascade",
        ),
        ({"pretrained": True}, "pretrained.* has no effect"),
        ({"target_macs": None}, "needs a budget"),
        ({"res_students": 2}, "res.students.* has no effect"),
        ({"max_macs": 0.1}, "max.macs.* has no effect"),
        ({"arch": ("lenet5",)}, "both choose the architecture"),
        ({"target_macs": 0.0001}, "No pair is within"),
    ],
)
def test_pairs_that_cannot_be_searched_for(teacher: Path, tmp_path: Path, given: dict[str, Any], words: str) -> None:
    """Hours later the user would know that an option did nothing."""
    with pytest.raises(UserError, match=words):
        found(teacher, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_an_s0_that_pairs_share_is_trained_once(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of a search would go into what is known."""
    monkeypatch.setattr(pair_search, "series_for", lambda size: FEW[1:])
    trained: list[str] = []
    genuine = pair_search.train_first

    def counted(options: Any, reporter: Any, out: Path) -> TrainResult:
        if not (out / WEIGHTS).exists():
            trained.append(out.name)
        return genuine(options, reporter, out)

    monkeypatch.setattr(pair_search, "train_first", counted)
    result = found(teacher, tmp_path / "found", target_macs=0.5, trials=3)
    assert result.search is not None
    firsts = {members_of(row["spec"])[0] for row in result.search}
    assert len(result.search) == 3 > len(firsts)
    assert len(trained) == len(firsts)


def test_pairs_are_counted_at_the_size_that_they_are_trained_at(teacher: Path, tmp_path: Path) -> None:
    """Of images of another size than an architecture's usual one, all costs would be wrong by their area."""
    result = found(teacher, tmp_path / "found", input_size="1x12x12", trials=1)
    assert result.search is not None
    (row,) = result.search
    assert result.macs_ratio == pytest.approx(row["macs_ratio"], abs=1e-5)
    assert result.input_size == (1, 12, 12)
