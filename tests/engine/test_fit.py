"""The training loop: it learns, it goes on where it was cut off, and every option does what it says."""

from __future__ import annotations

import copy
import csv
import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import list_optimizers
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kdcompress.data import Data, EvalBatches, TrainBatches, load_source
from kdcompress.data.batches import MemoryImages
from kdcompress.engine import fit as loop
from kdcompress.engine.distributed import Place
from kdcompress.engine.fit import _optimizer, fit, memory_format_of
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.muon import in_fp32_on_cpu
from kdcompress.engine.plan import Plan
from kdcompress.engine.progress import Silent
from kdcompress.engine.rates import rate_of
from kdcompress.errors import UserError
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import TrainingOptions, TrainTeacherOptions
from kdcompress.runs import METRICS, RunFolder

CPU = Place(torch.device("cpu"), "fp32")
STEPS = 6  # of an epoch, at 32 images a step
RESNET = "resnet8_cifar,width=0.25"


class Trigger:
    """Does something at the n-th forward pass of a task."""

    def __init__(self, at: int = -1, what: Any = None) -> None:
        self.at, self.what, self.calls = at, what, 0

    def __call__(self) -> bool:
        self.calls += 1
        if self.calls == self.at and callable(self.what):
            self.what()
        return self.calls == self.at


class Watched(SupervisedTask):
    """A task with a trigger in its forward pass; gives NaN where the trigger says nothing else."""

    trigger: Any = None

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        result = super().forward(input, target)
        if self.trigger is not None and self.trigger() and self.trigger.what is None:
            result["loss"] = result["loss"] * float("nan")
        return result


def data(images: int = STEPS * 32, batch: int = 32, seed: int = 0, augment: str = "crop") -> tuple[Any, Any]:
    """The first so many digits of the fit split, and the calibration split."""
    options = TrainingOptions()
    prep = new_network(ModelSpec.parse(RESNET), num_classes=10, channels=1, size=(8, 8), seed=0).prep
    all_of = Data(load_source("digits"), prep, options, CPU.device)
    training = all_of.training(batch, seed, augment)
    assert isinstance(training.images, MemoryImages)
    few = dataclasses.replace(training.images, ids=training.images.ids[:images])
    return dataclasses.replace(training, images=few), all_of.evaluation("calibration", 64)


def task_of(spec: str = RESNET, seed: int = 0) -> Watched:
    return Watched(new_network(ModelSpec.parse(spec), num_classes=10, channels=1, size=(8, 8), seed=seed).model)


def train(
    run: Path,
    task: StudentTask | None = None,
    *,
    batches: TrainBatches | None = None,
    reporter: Any = None,
    **given: Any,
) -> tuple[list[dict[str, Any]], StudentTask]:
    """Train two epochs, unless told otherwise, into ``run``."""
    options = TrainingOptions(**{"epochs": 2, "batch_size": 32, "lr": 0.05, **given})
    training, calibration = data(batch=options.batch_size or 32, seed=options.seed)
    task = task or task_of()
    training = batches or training
    plan = Plan.of(options, len(training.images.ids))
    run.mkdir(exist_ok=True)
    rows = fit(
        task, training, calibration, options, plan, CPU, RunFolder(run), reporter or Silent(),
        title="test", num_classes=10,
    )  # fmt: skip
    return rows, task


def weights(task: StudentTask, ema: bool = False) -> dict[str, Tensor]:
    module = task.get_trainable_module(ema=ema)
    assert module is not None
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


CLOCK = ("seconds", "images_per_second", "target_seconds")


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the clock."""
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every update."""
    found: list[float] = []
    handle = register_optimizer_step_pre_hook(lambda opt, *_: found.append(opt.param_groups[0]["lr"]))
    yield found
    handle.remove()


# --- it learns


def test_one_epoch_learns(tmp_path: Path) -> None:
    """The training loop itself: on digits one epoch takes a ResNet-8 from 10 % to most."""
    options = TrainingOptions(epochs=1)
    task = task_of("resnet8_cifar")
    batches, calibration = data(images=1300, batch=32)
    plan = Plan.of(options, 1300)
    assert plan.batch_size == 32
    (row,) = fit(
        task, batches, calibration, options, plan, CPU, RunFolder(tmp_path), Silent(), title="", num_classes=10
    )
    assert row["calibration_top1"] > 60
    assert row["train_loss"] < math.log(10)


