"""How long trainings will take on this machine: a few steps of each network, and a few photos read, measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdcompress.data import Data, StreamImages
from kdcompress.engine.distributed import Place

BATCH = 64  # images
LEAST, MOST = 3, 0.5  # steps, and seconds after which no more are begun
PHOTOS = 24  # that are read


def training_seconds(
    model: nn.Module, size: tuple[int, int, int], classes: int, place: Place, batch: int, *, may_choose: bool = False
) -> float:
    """Seconds per image of a training step: forward, backward and optimiser; the fastest of a few counts.

    Args:
        model: Its weights are changed.
        size: (C, H, W) of its input.
        classes: K.
        batch: Images of a step; of few images the optimiser takes the larger share.
        may_choose: Whether the training may run in float32 where that is faster.
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

    times = [_fastest(functools.partial(step, True), place)]
    if may_choose and place.precision != "fp32":
        times.append(_fastest(functools.partial(step, False), place))
    return min(times) / batch


@torch.inference_mode()
def forward_seconds(model: nn.Module, size: tuple[int, int, int], place: Place) -> float:
    """Seconds per image of a frozen network."""
    model = model.to(place.device).to(memory_format=torch.channels_last).eval()
    x = torch.randn(BATCH, *size, device=place.device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with place.autocast():
            model(x)

    return _fastest(step, place) / BATCH


def reading_seconds(data: Data) -> float:
    """Seconds per image of reading photos from the disk, for all workers together; 0 where images are in memory."""
    batches = data.training(BATCH, 0, "auto") if data.streams else None
    if batches is None or not isinstance(images := batches.images, StreamImages):
        return 0.0
    alone = dataclasses.replace(batches, images=dataclasses.replace(images, workers=0))
    parts = np.array_split(np.linspace(0, len(images.ids) - 1, min(PHOTOS, len(images.ids))).astype(int), LEAST)
    times, began = list[float](), time.perf_counter()
    for _ in alone.load(parts, 0, 0):
        times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return min(times) / len(parts[-1]) / max(images.workers, 1)


def _fastest(step: Callable[[], None], place: Place) -> float:
    times: list[float] = []
    while len(times) <= LEAST or sum(times) < MOST:
        began = time.perf_counter()
        step()
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])
