"""Accuracy, loss and speed of a network on a split."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data import EvalBatches
from kdcompress.engine.distributed import Place, summed


@dataclass(frozen=True)
class Scores:
    """What :func:`evaluate` found.

    Attributes:
        top1, top5: Percent; ``top5`` is None with five classes or fewer.
        loss: Mean cross-entropy.
        n: Images.
        images_per_second: Of the network alone, over all processes; reading images and the warm-up not counted.
        exits: Of a gated network, how many images stopped at each stage.
    """

    top1: float
    top5: float | None
    loss: float
    n: int
    images_per_second: float
    exits: tuple[int, ...] = ()


def evaluate(
    forward: Callable[[Tensor], Any], batches: EvalBatches, place: Place, *, passes: int = 1, stages: int = 0
) -> Scores:
    """Run a network over a split.

    Args:
        forward: Images [B, C, H, W] to logits [B, K], in eval mode, on the device. With ``stages``, to logits and the
            stage at which each image stopped [B].
        passes: How often each batch is run; the fastest counts for the speed.
        stages: How many stages a gated network has.
    """
    sums = torch.zeros(4, dtype=place.sum_dtype, device=place.device)
    exits = torch.zeros(stages, dtype=torch.long, device=place.device)
    seconds, timed, many = 0.0, 0, False
    with torch.inference_mode(), place.autocast():
        for number, (x, target) in enumerate(batches):
            if number == 0:
                forward(x)  # warm-up
            output, took = _timed(forward, x, place)
            for _ in range(passes - 1):
                took = min(took, _timed(forward, x, place)[1])
            seconds, timed = seconds + took, timed + len(x)
            if stages:
                output, stopped = output
                exits += torch.bincount(stopped, minlength=stages)
            logits = output.float()
            many = logits.shape[1] > 5
            top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            loss = nn.functional.cross_entropy(logits, target, reduction="sum")
            count = torch.tensor(len(x), device=x.device)
            sums += torch.stack([top[:, 0].sum(), top.any(1).sum(), loss, count]).to(sums.dtype)
    speed = summed(torch.tensor(timed / seconds if seconds else 0.0, device=place.device))
    right, right5, loss_sum, total = summed(sums).tolist()
    n = max(int(total), 1)
    top5 = 100 * right5 / n if many else None
    return Scores(100 * right / n, top5, loss_sum / n, n, float(speed), tuple(summed(exits).tolist()))


def collect(forward: Callable[[Tensor], Tensor], batches: EvalBatches, place: Place) -> tuple[Tensor, Tensor]:
    """All outputs of a network over a split, and the labels.

    Args:
        forward: Images [B, C, H, W] to anything with B as its last dimension but one, e.g. logits [M, B, K].

    Returns:
        Outputs joined along that dimension and labels [N], float32 on the CPU.
    """
    outputs, labels = [], []
    with torch.inference_mode(), place.autocast():
        for x, target in batches:
            outputs.append(forward(x).float().cpu())
            labels.append(target.cpu())
    return torch.cat(outputs, dim=-2), torch.cat(labels)


def _timed(forward: Callable[[Tensor], Any], x: Tensor, place: Place) -> tuple[Any, float]:
    wait = torch.get_device_module(place.device).synchronize if place.device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    output = forward(x)
    wait()
    return output, time.perf_counter() - start