def test_the_plan_fits_small_and_large_sets() -> None:
    """1300 images in batches of 128 would be ten updates an epoch: nothing is learnt."""
    assert Plan.of(TrainingOptions(), 50_000).batch_size == 128
    assert Plan.of(TrainingOptions(), 1300).batch_size == 32
    assert Plan.of(TrainingOptions(), 10).batch_size == 16
    short, long = (TrainTeacherOptions(pretrained=True, epochs=epochs) for epochs in (2, 30))
    assert [Plan.of(short, images).batch_size for images in (1350, 12_800, 10**6)] == [16, 64, 128]
    assert Plan.of(long, 1350).batch_size == 32
    for opt in ("sgd", "SGD"):
        assert Plan.of(TrainTeacherOptions(pretrained=True, epochs=2, opt=opt), 1350).batch_size == 32
    assert Plan.of(TrainingOptions(batch_size=256), 50_000).lr == pytest.approx(0.2)
    assert Plan.of(TrainingOptions(batch_size=64, grad_accum=4), 50_000).lr == pytest.approx(0.2)
    assert Plan.of(TrainingOptions(batch_size=512, opt="adamw"), 50_000).lr == pytest.approx(2e-3)
    assert Plan.of(TrainingOptions(opt="adamw"), 50_000).weight_decay == 0.05
    assert Plan.of(TrainingOptions(weight_decay=0), 50_000).weight_decay == 0


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lamb"])
def test_every_timm_optimiser_learns(tmp_path: Path, opt: str) -> None:
    """--opt is handed to timm; the rate must reach it."""
    rows, _ = train(tmp_path, opt=opt, lr=0.05 if opt == "sgd" else 0.01, epochs=4)
    assert rows[-1]["train_loss"] < 0.95 * rows[0]["train_loss"]


def test_an_unknown_optimiser_is_named(tmp_path: Path) -> None:
    """A typo found before the first epoch."""
    with pytest.raises(UserError, match="--opt 'sgdd'") as caught:
        train(tmp_path, opt="sgdd")
    assert caught.value.exit_code == 2


# --- it goes on where it was cut off

KINDS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw-ema": {"opt": "adamw", "lr": 0.01, "ema_decay": 0.9},
    "mixup-cutmix": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "accumulation": {"grad_accum": 4, "clip_grad": 1.0},
    "step-schedule": {"sched": "step", "decay_epochs": 0.5, "warmup_epochs": 0.4},
}


WHOLE: dict[str, Any] = {}


def unbroken(tmp_path: Path, spec: str, given: dict[str, Any]) -> tuple[list[dict[str, Any]], StudentTask]:
    """Trained once for all tests that compare with it; nobody goes on with it."""
    key = repr((spec, sorted(given.items())))
    if key not in WHOLE:
        WHOLE[key] = train(tmp_path / "whole", task_of(spec), **given)
    return WHOLE[key]


