"""How long trainings will take on this machine: a few steps of each network, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from kdcompress.engine.distributed import Place

BATCH = 64  # images
LEAST, MOST = 3, 0.5  # steps, and seconds after which no more are begun


def training_seconds(model: nn.Module, size: tuple[int, int, int], classes: int, place: Place) -> float:
    """Seconds per image of a training step, forward and backward; the fastest of a few counts.

    Args:
        model: Not changed but for the statistics of its norms.
        size: (C, H, W) of its input.
        classes: K.
    """
    model = model.to(place.device).to(memory_format=torch.channels_last).train()
    x = torch.randn(BATCH, *size, device=place.device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(classes, (BATCH,), device=place.device)

    def step() -> None:
        with place.autocast():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        model.zero_grad()

    return _fastest(step, place) / BATCH


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
