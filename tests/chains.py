"""A small pipeline on digits, and short questions about its runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdcompress.data import Data, load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.interrupt import Interrupted
from kdcompress.options import TrainingOptions
from kdcompress.results import GateResult, TrainResult
from kdcompress.runs import RECORD, WEIGHTS

CPU = Place(torch.device("cpu"), "fp32")
SMALL, TINY = "resnet8_cifar,width=0.5", "resnet8_cifar,width=0.25"
FIT, CALIBRATION, TEST = 1295, 142, 360
COMMON: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1}
WHERE: dict[str, Any] = {"device": "cpu", "precision": "fp32"}


@dataclasses.dataclass
class Chain:
    """One pipeline, made once for all tests that look at it."""

    folder: Path
    teacher: TrainResult
    student: TrainResult
    cascade: TrainResult
    longer: TrainResult
    gated: GateResult


def record_of(run: str | Path | None) -> dict[str, Any]:
    return json.loads((Path(str(run)) / RECORD).read_text())


def weights_of(run: str | None) -> dict[str, torch.Tensor]:
    return load_file(Path(str(run)) / WEIGHTS)


def same_weights(one: str | None, other: str | None) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def source_and_data(prep: Any) -> Data:
    return Data(load_source("digits"), prep, TrainingOptions(), CPU.device)


@torch.no_grad()
def logits_on(network: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(source_and_data(network.prep).evaluation(split, 1000))
    return network.model(batches[0][0]), batches[0][1]


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).float().mean())


@contextlib.contextmanager
def stopped(task: Any, step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs in it is sent a signal in that step of such a task, and leaves as interrupted."""
    calls: list[int] = []
    genuine = task.forward

    def stopping(self: Any, input: torch.Tensor, target: torch.Tensor, **told: torch.Tensor) -> Any:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(number)
        return genuine(self, input, target, **told)

    with monkeypatch.context() as patch:
        patch.setattr(task, "forward", stopping)
        with pytest.raises(Interrupted):
            yield