def assert_same_end(
    whole: tuple[list[dict[str, Any]], StudentTask], again: tuple[list[dict[str, Any]], StudentTask]
) -> None:
    assert lasting(again[0]) == lasting(whole[0])
    assert equal(weights(again[1]), weights(whole[1]))
    assert again[1].has_ema() == whole[1].has_ema()
    if whole[1].has_ema():
        assert equal(weights(again[1], ema=True), weights(whole[1], ema=True))
        average = {key.removeprefix("module."): value for key, value in weights(again[1], ema=True).items()}
        assert equal(weights(again[1]), average), "the averaged weights are what a training ends with"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("at", [1, 3, STEPS, STEPS + 3])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, kind: str, at: int) -> None:
    """A night's training that was stopped must end with the very weights it would have had."""
    spec = f"{RESNET},drop_rate=0.2"
    whole = unbroken(tmp_path, spec, KINDS[kind])
    run = tmp_path / "broken"
    task = task_of(spec)
    task.trigger = Trigger(at, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        train(run, task, **KINDS[kind])
    assert caught.value.path == run
    assert RunFolder(run).has_checkpoint
    task = task_of(spec, seed=99)  # whatever it starts with, the checkpoint decides
    task.trigger = Trigger()
    again = train(run, task, **KINDS[kind])
    assert task.trigger.calls <= 2 * STEPS - at + KINDS[kind].get("grad_accum", 1)
    assert_same_end(whole, again)


def test_a_stop_signal_works_while_the_calibration_split_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their outputs for the frozen members may take minutes; a second Ctrl-C would lose the epoch."""

    def prepare(_: EvalBatches, stopped: Callable[[], bool]) -> bool:
        signal.raise_signal(signal.SIGTERM)
        return not stopped()

    whole = unbroken(tmp_path, RESNET, KINDS["sgd"])
    with monkeypatch.context() as patch:
        patch.setattr(EvalBatches, "prepare", prepare)
        with pytest.raises(Interrupted):
            train(tmp_path / "broken", task_of(), **KINDS["sgd"])
    assert_same_end(whole, train(tmp_path / "broken", **KINDS["sgd"]))


LOST = [ConnectionResetError(104, "reset"), EOFError(), RuntimeError("DataLoader worker (pid 7) exited unexpectedly")]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_workers_that_are_lost_with_a_signal_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A batch system signals the whole process group: the next batch is awaited in vain."""
    genuine = TrainBatches.epoch

    def cut(self: TrainBatches, *given: Any) -> Iterator[Any]:
        yield from itertools.islice(genuine(self, *given), 2)
        if stops:
            signal.raise_signal(signal.SIGTERM)
        raise error

    monkeypatch.setattr(TrainBatches, "epoch", cut)
    stops = False
    with pytest.raises(type(error)):
        train(tmp_path / "lost")
    stops = True
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped")
    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (0, 2)


def test_interrupted_twice(tmp_path: Path) -> None:
    """A spot machine is taken away more than once."""
    whole = unbroken(tmp_path, RESNET, KINDS["adamw-ema"])
    for at in (2, 3, 4):
        task = task_of()
        task.trigger = Trigger(at, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train(tmp_path / "broken", task, **KINDS["adamw-ema"])
    assert_same_end(whole, train(tmp_path / "broken", **KINDS["adamw-ema"]))


@pytest.mark.parametrize("kind", ["sgd", "adamw-ema"])
def test_killed_in_an_epoch_loses_no_more_than_that_epoch(tmp_path: Path, kind: str) -> None:
    """kill -9 leaves no time to save: the last whole epoch is on the disk."""

    def crash() -> None:
        raise MemoryError

    whole = unbroken(tmp_path, RESNET, KINDS[kind])
    task = task_of()
    task.trigger = Trigger(STEPS + 2, crash)
    with pytest.raises(MemoryError):
        train(tmp_path / "broken", task, **KINDS[kind])
    task = task_of(seed=5)
    task.trigger = Trigger()
    again = train(tmp_path / "broken", task, **KINDS[kind])
    assert task.trigger.calls == STEPS
    assert_same_end(whole, again)


def test_a_finished_checkpoint_trains_no_more(tmp_path: Path) -> None:
    """Killed between the last epoch and the saving: nothing is trained twice."""
    rows, first = train(tmp_path)
    task = task_of(seed=3)
    task.trigger = Trigger()
    again, _ = train(tmp_path, task)
    assert task.trigger.calls == 0
    assert again == rows
    assert equal(weights(task), weights(first))


@pytest.mark.parametrize(
    "changed",
    [{"lr": 0.1}, {"epochs": 3}, {"seed": 1}, {"mixup": 0.2}, {"opt": "adamw"}, {"batch_size": 16}, {"ema_decay": 0.5}],
)
def test_changed_options_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    """A run with half its epochs at another learning rate would not be what run.json says."""
    train(tmp_path, epochs=2)
    name = next(iter(changed))
    with pytest.raises(UserError, match=name) as caught:
        train(tmp_path, **{"epochs": 2, **changed})
    assert "--resume" in caught.value.remedy


def test_a_signal_while_the_last_epoch_is_scored_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next member or phase would begin, in a job that was told to end, and be killed in its midst."""
    genuine, calls = loop.evaluate, list[int]()

    def scored(*told: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return genuine(*told)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", scored)
        with pytest.raises(Interrupted):
            train(tmp_path / "cut")
    rows, task = train(tmp_path / "cut")
    whole, unbroken = train(tmp_path / "whole")
    assert lasting(rows) == lasting(whole)
    assert equal(weights(task), weights(unbroken))


def test_folder_and_workers_may_change(tmp_path: Path) -> None:
    """A run must be free to move to another folder or to get more workers."""
    rows, _ = train(tmp_path)
    assert train(tmp_path, workers=0, out="elsewhere", resume=True)[0] == rows


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    """Differences between methods would drown in random variation."""
    given = {"mixup": 0.5, "cutmix": 0.5}
    one, other = train(tmp_path / "1", **given), train(tmp_path / "2", **given)
    assert_same_end(one, other)
    assert not equal(weights(train(tmp_path / "3", seed=1, **given)[1]), weights(one[1]))


def test_a_distilled_student_resumes_without_its_teacher_in_the_checkpoint(tmp_path: Path) -> None:
    """A teacher's weights in every checkpoint would cost gigabytes; resuming needs the student's alone."""

    def task() -> KdTask:
        return KdTask(task_of().trainable_module, Frozen(task_of("lenet5", seed=4).trainable_module))

    _, first = train(tmp_path, task())
    state = RunFolder(tmp_path).read_checkpoint()
    assert set(state["state_dict"]) == set(weights(first))
    size = sum(value.numel() for value in weights(first).values() if value.is_floating_point())
    stored = sum(value.numel() for value in state["state_dict"].values())
    assert stored <= size + 20
    assert (tmp_path / "checkpoint.pt").stat().st_size < 20 * size + 50_000


# --- every option does what it says


def test_accumulated_half_batches_are_the_whole_batch(tmp_path: Path) -> None:
    """--grad-accum is for batches that do not fit; it must be the same training."""
    given = {"epochs": 2, "clip_grad": 1.0}
    _, whole = train(tmp_path / "1", task_of("lenet5"), batch_size=32, **given)
    _, halves = train(tmp_path / "2", task_of("lenet5"), batch_size=16, grad_accum=2, **given)
    start = weights(task_of("lenet5"))
    for key, value in weights(whole).items():
        torch.testing.assert_close(weights(halves)[key], value, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(value, start[key], rtol=1e-3, atol=1e-5)


def naive_training(task: StudentTask, batches: TrainBatches, rates: list[float], accum: int) -> None:
    """SGD with Nesterov momentum 0.9 and weight decay 5e-4 on all weights of two dimensions or more, by hand."""
    task.train()
    speed: dict[int, Tensor] = {}
    updates = iter(rates)
    for epoch in range(2):
        steps = list(batches.epoch(epoch))
        for first in range(0, len(steps), accum):
            group = steps[first : first + accum]
            for parameter in task.parameters():
                parameter.grad = None
            for x, y in group:
                (task(x, y)["loss"] / len(group)).backward()
            rate = next(updates)
            for number, parameter in enumerate(task.parameters()):
                assert parameter.grad is not None
                gradient = parameter.grad + (5e-4 * parameter.data if parameter.ndim > 1 else 0)
                speed[number] = 0.9 * speed[number] + gradient if number in speed else gradient.clone()
                parameter.data -= rate * (gradient + 0.9 * speed[number])


@pytest.mark.parametrize("accum", [1, 4])
def test_the_steps_equal_those_of_a_plain_loop(tmp_path: Path, rates: list[float], accum: int) -> None:
    """Six batches at four an update leave two over: they count as one update of their own."""
    _, task = train(tmp_path, task_of("lenet5"), grad_accum=accum)
    assert len(rates) == 2 * math.ceil(STEPS / accum)
    by_hand = task_of("lenet5")
    naive_training(by_hand, data()[0], rates, accum)
    for key, value in weights(by_hand).items():
        torch.testing.assert_close(weights(task)[key], value, rtol=1e-3, atol=1e-5)


def test_cosine_warms_up_and_decays(tmp_path: Path, rates: list[float]) -> None:
    """A rate that does not end near zero costs the last points of accuracy."""
    train(tmp_path, epochs=4, lr=0.2, warmup_epochs=1)
    total, warm = 4 * STEPS, STEPS
    expected = [0.002 + (0.2 - 0.002) * t / warm for t in range(warm)]
    expected += [0.1 * (1 + math.cos(math.pi * t / total)) for t in range(warm, total)]
    assert rates == pytest.approx(expected)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    """The rate would never reach its peak, and the accuracy would be poor for no visible reason."""
    with pytest.raises(UserError, match="warmup-epochs 5"):
        Plan.of(TrainTeacherOptions(epochs=5, warmup_epochs=5), 1000)


@pytest.mark.parametrize(("opt", "usual"), [("sgd", 0.01), ("adamw", 1e-3), ("auto", 1e-3)])
def test_pretrained_weights_get_a_rate_that_keeps_them(opt: str, usual: float) -> None:
    """SGD's full learning rate would destroy the pretrained features."""
    plan = Plan.of(TrainTeacherOptions(opt=opt, pretrained=True), 10**5)
    assert plan.lr == pytest.approx(usual)
    assert plan.opt == ("nadamw" if opt == "auto" else opt)
    assert Plan.of(TrainTeacherOptions(opt=opt, pretrained=True, lr=0.3), 10**5).lr == 0.3


@pytest.mark.parametrize(
    ("name", "opt"),
    [
        ("resnet8_cifar", "nmuon"),
        ("lenet5", "adamw"),
        ("resnet10t", "nmuon"),
        ("mobilenetv3_small_050", "adamw"),
        ("test_efficientnet", "adamw"),
        ("test_convnext", "adamw"),
        ("test_vit", "adamw"),
    ],
)
def test_the_optimiser_suits_the_family(name: str, opt: str) -> None:
    """By SGD at a ResNet's rate a MobileNet lost 15 points, and a transformer would learn nothing; by Muon a ResNet
    gains three in few epochs.
    """
    assert Plan.of(TrainingOptions(), 10**5, network=timm.create_model(name)).opt == opt
    assert Plan.of(TrainingOptions(opt="lamb"), 10**5, network=timm.create_model(name)).opt == "lamb"


def test_tiny_steps_are_not_worth_muon() -> None:
    """Its own work would double the time of a step on thumbnails, for nothing."""
    small, wide = (timm.create_model(name, in_chans=3) for name in ("resnet8_cifar", "resnet18"))
    assert Plan.of(TrainingOptions(), 10**5, network=small).opt == "nmuon"
    small.pretrained_cfg = {**small.pretrained_cfg, "input_size": (3, 8, 8)}
    assert Plan.of(TrainingOptions(), 1300, network=small).opt == "sgd"
    assert Plan.of(TrainingOptions(), 10**5, network=wide).opt == "nmuon"
    wide.pretrained_cfg = {**wide.pretrained_cfg, "input_size": (3, 32, 32)}
    assert Plan.of(TrainingOptions(), 10**5, network=wide).opt == "sgd"


def test_muon_computes_in_fp32_on_a_cpu() -> None:
    """Emulated bf16 took longer than the step itself."""
    seen = set()
    genuine = timm.optim.muon.zeropower_via_newtonschulz
    layer = nn.Linear(8, 6)
    optimizer = in_fp32_on_cpu(
        timm.optim.create_optimizer_v2(layer, "nmuon", lr=0.1, weight_decay=0.0), torch.device("cpu")
    )
    optimizer.register_step_pre_hook(lambda *_: seen.add(timm.optim.muon.zeropower_via_newtonschulz is genuine))
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.randn(6, 8), torch.zeros(6)
    optimizer.step()
    assert seen == {False}
    assert timm.optim.muon.zeropower_via_newtonschulz is genuine, "others in this process keep timm's own"
    step = before - layer.weight.detach()
    singular = torch.linalg.svdvals(step)
    assert float(singular.max() / singular.min()) < 2.5, "an orthogonalised step"


@pytest.mark.parametrize("opt", list_optimizers())
def test_every_optimiser_has_a_rate_of_its_family(opt: str) -> None:
    """Lion at Adam's rate diverges, and SGD at Adam's learns nothing."""
    rate = rate_of(opt)
    assert 1e-4 <= rate.lr <= 10
    assert rate_of(f"lookahead_{opt}") == rate
    if "sgd" in opt:
        assert rate.lr == 0.1
    assert rate.at(128) == rate.lr
    assert rate.at(512) == pytest.approx((4 if rate.linear else 2) * rate.lr)
    assert rate.at(32) == pytest.approx(rate.lr / 4 if rate.linear else rate.lr)


def test_transformers_are_fine_tuned_with_layer_decay() -> None:
    """As they are published; the first layers know most, and convolutional networks did as well without."""
    options = TrainTeacherOptions(pretrained=True)
    assert Plan.of(options, 1000, network=timm.create_model("test_vit")).layer_decay == 0.75
    assert Plan.of(options, 1000, network=timm.create_model("test_resnet")).layer_decay is None
    assert Plan.of(TrainTeacherOptions(), 1000, network=timm.create_model("test_vit")).layer_decay is None
    given = TrainTeacherOptions(pretrained=True, layer_decay=1)
    assert Plan.of(given, 1000, network=timm.create_model("test_vit")).layer_decay == 1


def test_layers_near_the_input_learn_slower() -> None:
    """--layer-decay keeps what pretrained first layers know."""
    module = timm.create_model("test_resnet")
    plan = Plan.of(TrainingOptions(layer_decay=0.5), 10**5)
    groups = _optimizer(module, TrainingOptions(), plan).param_groups
    rate = {id(each): group["lr_scale"] for group in groups for each in group["params"]}
    rates = [rate[id(each)] for each in (module.conv1[0].weight, module.layer2[0].conv1.weight, module.fc.weight)]
    assert rates[0] < rates[1] < rates[2] == 1


def test_steps_drop_after_the_warm_up(tmp_path: Path, rates: list[float]) -> None:
    """The literature's schedule for CIFAR: tenfold drops at given epochs."""
    train(tmp_path, epochs=4, lr=0.2, sched="step", decay_epochs=2, decay_rate=0.1, warmup_epochs=0)
    assert rates == pytest.approx([0.2] * 2 * STEPS + [0.02] * 2 * STEPS)


def test_the_schedule_counts_updates_not_batches(tmp_path: Path, rates: list[float]) -> None:
    """With accumulation the rate would else decay too soon."""
    train(tmp_path, epochs=4, lr=0.2, grad_accum=2, warmup_epochs=0)
    total = 4 * STEPS // 2
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * t / total)) for t in range(total)])


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    """--clip-grad is what saves a run from one bad batch."""
    moved = {}
    for clip in (None, 1e-3):
        task = task_of()
        start = [parameter.detach().clone() for parameter in task.parameters()]
        batches, _ = data(images=32)
        given = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0, "lr": 0.5}
        train(tmp_path / str(clip), task, batches=batches, clip_grad=clip, **given)
        pairs = zip(task.parameters(), start, strict=True)
        moved[clip] = math.sqrt(sum(float((now.detach() - then).square().sum()) for now, then in pairs))
    assert moved[1e-3] == pytest.approx(0.5e-3, rel=1e-3)
    assert moved[None] > 10 * moved[1e-3]


