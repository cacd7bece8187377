"""How long trainings will take on this machine: a few steps of each network, measured."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from kdcompress.engine.distributed import Place
from kdcompress.engine.precision import WORTH_IT

BATCH = 64  # images
LEAST, MOST = 3, 0.5  # steps, and seconds after which no more are begun


def training_seconds(
    model: nn.Module, size: tuple[int, int, int], classes: int, place: Place, batch: int, *, may_choose: bool = False
) -> float:
    """Seconds per image of a training step: forward, backward and optimiser; the fastest of a few counts.

    Args:
        model: Its weights are changed.
        size: (C, H, W) of its input.
        classes: K.
        batch: Images of a step; of few images the optimiser takes the larger share.
        may_choose: Whether the training runs in float32 where lower precision is not worth it.
    """
    model = model.to(place.device).to(memory_format=torch.channels_last).train()
    x = torch.randn(batch, *size, device=place.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(classes, (batch,), device=place.device)
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-6)

    def step(lower: bool) -> None:
        with place.autocast() if lower else contextlib.nullcontext():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    lower = _fastest(functools.partial(step, True), place)
    exact = _fastest(functools.partial(step, False), place) if may_choose and place.precision != "fp32" else math.inf
    return (lower if exact >= WORTH_IT * lower else exact) / batch


@torch.inference_mode()
def forward_seconds(model: nn.Module, size: tuple[int, int, int], place: Place) -> float:
    """Seconds per image of a frozen network."""
    model = model.to(place.device).to(memory_format=torch.channels_last).eval()
    x = torch.randn(BATCH, *size, device=place.device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with place.autocast():
            model(x)

    return _fastest(step, place) / BATCH


def _fastest(step: Callable[[], None], place: Place) -> float:
    times: list[float] = []
    while len(times) <= LEAST or sum(times) < MOST:
        began = time.perf_counter()
        step()
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
