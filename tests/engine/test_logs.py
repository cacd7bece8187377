"""Curves in the tools that teams look at: the rows of metrics.csv, whatever becomes of the training or of the tool."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from heard import Heard
from kdcompress.engine import logs
from kdcompress.engine.logs import logged
from kdcompress.errors import UserError
from kdcompress.options import TrainTeacherOptions
from kdcompress.runs import RunFolder

ROWS = [{"epoch": 1, "train_loss": 2.5, "calibration_top1": 40.0}, {"epoch": 2, "train_loss": 1.5, "lr": 0.1}]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def options(**given: Any) -> TrainTeacherOptions:
    return TrainTeacherOptions(model="lenet5", **given)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    where = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    return where


def test_mlflow_has_every_epoch_in_one_run_also_after_an_interruption(run: RunFolder, store: str) -> None:
    """Half a curve in one run and half in another can be compared with nothing."""
    mlflow = pytest.importorskip("mlflow")
    interrupted = False
    try:
        with logged(run, options(log="mlflow", epochs=2), lambda _: None) as add:
            add(ROWS[0])
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted, "the interruption must not end here"
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("kdcompress").experiment_id
    assert client.search_runs([experiment])[0].info.status == "KILLED"
    with logged(run, options(log="mlflow", epochs=2), lambda _: None) as add:
        add(ROWS[1])
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["epochs"] == "2"
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [(each.step, each.value) for each in history] == [(1, 2.5), (2, 1.5)]


def test_wandb_offline_keeps_the_rows_on_disk(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb sync` uploads them later; both halves of an interrupted training have one id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for row in ROWS:
        with logged(run, options(log="wandb"), lambda _: None) as add:
            add(row)
        time.sleep(1.1)  # its folders are named by the second
    files = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1
    assert [b"train_loss" in file.read_bytes() for file in files] == [True, True]


def test_a_log_that_fails_later_does_not_end_the_training(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is restarted at night is no reason to lose the night."""

    def lost(*_: Any) -> None:
        raise ConnectionError("server gone")

    monkeypatch.setattr(logs.TensorBoard, "add", lost)
    heard = Heard()
    with logged(run, options(tensorboard=True), heard.note) as add:
        add(ROWS[0])
        add(ROWS[1])
    assert heard.notes == ["Warning: the TensorBoard log is incomplete: server gone"]


def test_a_server_that_is_gone_at_a_resumption_does_not_end_it(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the training needs it no more than the first half did; nor does the second of three phases."""

    def refused(*_: Any) -> None:
        raise ConnectionError("server gone")

    monkeypatch.setattr(logs.MLflow, "__init__", refused)
    with pytest.raises(UserError, match="does not start: server gone"), logged(run, options(log="mlflow"), print):
        pass
    logs.keep_id(run, "mlflow", "abc")
    heard = Heard()
    with logged(run, options(log="mlflow"), heard.note) as add:
        add(ROWS[0])
    assert "The training goes on without it." in heard.notes[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("wandb"), "pip install 'kdcompress[wandb]'"),
        (ValueError("No API key"), "WANDB_MODE=offline"),
    ],
)
def test_a_log_that_cannot_begin_leaves_no_folder(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that was mended would be refused: --out exists already."""

    def refused(*_: Any) -> None:
        raise error

    monkeypatch.setattr(logs.WandB, "__init__", refused)
    with pytest.raises(UserError, match="wandb") as raised:
        kdcompress.train_teacher(model="lenet5", data="digits", epochs=1, log="wandb", out=str(tmp_path / "new"))
    assert said in raised.value.remedy
    assert not (tmp_path / "new").exists()
