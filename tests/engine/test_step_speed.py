"""bf16 is taken where the network itself trains faster in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdcompress.engine import step_speed
from kdcompress.engine.distributed import Place
from kdcompress.engine.gradient_check import Numerics
from kdcompress.engine.step_speed import worth_it
from kdcompress.methods.base import Frozen
from kdcompress.methods.kd import KdTask
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.build import ModelSpec, build

CPU = Place(torch.device("cpu"), "bf16")
BF16 = Numerics("bf16", channels_last=False)
BATCH = torch.randn(4, 1, 8, 8), torch.arange(4)


@pytest.fixture
def task() -> SupervisedTask:
    return SupervisedTask(build(ModelSpec.parse("resnet8_cifar,width=0.25,in_chans=1"), num_classes=10)[0])


class Clock:
    """In place of the machine's: a step takes as long as its precision says, now and then much longer."""

    def __init__(self, seconds: dict[str, float], busy: int = 0) -> None:
        self.now, self.seconds, self.busy, self.calls = 0.0, seconds, busy, 0

    def perf_counter(self) -> float:
        return self.now

    def step(self, numerics: Numerics, *_: Any) -> Any:
        def take() -> None:
            self.calls += 1
            late = 10.0 if self.busy and self.calls % self.busy == 0 else 1.0
            self.now += late * self.seconds[numerics.precision]

        return take


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (1.4, "fp32")])
@pytest.mark.parametrize("busy", [0, 3, 5])
def test_the_faster_one_is_taken(
    task: SupervisedTask, monkeypatch: pytest.MonkeyPatch, bf16: float, expected: str, busy: int
) -> None:
    """An EfficientNet trained at two thirds of the speed, and the machine's other work decided."""
    clock = Clock({"fp32": 1.0, "bf16": bf16}, busy)
    monkeypatch.setattr(step_speed, "time", clock)
    monkeypatch.setattr(step_speed, "_step", clock.step)
    notes: list[str] = []
    assert worth_it(BF16, task, BATCH, {}, CPU, notes.append).precision == expected
    assert bool(notes) == (expected == "fp32")  # what is chosen against the usual is said


def test_nothing_is_measured_where_there_is_no_choice(task: SupervisedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bf16 does not run, the steps of a trial would be lost time."""
    monkeypatch.setattr(step_speed, "_step", None)
    exact = Numerics("fp32", channels_last=True)
    assert worth_it(exact, task, BATCH, {}, CPU, pytest.fail) is exact


def test_the_task_stays_as_it_is(task: SupervisedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring steps would be trained steps, and runs would differ by the machine's speed."""
    before, state = copy.deepcopy(task.state_dict()), torch.get_rng_state()
    worth_it(Numerics("bf16", channels_last=True), task, BATCH, {}, CPU, lambda text: None)
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in task.parameters())


def test_the_teacher_is_not_timed(task: SupervisedTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large teacher in every timed step would decide on the precision of a small student."""
    teacher = Frozen(task.get_trainable_module())  # type: ignore[arg-type]
    distilling = KdTask(task.get_trainable_module(), teacher)  # type: ignore[arg-type]
    cached = {"teacher_logits": teacher(BATCH[0])}
    monkeypatch.setattr(Frozen, "forward", lambda *_: pytest.fail("the teacher ran"))
    worth_it(Numerics("bf16", channels_last=False), distilling, BATCH, cached, CPU, lambda text: None)
