"""``benchmark``, and gates for a budget of milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdcompress
from chains import CALIBRATION, Chain, logits_on, record_of, top1
from heard import Heard
from kdcompress.api import gate_by_time
from kdcompress.api.gate_by_time import MemberTimes
from kdcompress.engine import race
from kdcompress.errors import UserError
from kdcompress.options import BenchmarkOptions

QUICK: dict[str, Any] = {"device": "cpu", "images": 12, "threads": 1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "SECONDS", 0.05)


def test_runs_beside_each_other(chain: Chain) -> None:
    """Milliseconds from two commands on a shared machine cannot be compared."""
    threads = torch.get_num_threads()
    many = {**QUICK, "images": 120}  # of twelve, every one may go on, by the last bits of this machine's sums
    found = kdcompress.benchmark(networks=[chain.teacher.run, chain.gated.run], batch_size="1, 4", **many)
    assert torch.get_num_threads() == threads
    assert (found.data, found.split, found.threads, found.run) == ("digits", "test", 1, None)
    assert [(row["batch_size"], row["gated"]) for row in found.networks] == [
        (size, gated) for size in (1, 4) for gated in (None, True, False)
    ]
    teacher, gated, full = found.networks[:3]
    assert (teacher["time_ratio"], teacher["macs_ratio"], teacher["macs"]) == (1, 1, chain.teacher.macs)
    assert full["macs_ratio"] == pytest.approx(chain.longer.macs_ratio, abs=1e-3)
    assert gated["macs"] < full["macs"] == chain.longer.macs
    assert sum(gated["exit_rates"]) == pytest.approx(1, abs=1e-3)
    assert full["exit_rates"] is None
    for row in found.networks:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["mean_ms"] == pytest.approx(1000 * row["batch_size"] / row["images_per_second"], rel=0.5)
        assert row["images_per_second"] > 0


def test_a_network_that_converts_its_images_is_timed(tmp_path: Path) -> None:
    """Of grey images and a colour network, --target-ms failed when everything was trained."""
    made = kdcompress.train_teacher(
        model="lenet5", input_size="3x8x8", epochs=1, device="cpu", precision="fp32", out=tmp_path / "colour"
    )
    found = kdcompress.benchmark(networks=[str(made.run)], images=8, batch_size="4", device="cpu")
    assert (found.data, len(found.networks)) == ("digits", 1)


def test_exit_rates_are_those_of_test_images(chain: Chain) -> None:
    """On noise, nearly all images may exit early, or none."""
    found = kdcompress.benchmark(networks=[chain.gated.run], batch_size="360", **{**QUICK, "images": 360})
    measured = kdcompress.evaluate(run=chain.gated.run, device="cpu")
    assert found.networks[0]["exit_rates"] == pytest.approx(measured.exit_rates, abs=1e-3)
    assert found.networks[0]["macs"] == pytest.approx(measured.expected_macs, rel=1e-3)


def test_an_architecture_needs_no_weights(chain: Chain) -> None:
    """To know how fast a candidate is, one would have to train or download it."""
    heard = Heard()
    found = kdcompress.benchmark(
        networks=["resnet8_cifar,in_chans=1", "lenet5,in_chans=1"], batch_size="2", reporter=heard, **QUICK
    )
    assert (found.data, found.split) == (None, None)
    assert any("random" in note for note in heard.notes)
    assert [row["network"] for row in found.networks] == ["resnet8_cifar,in_chans=1", "lenet5,in_chans=1"]


def test_exported_files_and_runs(chain: Chain, tmp_path: Path) -> None:
    """What is deployed would not be what was timed."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file, raw = tmp_path / "gated.onnx", tmp_path / "raw.onnx"
    kdcompress.export_network(run=chain.gated.run, out=str(file))
    kdcompress.export_network(run=chain.gated.run, out=str(raw), preprocess=True)
    found = kdcompress.benchmark(
        networks=[chain.gated.run, str(file), str(raw)], engine="onnxruntime", batch_size="3", **QUICK
    )
    rows = {(Path(row["network"]).name, row["gated"]): row for row in found.networks}
    assert list(rows) == [("gated", True), ("gated", False), ("gated.onnx", True), ("raw.onnx", True)]
    assert {row["engine"] for row in found.networks} == {"onnxruntime"}
    own = rows["gated", True]
    for name in ("gated.onnx", "raw.onnx"):
        assert rows[name, True]["exit_rates"] == own["exit_rates"]
        assert rows[name, True]["macs"] == own["macs"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"networks": []}, "No networks were named"),
        ({"networks": ["-", "-"]}, "'-' can be given once"),
        ({"batch_size": "1,x"}, "not a list of whole numbers"),
        ({"batch_size": "0"}, "out of range"),
        ({"batch_size": "70000"}, "out of range"),
        ({"arch": ["resnet8_cifar"]}, "1 arch= for 0 checkpoint"),
        ({"engine": "onnxruntime", "device": "mps"}, "runs on the CPU"),
        ({"networks": ["nowhere/run"]}, "There is no file or folder"),
        ({"networks": ["nowhere.onnx"]}, "There is no file"),
        ({"input_size": "3x8x8"}, "these have 3 channel"),
    ],
)
def test_mistakes(chain: Chain, options: dict[str, Any], words: str) -> None:
    """A traceback after minutes of loading helps nobody."""
    with pytest.raises(UserError, match=words):
        kdcompress.benchmark(**{"networks": [chain.gated.run], **QUICK, **options})


def test_batch_sizes_in_their_order() -> None:
    assert BenchmarkOptions(batch_size="128,1, 16,1").batch_sizes == [128, 1, 16]


