"""The picture of accuracy and MACs: refused before the work where it cannot be, and of what the result says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from kdcompress import plot as module
from kdcompress.errors import UserError
from kdcompress.plot import check_plot, plot
from kdcompress.results import EvalResult, GateResult

pytest.importorskip("matplotlib")

FACTS: dict[str, Any] = {
    "run": None, "seconds": 1.0, "architecture": "residual_cascade", "num_classes": 10, "input_size": (3, 32, 32),
    "params": 1, "macs": 30_000_000, "flops": 60_000_000, "teacher_macs": 100_000_000, "data": "digits", "n": 100,
    "members": [{"architecture": "a", "macs": 10_000_000}, {"architecture": "b", "macs": 20_000_000}],
}  # fmt: skip
GATE = GateResult(
    command="gate-calibrate", split="calibration", expected_macs=15e6, gated_top1=91.0, full_top1=92.0,
    curve=[{"expected_macs": 1e7, "top1": 88.0}, {"expected_macs": 2e7, "top1": 91.5}], **FACTS,
)  # fmt: skip
SCORES = EvalResult(
    command="eval", split="test", top1=91.0, top5=None, loss=0.1, ece=1.0, images_per_second=1.0, hardware="",
    device="cpu", precision="fp32", stage_top1=[88.0, 92.0], gated_top1=91.0, expected_macs=15e6, **FACTS,
)  # fmt: skip


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
@pytest.mark.parametrize("result", [GATE, SCORES], ids=["gate", "eval"])
def test_every_format_is_written(tmp_path: Path, ending: str, result: GateResult | EvalResult) -> None:
    """A command that took minutes would end in a traceback."""
    plot(result, str(tmp_path / f"out.{ending}"))
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert (tmp_path / f"out.{ending}").read_bytes().startswith(start)


def test_the_points_are_those_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot would contradict the printed numbers."""
    from matplotlib.axes import Axes

    drawn: dict[str, list[tuple[float, float]]] = {}

    def remember(self: Axes, x: list[float], y: list[float], style: str, label: str, **more: Any) -> None:
        drawn[label] = list(zip(x, y, strict=True))

    monkeypatch.setattr(Axes, "plot", remember)
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    plot(GATE, str(tmp_path / "gate.svg"))
    assert drawn.pop("other thresholds") == [(10, 88.0), (20, 91.5)]
    assert drawn == {"all members": [(30, 92.0)], "gated": [(15, 91.0)]}
    drawn.clear()
    plot(SCORES, str(tmp_path / "eval.svg"))
    assert drawn == {"first member, first two, …": [(10, 88.0), (30, 92.0)], "gated": [(15, 91.0)]}
    pair = {"members": None, "student_macs": 27_000_000, "gated_top1": None}
    plot(dataclasses.replace(SCORES, **pair), str(tmp_path / "pair.svg"))
    assert drawn["first member, first two, …"] == [(27, 88.0), (30, 92.0)]
    plot(dataclasses.replace(SCORES, stage_top1=None, gated_top1=None), str(tmp_path / "one.svg"))
    assert drawn["all members"] == [(30, 91.0)]
    single = {"members": None, "stage_top1": None, "gated_top1": None, "architecture": "resnet20"}
    plot(dataclasses.replace(SCORES, **single), str(tmp_path / "single.svg"))
    assert drawn["resnet20"] == [(30, 91.0)]


@pytest.mark.parametrize(
    ("name", "word"),
    [("out.bmp", "format"), ("out", "format"), ("no/out.png", "folder"), ("pictures.png", "is a folder")],
)
def test_an_impossible_plot_is_refused_first(tmp_path: Path, name: str, word: str) -> None:
    """The scores of an hour would be lost for a misspelt name."""
    (tmp_path / "pictures.png").mkdir()
    with pytest.raises(UserError, match=word):
        check_plot(str(tmp_path / name))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ImportError tells nobody which extra to install."""
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="matplotlib") as caught:
        check_plot("out.png")
    assert "kdcompress[plot]" in str(caught.value.remedy)


def test_a_thing_has_one_colour_in_all_plots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, the gate of one plot is taken for the members of another."""
    from matplotlib.axes import Axes

    colours: dict[str, set[str]] = {}
    genuine = Axes.plot

    def remember(self: Axes, *values: Any, **more: Any) -> Any:
        lines = genuine(self, *values, **more)
        colours.setdefault(more["label"], set()).add(lines[0].get_color())
        return lines

    monkeypatch.setattr(Axes, "plot", remember)
    for name, result in {"gate": GATE, "hand": dataclasses.replace(GATE, curve=[]), "eval": SCORES}.items():
        plot(result, str(tmp_path / f"{name}.svg"))
    assert len(colours["gated"]) == 1
    assert colours["gated"] != colours["all members"]
    assert colours["all members"] == colours["first member, first two, …"]


def test_the_teacher_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the student is measured against would be missing."""
    from matplotlib.axes import Axes

    drawn: list[float] = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **more: drawn.append(y))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    plot(SCORES, str(tmp_path / "unknown.svg"))
    assert drawn == []
    plot(dataclasses.replace(SCORES, teacher_top1=93.5), str(tmp_path / "known.svg"))
    assert drawn == [93.5]