def test_label_smoothing_and_mixup_reach_the_loss(tmp_path: Path) -> None:
    """Options that are read and then forgotten look as if they had no effect on accuracy."""
    seen: list[Tensor] = []

    class Spy(Watched):
        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            seen.append(target)
            return super().forward(input, target)

    task = Spy(task_of().trainable_module)
    rows, _ = train(tmp_path, task, epochs=1, mixup=1.0)
    trained = [target for target in seen if target.ndim == 2]
    assert len(trained) == STEPS
    assert all(target.shape == (32, 10) for target in trained)
    torch.testing.assert_close(torch.cat(trained).sum(1), torch.ones(STEPS * 32))
    assert any((target.max(1).values < 1).any() for target in trained)
    assert 0 <= rows[0]["train_top1"] <= 100


def test_mixup_takes_an_odd_batch(tmp_path: Path) -> None:
    """timm's own refuses it, in the middle of an epoch."""
    batches, _ = data(images=33, batch=33)
    rows, _ = train(tmp_path, batches=batches, epochs=1, mixup=1.0, cutmix=1.0, batch_size=33)
    assert math.isfinite(rows[0]["train_loss"])


def test_mixup_leaves_the_batches_as_they_are() -> None:
    """timm mixes in place; a batch that is a view of the data set would stay mixed for ever."""
    from timm.data import Mixup

    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6)
    before = x.clone()
    mixed, soft = loop._mixed(Mixup(1.0, 0.0, label_smoothing=0.0, num_classes=10), x[:5], y[:5], 10)
    assert torch.equal(x, before)
    assert not torch.equal(mixed[:4], x[:4])
    assert torch.equal(mixed[4], x[4])
    assert soft.shape == (5, 10)
    assert soft[4].tolist() == [0.0] * 4 + [1.0] + [0.0] * 5


