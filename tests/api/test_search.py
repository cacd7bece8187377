"""The search for a res-student: what it prefers, what a kill costs, and what it hands over."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import kdcompress
from chains import TINY, record_of
from heard import Heard, Steps
from kdcompress.api import check as check_module
from kdcompress.api import grow as grow_module
from kdcompress.api import search as search_module
from kdcompress.api.job import Job
from kdcompress.api.recipes.residual import Residual
from kdcompress.api.short_training import ShortTrainings
from kdcompress.api.trials import FOLDER, JOURNAL
from kdcompress.engine.distributed import Place
from kdcompress.engine.fit import Trainer
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Silent
from kdcompress.errors import Diverged, UserError
from kdcompress.models.candidates import Candidate, Series, affordable, draw, parameters, series_for, with_weights
from kdcompress.options import AddResStudentOptions
from kdcompress.ranking import gated, level, with_front
from kdcompress.results import TrainResult
from kdcompress.runs import RECORD, WEIGHTS

optuna = pytest.importorskip("optuna")

COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1, "batch_size": 256}
SEARCH: dict[str, Any] = {"search": True, "max_macs": 0.9, "trials": 3}
FEW = [
    Series("resnet", "8", ("resnet8_cifar,width=0.25", "resnet8_cifar,width=0.375", "resnet8_cifar,width=4")),
    Series("lenet", "5", ("lenet5,width=0.25", "lenet5,width=0.5")),
]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student whose teacher is on record."""
    root = tmp_path_factory.mktemp("made")
    kdcompress.train_teacher(model="resnet8_cifar,width=0.5", out=root / "teacher", **COMMON)
    kdcompress.distill(teacher=root / "teacher", method="reskd", student=TINY, out=root / "single", **COMMON)
    return root / "single"


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "series_for", lambda size: FEW)


def found(run: Path, out: Path, **given: Any) -> TrainResult:
    return kdcompress.add_res_student(run=run, out=out, **{**COMMON, **SEARCH, **given})


