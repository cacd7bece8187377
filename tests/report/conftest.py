"""Facts as a gated cascade of two members would give them, without a training."""

from __future__ import annotations

import base64
import dataclasses
import io
from typing import Any

import pytest
from PIL import Image

from kdcompress.report.facts import ClassScore, Example, Exit, Facts, Mark, Member, Reliability, Step, Training
from kdcompress.results import ReportResult

HOSTILE = "<script>alert(1)</script>&"


def picture() -> str:
    content = io.BytesIO()
    Image.new("L", (8, 8), 200).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def result(**changes: Any) -> ReportResult:
    values: dict[str, Any] = {
        "command": "report",
        "run": "/runs/gated",
        "seconds": 2.5,
        "architecture": "residual_cascade",
        "num_classes": 3,
        "input_size": (1, 8, 8),
        "params": 25_000,
        "macs": 250_000,
        "flops": 500_000,
        "teacher": "/runs/teacher",
        "teacher_macs": 1_600_000,
        "macs_ratio": 0.15625,
        "members": [{"architecture": "a", "params": 1, "macs": 50_000}],
        "file": "/runs/gated/report.html",
        "format": "html",
        "data": "digits",
        "split": "test",
        "n": 360,
        "top1": 87.9612,
        "teacher_top1": 90.2701,
        "points_lost": 2.3089,
        "points_lost_interval": (0.5, 4.1),
        "ece": 2.5,
        "teacher_ece": 1.5,
        "measure": "confidence",
        "thresholds": [0.95],
        "exit_rates": [0.6, 0.4],
        "expected_macs": 130_000.5,
        "expected_macs_ratio": 0.18321,
        "full_top1": 88.0,
        "gated_top1": 87.9612,
        "stage_top1": [80.0, 88.0],
        "oracle_top1": 92.0,
        "oracle_macs": 70_000.0,
        "ms": 1.5,
        "hardware": "a processor, 2 threads",
        "networks": [
            {"network": "gated", "role": "subject", "top1": 87.9612, "macs": 130_000.5, "macs_ratio": 0.18321,
             "ece": 2.5, "ms": 1.5},
            {"network": "teacher", "role": "teacher", "top1": 90.2701, "macs": 1_600_000.0, "macs_ratio": 1.0,
             "ece": 1.5, "ms": 9.0},
        ],
    }  # fmt: skip
    return ReportResult(**{**values, **changes})


def made(**changes: Any) -> Facts:
    example = Example(picture(), HOSTILE, "2", 0.9, True)
    values: dict[str, Any] = {
        "result": result(),
        "name": HOSTILE,
        "subject": "gated cascade",
        "marks": [
            Mark("teacher", "teacher", 90.27, 1_600_000, 9.0),
            Mark(HOSTILE, "single", 85.0, 200_000, 1.7),
            Mark("first member", "member", 80.0, 50_000),
            Mark("oracle", "oracle", 92.0, 70_000),
            Mark("all members", "full", 88.0, 250_000, 2.5),
            Mark("this run", "gated", 87.96, 130_000.5, 1.5),
        ],
        "members": [
            Member("member 1", HOSTILE, 5000, 50_000, 1.0, [("conv1", 40_000), ("other", 10_000)]),
            Member("member 2", "b", 20_000, 200_000, 0.4, [(HOSTILE, 200_000)]),
        ],
        "exits": [
            Exit("exit 1", 216, 0.6, 95.0, 95.5, {"surest": [example], "wrong": [example]}),
            Exit("exit 2", 144, 0.4, None, None, {}),
        ],
        "classes": [
            ClassScore(HOSTILE, 120, 95.0, 85.0, [("2", 10), (HOSTILE, 3)]),
            ClassScore("1", 120, 85.0, 85.0, []),
            ClassScore("2", 120, 90.0, 93.9, [(HOSTILE, 2)]),
        ],
        "reliability": [Reliability("this run", "gated", [0.0] * 14 + [0.97], [0.0] * 14 + [0.9], [0] * 14 + [360], 7)],
        "trainings": [
            Training("teacher", {"calibration_top1": [50.0, None, 90.0], "calibration_loss": [1.0, 0.5, 0.0]}),
            Training(HOSTILE, {"calibration_top1": [70.0]}),
        ],
        "lineage": [
            Step("teacher", "teacher", "kdcompress train-teacher", [("seed", "0")]),
            Step(HOSTILE, "this run", f"kdcompress distill '{HOSTILE}'", [("data", HOSTILE)], HOSTILE),
        ],
        "curve": [(60_000.0, 82.0), (120_000.0, 87.5)],
        "oracle": [(50_000.0, 80.0), (70_000.0, 92.0)],
        "versions": {"kdcompress": "1", "torch": "2"},
        "missing": [f"Teacher: {HOSTILE}"],
    }
    return Facts(**{**values, **changes})


@pytest.fixture
def facts() -> Facts:
    return made()


def with_result(facts: Facts, **changes: Any) -> Facts:
    return dataclasses.replace(facts, result=dataclasses.replace(facts.result, **changes))