def test_the_moving_average_follows_the_formula_and_is_scored(tmp_path: Path) -> None:
    """--ema-decay promises averaged weights in the file and in the reported accuracy."""
    averages: list[dict[str, Tensor]] = []
    task = task_of()

    def follow(*_: Any) -> None:
        step, now = len(averages), weights(task)
        # timm's warm-up: min(decay, 1 - (1 + t)^(-2/3)) after t updates; the first is a copy
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3)) if step else 0.0
        last = averages[-1] if averages else now
        averages.append({key: decay * last[key] + (1 - decay) * now[key] for key in now})

    handle = register_optimizer_step_post_hook(follow)
    rows, _ = train(tmp_path, task, epochs=2, ema_decay=0.7)
    handle.remove()
    average = {key.removeprefix("module."): value for key, value in weights(task, ema=True).items()}
    assert len(averages) == 2 * STEPS
    for key, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, averages[-1][key], rtol=1e-4, atol=1e-6)
    twin = copy.deepcopy(task.trainable_module)
    twin.load_state_dict(average)
    _, calibration = data()
    assert rows[-1]["calibration_top1"] == pytest.approx(accuracy(twin, calibration), abs=1e-3)


@torch.no_grad()
def accuracy(model: nn.Module, batches: EvalBatches) -> float:
    model.eval()
    right = [(model(x).argmax(1) == y).float() for x, y in batches]
    return 100 * float(torch.cat(right).mean())