def trained(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[tuple[str, int]]:
    """Every training from here on as (spec, epochs); the one numbered ``stop_at`` is sent a signal on its way."""
    seen: list[tuple[str, int]] = []
    genuine, step = Residual.train, Trainer._step

    def train(self: Residual, job: Any, arch: str, **more: Any) -> TrainResult:
        seen.append((arch, job.options.epochs))
        return genuine(self, job, arch, **more)

    def stopping(self: Trainer, *arguments: Any) -> bool:
        if len(seen) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(Residual, "train", train)
    monkeypatch.setattr(Trainer, "_step", stopping)
    return seen


# --- what it prefers


def test_a_candidate_is_scored_by_the_gated_cascade() -> None:
    """Judged alone, a network that repeats the first member would win over one that mends its errors."""
    labels = torch.zeros(100, dtype=torch.long)
    first = torch.zeros(100, 2)
    first[:80, 0], first[80:, 1] = 4.0, 0.5  # a fifth is wrong, and unsure
    repeats = first.clone()
    repeats[80:85, 0] = 2.0  # right on 85 alone, and mends only five
    mends = torch.zeros(100, 2)
    mends[80:, 0], mends[20:80, 1] = 2.0, 1.0  # right on 40 alone
    alone = [(logits.argmax(1) == labels).float().mean() for logits in (repeats, mends)]
    assert alone[0] > alone[1]
    scores = [gated(torch.stack([first, first + logits]), labels, [100, 50], 115) for logits in (repeats, mends)]
    assert [score.top1 for score in scores] == [85.0, 100.0]
    assert all(score.expected_macs <= 115 for score in scores)


def test_an_expensive_candidate_may_run_on_few_images() -> None:
    """Else the search could only ever find networks so light that all images can run them."""
    labels = torch.zeros(100, dtype=torch.long)
    first, mends = torch.zeros(100, 2), torch.zeros(100, 2)
    first[:90, 0], first[90:, 1], mends[90:, 0] = 4.0, 0.5, 2.0
    score = gated(torch.stack([first, first + mends]), labels, [100, 100], 110)
    assert (score.top1, score.expected_macs) == (100.0, 110.0)
    assert gated(torch.stack([first, first + mends]), labels, [100, 100], 105).top1 == 90.0


def test_the_front_and_the_order_of_the_trials() -> None:
    """The user could not tell which trade-offs are worth a look, and the wrong network would be trained in full."""

    def row(name: str, epochs: int, top1: float | None, expected: float | None, macs: float = 0.1) -> dict[str, Any]:
        return {
            "spec": name,
            "macs_ratio": macs,
            "epochs": epochs,
            "top1": top1,
            "expected_macs_ratio": expected,
        }

    rows = with_front(
        [
            row("failed", 0, None, None),
            row("short and lucky", 1, 97.0, 0.30),
            row("cheap", 3, 90.0, 0.10),
            row("beaten", 3, 90.0, 0.20),
            row("dearer", 9, 95.0, 0.25, macs=0.2),
            row("best", 9, 95.0, 0.25, macs=0.1),
        ]
    )
    assert [one["spec"] for one in rows] == ["best", "dearer", "cheap", "beaten", "short and lucky", "failed"]
    front = [one["spec"] for one in rows if one["pareto"]]
    assert front == ["best", "dearer", "cheap", "short and lucky"]


def test_small_differences_are_chance() -> None:
    """Candidates for which no gate has a use yet would be shut out for two images of luck."""
    assert level(70.74, 70.74, 5000) == 0
    assert level(70.88, 70.74, 5000) == 0
    assert level(71.4, 70.74, 5000) == 1, "the standard error is 0.64"
    assert level(72.12, 70.74, 5000) == 2
    assert level(72.12, 70.74, 500) == 0
    assert level(100.0, 100.0, 50) == 0


def test_every_candidate_can_be_drawn() -> None:
    """Candidates that no draw leads to would never be tried, or the search would never end."""
    macs = {spec: 10 * (number + 1) for one in FEW for number, spec in enumerate(one.specs)}
    space = affordable(FEW, macs.__getitem__, 100)
    assert len(space) == 5
    for candidate in space:
        assert draw(optuna.trial.FixedTrial(parameters(candidate, space)), space) == candidate
    edges = {"family": "resnet", "depth of resnet": "8"}
    assert draw(optuna.trial.FixedTrial({**edges, "width": 0.0}), space).spec == FEW[0].specs[0]
    assert draw(optuna.trial.FixedTrial({**edges, "width": 1.0}), space).spec == FEW[0].specs[-1]


def test_what_is_affordable() -> None:
    """The winner would break the budget, or the time go into networks too small to matter."""
    counted: list[str] = []

    def macs_of(spec: str) -> int:
        counted.append(spec)
        return {"a1": 4, "a2": 50, "a3": 101, "a4": 400, "b1": 100}[spec]

    found = affordable([Series("a", "1", ("a1", "a2", "a3", "a4")), Series("b", "1", ("b1",))], macs_of, 100)
    assert found == [Candidate("a", "1", "a2", 50), Candidate("b", "1", "b1", 100)]
    assert "a4" not in counted
    assert [one.spec for one in affordable([Series("a", "1", ("a1",))], macs_of, 100)] == ["a1"]


@pytest.mark.parametrize("size", [(32, 32), (224, 224)])
def test_series_are_networks_that_grow(size: tuple[int, int], single: Path) -> None:
    """A misspelt spec would end a search after hours."""
    from kdcompress.models.build import ModelSpec, build

    for series in series_for(size):
        counts = []
        for spec in dict.fromkeys((series.specs[0], series.specs[len(series.specs) // 2], series.specs[-1])):
            with torch.device("meta"):
                model, _ = build(ModelSpec.parse(spec), num_classes=10, in_chans=1, size=size)
            counts.append(sum(parameter.numel() for parameter in model.parameters()))
        assert counts == sorted(set(counts)), series


# --- the command


def test_the_winner_is_trained_in_full(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user would get a network that was trained for an epoch, or another one than the table's best."""
    seen = trained(monkeypatch)
    steps = Steps()
    result = found(single, tmp_path / "found", epochs=6, reporter=steps)
    assert [each[:2] for each in steps.shown] == [(1, 3), (2, 3), (3, 3)]
    assert [left is None for _, _, left in steps.shown] == [True, False, False]
    assert steps.over == 1
    assert result.search is not None
    assert len(result.search) == 3
    best = result.search[0]
    assert seen[-1] == (best["spec"], 6)
    assert {epochs for _, epochs in seen[:-1]} == {1, 3}
    assert len(set(seen[:-1])) == len(seen) - 1
    assert best["epochs"] == 3
    assert all(row["macs_ratio"] <= 0.9 for row in result.search)
    assert {*best} == {"spec", "macs_ratio", "epochs", "top1", "expected_macs_ratio", "pareto"}
    assert record_of(result.run)["result"]["search"] == result.search
    assert result.members is not None
    monkeypatch.undo()
    by_hand = kdcompress.add_res_student(
        run=single, arch=best["spec"], out=tmp_path / "by-hand", **{**COMMON, "epochs": 6}
    )
    ours, theirs = (load_file(Path(str(run)) / WEIGHTS) for run in (result.run, by_hand.run))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert result.energies == by_hand.energies
    assert [path.parent.name for path in (tmp_path / "found").rglob(WEIGHTS)] == ["found"]


def test_only_good_trials_are_trained_for_longer(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time would go into networks that have already lost, or the best be chosen after one epoch."""
    scores = {1: iter([90.0, 80.0, 70.0, 95.0]), 4: iter([91.0, 92.0])}
    seen: list[tuple[str, int]] = []

    def score(self: ShortTrainings, candidate: Candidate, epochs: int) -> dict[str, float]:
        seen.append((candidate.spec, epochs))
        return {"top1": next(scores[epochs]), "expected_macs_ratio": 0.5}

    monkeypatch.setattr(ShortTrainings, "score", score)
    monkeypatch.setattr(ShortTrainings, "level", lambda _, score: int(score["top1"]))
    result = found(single, tmp_path / "found", epochs=9, trials=20)
    assert [epochs for _, epochs in seen] == [1, 4, 1, 1, 1, 4]
    assert result.search is not None
    assert [(row["epochs"], row["top1"]) for row in result.search] == [(4, 92.0), (4, 91.0), (1, 80.0), (1, 70.0)]
    assert result.search[0]["spec"] == seen[-1][0]


def test_noise_excludes_no_trial(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gate has a use for any of them after an epoch, those would go on that were lucky by two images."""
    alone, seen, heard = record_of(single)["result"]["top1"], list[int](), Heard()
    luck = itertools.cycle([0.0, 0.2, 0.0, 0.1])

    def score(self: ShortTrainings, candidate: Candidate, epochs: int) -> dict[str, float]:
        seen.append(epochs)
        return {"top1": alone + next(luck), "expected_macs_ratio": 0.5}

    monkeypatch.setattr(ShortTrainings, "score", score)
    kdcompress.add_res_student(run=single, out=tmp_path / "found", **{**COMMON, **SEARCH, "epochs": 9}, reporter=heard)
    assert seen == 3 * [1, 4]
    assert any("gains a standard error; more --epochs" in note for note in heard.notes)


def test_many_processes_are_refused(single: Path) -> None:
    """Processes that choose each for itself would train different networks, or wait for each other for ever."""
    options = AddResStudentOptions(run=str(single), **SEARCH)
    job = Job("add-res-student", "reskd", options, Silent(), Place(torch.device("cpu"), "fp32", 0, 2), 0.0)
    with pytest.raises(UserError, match="torchrun"):
        search_module.search(Residual.of(job), job)


def test_a_killed_search_resumes(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of trials would be lost, or a resumed search find something else than an unbroken one."""
    with monkeypatch.context() as patch:
        whole_seen = trained(patch)
        whole = found(single, tmp_path / "whole")
    with monkeypatch.context() as patch:
        first = trained(patch, stop_at=2)
        with pytest.raises(Interrupted) as caught:
            found(single, tmp_path / "broken")
    assert str(tmp_path / "broken") in caught.value.remedy
    with pytest.raises(UserError, match=r"max_macs=0\.9"):
        found(single, tmp_path / "broken", resume=True, max_macs=0.8)
    with pytest.raises(UserError, match="exists already"):
        found(single, tmp_path / "broken")
    second = trained(monkeypatch)
    result = found(single, tmp_path / "broken", resume=True)
    assert first + second[1:] == whole_seen
    assert second[0] == first[1]
    assert result.search == whole.search
    assert result.top1 == whole.top1
    second.clear()
    assert found(single, tmp_path / "broken", resume=True, time_budget="1h") == result
    assert second == []


def test_a_truncated_journal(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut in the middle of a line would make all trials before it worthless."""
    with monkeypatch.context() as patch:
        trained(patch, stop_at=2)
        with pytest.raises(Interrupted):
            found(single, tmp_path / "found")
    journal = tmp_path / "found" / FOLDER / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match="cannot be read"):
        found(single, tmp_path / "found", resume=True)
    journal.write_bytes(whole + whole.splitlines(keepends=True)[-1][:9])
    result = found(single, tmp_path / "found", resume=True)
    assert result.search is not None
    assert len(result.search) == 3


def test_killed_before_the_first_trial(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that a search had just made could neither be resumed nor used; another run's would be overwritten."""
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / RECORD).write_text('{"command": "add-res-student", "status": "unfinished"}')
    assert found(single, tmp_path / "begun", trials=1, resume=True).search is not None
    trained(monkeypatch, stop_at=1)
    with pytest.raises(Interrupted):
        kdcompress.add_res_student(run=single, arch=TINY, out=tmp_path / "other", **COMMON)
    with pytest.raises(UserError, match="not started by a search"):
        found(single, tmp_path / "other", resume=True)


def test_killed_in_the_full_training(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials would be run again, or more of them change the architecture of a half trained network."""
    with monkeypatch.context() as patch:
        trained(patch, stop_at=3)
        with pytest.raises(Interrupted):
            found(single, tmp_path / "found", trials=2, time_budget="1h")
    with pytest.raises(UserError, match="trials 2, now 4"):
        found(single, tmp_path / "found", trials=4, resume=True)
    seen = trained(monkeypatch)
    result = found(single, tmp_path / "found", trials=2, resume=True)
    assert len(seen) == 1
    assert result.search is not None
    assert (len(result.search), result.search[0]["spec"]) == (2, seen[0][0])


def test_a_candidate_that_cannot_be_trained(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network whose loss explodes would end the search of all the others."""
    genuine = Residual.train

    def train(self: Residual, job: Any, arch: str, **more: Any) -> TrainResult:
        if arch.startswith("lenet"):
            raise Diverged("The loss is not finite.")
        return genuine(self, job, arch, **more)

    monkeypatch.setattr(Residual, "train", train)
    heard = Heard()
    result = found(single, tmp_path / "found", trials=4, reporter=heard)
    assert result.search is not None
    assert [row["top1"] is None for row in result.search] == [False, False, True, True]
    assert sum("cannot be trained" in note for note in heard.notes) == 2


def test_the_first_trial_is_always_finished(single: Path, tmp_path: Path) -> None:
    """With too little time the user would get nothing at all, and not be told why."""
    heard = Heard()
    result = found(single, tmp_path / "found", time_budget="0.001s", reporter=heard)
    assert result.search is not None
    assert len(result.search) == 1
    assert any("--time-budget 0.001s" in note for note in heard.notes)


def test_a_budget_below_every_architecture(single: Path, tmp_path: Path) -> None:
    """The user would have to guess what the least is that can be asked for."""
    with pytest.raises(UserError, match=r"resnet8_cifar,width=0.25, needs max_macs=0\.2632") as caught:
        found(single, tmp_path / "found", max_macs=1e-6)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "found").exists()


def test_optuna_is_named_where_it_is_missing(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of the import would not say what to install."""
    monkeypatch.setattr(check_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"kdcompress\[search\]") as caught:
        found(single, tmp_path / "found")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1.5h", 5400), (" 5 m ", 300), (None, float("inf"))],
)
def test_time_budgets(text: str | None, seconds: float) -> None:
    """A night's budget would be read as a minute's."""
    assert AddResStudentOptions(time_budget=text).time_limit == seconds


@pytest.mark.parametrize("text", ["0", "0s", "0.0h", "30", "m", "-5m", "1h30m", "1e3s", "nan", "soon", "٣m"])
def test_invalid_durations_are_refused(text: str) -> None:
    """A typing error would search for ever, or not at all."""
    with pytest.raises(UserError, match="--time-budget") as caught:
        _ = AddResStudentOptions(time_budget=text).time_limit
    assert caught.value.exit_code == 2


def test_a_cascade_grows_by_searching(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next res-student may have the MACs that are left of the budget; when nothing fits, the cascade is done."""
    monkeypatch.setattr(grow_module, "series_for", lambda size: FEW)
    teacher, student = single.parent / "teacher", record_of(single)["result"]["macs_ratio"]
    target = student + 0.35
    given: dict[str, Any] = {**COMMON, "teacher": teacher, "method": "reskd", "student": TINY, "grow": True}
    # by a loss of which the energy of the residual says nothing
    given |= {"search": True, "trials": 2, "target_macs": target, "logit_loss": "dist", "out": tmp_path / "grown"}
    seen = trained(monkeypatch)
    result = kdcompress.distill(**given)
    assert result.macs_ratio is not None
    assert student < result.macs_ratio <= target
    assert result.stopped_by == "macs"
    first = record_of(tmp_path / "grown" / "member-1")
    assert first["options"]["max_macs"] == pytest.approx(0.35, abs=1e-4)
    assert len(first["result"]["search"]) == 2
    seen.clear()
    assert kdcompress.distill(**given, resume=True).to_dict() == result.to_dict()
    assert seen == []


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"grow": True, "max_drop": 1.0}, "needs a budget"),
        ({"grow": True, "target_macs": 0.5, "arch": (TINY,)}, "both choose the architecture"),
        ({"grow": True, "target_macs": 0.9, "max_macs": 0.001}, "No architecture is within"),
        ({"grow": True, "target_macs": 0.9, "logit_loss": "dist", "min_energy_drop": 0.1}, "min_energy_drop="),
        ({"max_macs": 0.1}, "is only for res-students"),
        ({"grow": True, "target_macs": 0.5, "search": False, "trials": 3, "arch": (TINY,)}, "search=False"),
    ],
)
def test_growing_by_search_is_refused_where_it_cannot_be(
    single: Path, tmp_path: Path, given: dict[str, Any], word: str
) -> None:
    """S0 would be trained before the first word about it."""
    fixed = {**COMMON, "teacher": single.parent / "teacher", "method": "reskd", "student": TINY, "search": True}
    with pytest.raises(UserError, match=word):
        kdcompress.distill(**{**fixed, **given}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pretrained_search_takes_architectures_with_weights(single: Path, tmp_path: Path) -> None:
    """After hours of trials the winner could not be had; or the flag would be ignored."""
    specs = [spec for one in with_weights((224, 224)) for spec in one.specs]
    assert "mobilenetv3_small_100" in specs
    assert all(timm.is_model_pretrained(spec) for spec in specs)
    with pytest.raises(UserError, match="8x8 pixels has pretrained weights"):
        found(single, tmp_path / "run", pretrained=True)
    assert not (tmp_path / "run").exists()