def test_time_of_batches_whose_images_exit() -> None:
    """The members after the first run on what is left of each batch."""
    members = MemberTimes(np.array([1, 2, 4]), np.array([[1.0, 1.5, 2.0], [10.0, 12.0, 16.0]]))
    assert members.of_batches(np.zeros(8, dtype=int)) == 2.0  # nobody goes on: the second member is not called
    assert members.of_batches(np.ones(8, dtype=int)) == 18.0
    assert members.of_batches(np.array([0, 0, 0, 1, 0, 1, 1, 1])) == pytest.approx(2 + (10 + 14) / 2)
    assert members.of_batches(np.array([1, 0, 0])) == pytest.approx(2 + 12)  # fewer images than a batch are repeated
    assert members.per_image == [500_000, 4_000_000]


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Members that take 1, 3 and 6 ms for an image at any batch size, and gates that take 1.2 times the sum."""
    asked: list[float] = []
    monkeypatch.setattr(
        gate_by_time.Device, "member_times", lambda self: MemberTimes(np.array([1]), np.array([[1.0], [3.0], [6.0]]))
    )

    def gated_times(self: Any, gate: Any) -> race.Times:
        with torch.inference_mode():
            self.model.gate = gate
            exits = self.model.forward_gated(self.images)[1]
        ms = 1.2 * float(torch.tensor([1.0, 4.0, 10.0])[exits].mean())
        asked.append(ms)
        return race.Times(np.full((3, 4), ms / 1000), np.ones(4), exits)

    monkeypatch.setattr(gate_by_time.Device, "gated_times", gated_times)
    return asked


@pytest.mark.parametrize(("measure", "least"), [("confidence", 0.95), ("auto", 0.9)])
def test_a_gate_for_a_budget_of_time(
    chain: Chain, tmp_path: Path, steady: list[float], measure: str, least: float
) -> None:
    """What members promise together is less than the cascade takes: the budget would be overrun."""
    found = kdcompress.gate_calibrate(
        run=chain.longer.run, target_ms=6.0, measure=measure, device="cpu", out=str(tmp_path / "gated")
    )
    timing = found.timing
    assert timing["target_ms"] == 6.0
    assert least <= timing["mean_ms"] / 6.0 <= 1.03
    assert timing["member_ms"] == [1.0, 3.0, 6.0]
    assert (timing["engine"], timing["batch_size"], timing["device"]) == ("torch", 1, "cpu")
    assert len(steady) >= 2  # the first gate was too slow by a fifth
    assert record_of(found.run)["result"]["timing"] == timing
    network = kdcompress.load(found.run)
    logits, labels = logits_on(network, "calibration")
    assert len(labels) == CALIBRATION
    assert top1(logits, labels) == pytest.approx(found.gated_top1, abs=1e-3)
    assert found.expected_macs == pytest.approx(
        sum(
            macs * sum(found.exit_rates[number:])
            for number, macs in enumerate(member["macs"] for member in found.members)
        ),
        rel=1e-4,
    )


def test_more_time_than_needed_is_said(chain: Chain, tmp_path: Path, steady: list[float]) -> None:
    """Whoever asks for 50 ms and gets 5 would look for what is broken."""
    heard = Heard()
    found = kdcompress.gate_calibrate(
        run=chain.longer.run, target_ms=50.0, device="cpu", out=str(tmp_path / "gated"), reporter=heard
    )
    assert found.gated_top1 >= found.full_top1
    assert found.timing["mean_ms"] <= 12
    assert any("less than --target-ms 50" in note for note in heard.notes)


def test_a_gate_that_costs_more_than_its_members_is_no_surprise(
    chain: Chain, tmp_path: Path, steady: list[float]
) -> None:
    """1.1 ms is more than the first member takes, and less than the cascade takes at least."""
    with pytest.raises(UserError, match="out of reach") as caught:
        kdcompress.gate_calibrate(run=chain.longer.run, target_ms=1.1, device="cpu", out=str(tmp_path / "gated"))
    least = float(caught.value.remedy.split("target_ms=")[1].split(";")[0])
    assert 1.2 <= least < 1.25
    found = kdcompress.gate_calibrate(run=chain.longer.run, target_ms=least, device="cpu", out=str(tmp_path / "gated"))
    assert found.timing["mean_ms"] <= least


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_time_is_really_measured(chain: Chain, tmp_path: Path, engine: str) -> None:
    if engine == "onnxruntime":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    found = kdcompress.gate_calibrate(
        run=chain.cascade.run, target_ms=1000.0, batch_size=4, engine=engine, device="cpu", out=str(tmp_path / "gated")
    )
    timing = found.timing
    assert 0 < timing["p50_ms"] <= timing["p95_ms"]
    assert (timing["engine"], timing["batch_size"], len(timing["member_ms"])) == (engine, 4, 2)


@pytest.mark.parametrize(
    ("options", "words", "way_out"),
    [
        ({"target_ms": 0.5}, "out of reach", "lowest possible is about target_ms=1.2"),
        ({"target_ms": 5.0, "max_drop": 1.0}, "exactly one target", "target_ms"),
        ({"max_drop": 1.0, "engine": "onnxruntime"}, "target_ms", "Leave it out"),
        ({"target_ms": 5.0, "engine": "onnxruntime", "device": "mps"}, "runs on the CPU", "Leave it out"),
    ],
)
def test_budgets_that_cannot_be(
    chain: Chain, tmp_path: Path, steady: list[float], options: dict[str, Any], words: str, way_out: str
) -> None:
    out = tmp_path / "gated"
    with pytest.raises(UserError, match=words) as caught:
        kdcompress.gate_calibrate(run=chain.longer.run, out=str(out), **{"device": "cpu", **options})
    assert way_out in caught.value.remedy
    assert not out.exists()