# --- what it tells


def test_a_loss_that_is_not_finite_names_its_step(tmp_path: Path) -> None:
    """Hours of NaN otherwise; and the last good state has to survive."""
    task = task_of()
    task.trigger = Trigger(STEPS + 3)
    with pytest.raises(UserError, match="step 3 of epoch 2") as caught:
        train(tmp_path, task, epochs=3)
    assert "--lr" in caught.value.remedy
    assert str(tmp_path) in caught.value.remedy
    state = RunFolder(tmp_path).read_checkpoint()
    assert state["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in state["state_dict"].values())
    whole = train(tmp_path / "whole", epochs=3)
    assert_same_end(whole, train(tmp_path, epochs=3))


def test_a_loss_that_explodes_is_caught(tmp_path: Path) -> None:
    """The real way to NaN: a rate that is far too high."""
    with pytest.raises(UserError, match="not finite at step") as caught:
        train(tmp_path, task_of("lenet5"), lr=1e6, warmup_epochs=0)
    assert "--precision" not in caught.value.remedy, "it runs in fp32 already"


def test_metrics_hold_a_row_per_epoch(tmp_path: Path) -> None:
    """Plots are made from this file, while the run is still going on."""
    seen: list[int] = []

    class Reads(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            seen.append(len(list(csv.DictReader((tmp_path / METRICS).open()))))

    rows, task = train(tmp_path, epochs=3, reporter=Reads())
    written = list(csv.DictReader((tmp_path / METRICS).open()))
    assert seen == [1, 2, 3]
    assert [int(row["epoch"]) for row in written] == [1, 2, 3]
    wanted = {"lr", "train_loss", "train_top1", "calibration_loss", "calibration_top1", "images_per_second", "seconds"}
    assert wanted <= set(written[0])
    for row, line in zip(rows, written, strict=True):
        assert {key: float(value) for key, value in line.items()} == {key: float(value) for key, value in row.items()}
    assert rows[-1]["calibration_top1"] == pytest.approx(accuracy(task.trainable_module, data()[1]), abs=1e-3)


def test_training_figures_are_means_over_images(tmp_path: Path) -> None:
    """The loss in metrics.csv is compared between batch sizes."""
    losses, sizes, right = [], [], []

    class Spy(Watched):
        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            result = super().forward(input, target)
            losses.append(float(result["loss"].detach()) * len(target))
            sizes.append(len(target))
            right.append(int((result["output"].argmax(1) == target).sum()))
            return result

    batches, _ = data(images=70)
    rows, _ = train(tmp_path, Spy(task_of().trainable_module), batches=batches, epochs=1)
    assert sizes == [24, 23, 23]
    assert rows[0]["train_loss"] == pytest.approx(sum(losses) / 70, abs=1e-5)
    assert rows[0]["train_top1"] == pytest.approx(100 * sum(right) / 70, abs=1e-3)


def test_the_student_is_back_in_training_mode_each_epoch(tmp_path: Path) -> None:
    """Left in eval mode after the first validation, a student would train without dropout and BatchNorm updates."""
    modes: list[bool] = []

    class Spy(Watched):
        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            modes.append(all(module.training for module in self.trainable_module.modules()))
            return super().forward(input, target)

    train(tmp_path, Spy(task_of().trainable_module), epochs=2, ema_decay=0.9)
    assert modes == [True] * 2 * STEPS


def test_the_reporter_gets_every_step_and_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar: every step counted once, and a resumed run starts where it is."""
    calls: list[tuple[Any, ...]] = []

    class Spy(Silent):
        def start(self, title: str, epochs: int, steps: int, done: int) -> None:
            calls.append(("start", epochs, steps, done))

        def step(self, epoch: int, loss: float, speed: float, advance: int) -> None:
            assert math.isfinite(loss)
            assert speed > 0
            calls.append(("step", epoch, advance))

        def epoch(self, row: dict[str, Any]) -> None:
            calls.append(("epoch", row["epoch"]))

        def stop(self) -> None:
            calls.append(("stop",))

    monkeypatch.setattr(loop, "REPORT_SECONDS", 0.0)
    train(tmp_path, reporter=Spy())
    steps = [[("step", epoch, 1)] * STEPS for epoch in range(2)]
    expected = [("start", 2, STEPS, 0), *steps[0], ("epoch", 1), *steps[1], ("epoch", 2), ("stop",)]
    assert calls == expected
    calls.clear()
    train(tmp_path, reporter=Spy())
    assert calls == [("start", 2, STEPS, 2), ("stop",)]


def test_every_step_draws_its_own_randomness(tmp_path: Path) -> None:
    """Seeded alike at every step, dropout would drop the same units for the whole training."""
    draws: list[Tensor] = []

    class Spy(Watched):
        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            draws.append(torch.rand(4))
            return super().forward(input, target)

    train(tmp_path, Spy(task_of().trainable_module), epochs=2)
    assert len(draws) == 2 * STEPS
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(draws, 2))


NARROW = """
import sys
import torch
from torch import nn
from kdcompress.engine.fit import memory_format_of
from kdcompress.models.build import ModelSpec, build

for spec in sys.argv[1:]:
    if spec == "foreign":
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    else:
        model = build(ModelSpec.parse(spec), num_classes=8)[0]
    memory_format = memory_format_of(model, torch.device("cpu")) if spec == "foreign" else torch.channels_last
    model = model.train().to(memory_format=memory_format)
    x = torch.randn(127, 3, 32, 32).contiguous(memory_format=memory_format)
    for _ in range(2):
        model(x).square().mean().backward()
    print(spec, memory_format, flush=True)
"""


def test_narrow_networks_survive_two_threads() -> None:
    """oneDNN's issue 6035: an odd batch, two threads and a strided 1x1 convolution of few channels kill the process.

    Our networks have none such, and survive channels last; others must be kept from it.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}  # beside other tests
    specs = ["foreign", "resnet8_cifar,width=0.25", "resnet8_cifar,width=0.9", "wrn_16_1_cifar"]
    done = subprocess.run([sys.executable, "-c", NARROW, *specs], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout, done.stderr)
    formats = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert formats == dict.fromkeys(specs, "torch.channels_last") | {"foreign": "torch.contiguous_format"}


@pytest.mark.parametrize(
    ("spec", "threads", "format"),
    [
        ("resnet8_cifar", 2, torch.channels_last),
        ("resnet8_cifar,width=0.9", 2, torch.contiguous_format),
        ("resnet8_cifar,width=0.5", 2, torch.contiguous_format),
        ("resnet8_cifar,width=0.9", 1, torch.channels_last),
        ("resnet10t", 2, torch.channels_last),
    ],
)
def test_narrow_networks_are_not_channels_last_with_several_threads(
    spec: str, threads: int, format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A narrow student would train at two thirds of its speed only because of its memory layout."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert memory_format_of(task_of(spec).trainable_module, torch.device("cpu")) is format
