"""``gate-calibrate --measure learned``: a gate that knows half of the calibration images."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from chains import CALIBRATION, COMMON, WHERE, Chain, record_of
from kdcompress import deferral
from kdcompress.api import quantized
from kdcompress.errors import UserError
from kdcompress.results import GateResult

REST = CALIBRATION - CALIBRATION // 2


@pytest.fixture(scope="module")
def gated(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> GateResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deferral, "LEAST", 1)  # these images are few
        out = tmp_path_factory.mktemp("learned") / "gated"
        return kdcompress.gate_calibrate(
            run=str(chain.cascade.run), measure="learned", max_drop=2.0, out=str(out), **WHERE
        )


def heard_of(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[int]:
    """How many images each search for thresholds in a module is given."""
    genuine, images = module.search, list[int]()

    def noted(scores: Any, measure: Any, **target: Any) -> Any:
        images.append(scores.correct.shape[1])
        return genuine(scores, measure, **target)

    monkeypatch.setattr(module, "search", noted)
    return images


def test_it_is_scored_on_the_other_half(gated: GateResult) -> None:
    """The teacher's accuracy is of all images, so what is lost against it is not known."""
    assert (gated.n, gated.measure) == (REST, "learned")
    assert (gated.teacher_top1, gated.points_lost) == (None, None)
    assert record_of(gated.run)["result"]["gated_top1"] == gated.gated_top1


def test_a_finished_one_is_not_fitted_again(gated: GateResult, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"run": str(chain.cascade.run), "measure": "learned", "max_drop": 2.0, "out": str(gated.run)}
    gate = importlib.import_module("kdcompress.api.gate")
    monkeypatch.setattr(gate, "fit_heads", lambda *_: pytest.fail("it is fitted again"))
    assert kdcompress.gate_calibrate(**given, resume=True, **WHERE) == gated


def test_eval_takes_it(gated: GateResult) -> None:
    """It was saved with its heads."""
    found = kdcompress.evaluate(run=gated.run, **WHERE)
    assert found.measure == "learned"
    assert found.exit_rates is not None
    assert sum(found.exit_rates) == pytest.approx(1)


def test_too_few_images_leave_no_run(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few to learn a gate") as caught:
        kdcompress.gate_calibrate(
            run=str(chain.cascade.run), measure="learned", max_drop=2.0, out=str(tmp_path / "gated"), **WHERE
        )
    assert "holdout=" in caught.value.remedy
    assert not (tmp_path / "gated").exists()


def test_int8_thresholds_are_chosen_on_the_other_half(
    gated: GateResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the images of its heads a gate looks better than it is, and a guarantee would not hold."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    images = heard_of(monkeypatch, quantized)
    kdcompress.export_network(run=gated.run, precision="int8", out=str(tmp_path / "int8.onnx"))
    assert images == [REST]


def test_polish_chooses_on_the_other_half(gated: GateResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = heard_of(monkeypatch, importlib.import_module("kdcompress.api.polish"))
    polished = kdcompress.polish(run=gated.run, out=str(tmp_path / "polished"), **COMMON)
    assert images == [REST, REST]
    assert polished.n == REST
