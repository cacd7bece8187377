"""Whether a network trains faster in reduced precision, measured on the network itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.gradient_check import Batch, Numerics, backward, copy_to_train
from kdcompress.engine.precision import WORTH_IT
from kdcompress.training_task import TrainingTask

WARM_UP, PAIRS = 1, 6


def worth_it(
    wanted: Numerics,
    task: TrainingTask,
    batch: Batch,
    cached: Mapping[str, Tensor],
    place: Place,
    note: Callable[[str], None],
) -> Numerics:
    """``wanted``, or float32 where its steps are not at least 1.2 times as fast as in float32 (our choice).

    A generic trial is not enough: depthwise convolutions and small images gain nothing from bf16, or lose. Steps of
    both take turns, and the fastest of each count, so that other load of the machine hardly matters.

    Args:
        task: On the device. Neither it nor the state of the random number generators is changed.
        batch: (input [B, C, H, W], target [B]), on the CPU.
        cached: Outputs of the frozen networks for it, by argument of the task: their time is not the student's.
        note: Called with a notice where float32 is chosen.
    """
    exact = replace(wanted, precision="fp32", fp32_layers=())
    if wanted == exact:
        return wanted
    steps = [_step(numerics, task, batch, cached, place) for numerics in (exact, wanted)]
    times: list[list[float]] = [[], []]
    with torch.random.fork_rng(devices=[]):
        for number in range(WARM_UP + PAIRS):
            for step, taken in zip(steps, times, strict=True):
                began = time.perf_counter()
                step()
                if number >= WARM_UP:
                    taken.append(time.perf_counter() - began)
    speedup = from_main(lambda: min(times[0]) / min(times[1]))
    if speedup >= WORTH_IT:
        return wanted
    note(
        f"Training in fp32: steps in {wanted.precision} are only {speedup:.2f} times as fast, too little for lower "
        f"precision (--precision {wanted.precision} takes it nevertheless)"
    )
    return exact


def _step(
    numerics: Numerics, task: TrainingTask, batch: Batch, cached: Mapping[str, Tensor], place: Place
) -> Callable[[], None]:
    """A forward and backward pass of a copy."""
    trial, module = copy_to_train(task, numerics)

    def step() -> None:
        backward(trial, module, numerics, batch, place, **cached)
        module.zero_grad()

    return step
