"""Accuracy, loss and speed of a network on a split."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.data import EvalBatches, RawBatches
from kdcompress.engine.distributed import Place, summed
from kdcompress.engine.targets import CachedEval, unpacked

BINS = 15
ENOUGH = 5.0  # seconds that were timed: after them, each batch is run once (our choice)


@dataclass(frozen=True)
class Scores:
    """Accuracy, loss and speed of a network on a split.

    Attributes:
        top1, top5: Percent; ``top5`` is None with five classes or fewer.
        loss: Mean cross-entropy.
        ece: Expected calibration error in percent: how far confidence and accuracy are apart, over 15 equal bins of
            confidence (Guo et al. 2017, equation 3).
        n: Images.
        images_per_second: Of the network alone, over all processes; without data loading and warm-up.
        exits: Of a gated network, how many images stopped after each member.
    """

    top1: float
    top5: float | None
    loss: float
    ece: float
    n: int
    images_per_second: float
    exits: tuple[int, ...] = ()

    def rounded(self) -> dict[str, Any]:
        """``n``, ``top1``, ``top5`` and ``loss`` as results hold them."""
        top5 = None if self.top5 is None else round(self.top5, 4)
        return {"n": self.n, "top1": round(self.top1, 4), "top5": top5, "loss": round(self.loss, 6)}


def evaluate(
    forward: Callable[..., Tensor], batches: EvalBatches | CachedEval, place: Place, *, passes: int = 1
) -> Scores:
    """Run a network over a split.

    Args:
        forward: Images [B, C, H, W], and the batches' cached targets if they have any, to logits [B, K], in eval mode,
            on the device.
        passes: How often a batch is run until 5 s were timed; the fastest pass counts for the speed.
    """
    return compare([forward], batches, place, passes=passes)[0]


def compare(
    forwards: Sequence[Callable[..., Any]],
    batches: EvalBatches | CachedEval | RawBatches,
    place: Place,
    *,
    passes: int = 1,
    exits: Sequence[int] = (0,),
) -> list[Scores]:
    """Run several networks over a split, taking turns on each batch, so that a busy machine slows all of them alike.

    Args:
        forwards: As for :func:`evaluate`; of a gated network to logits and the member where each image stopped [B].
        passes: As for :func:`evaluate`.
        exits: For each of them, how many exits it has if it is gated, else 0.
    """
    tallies = [_Tally(place, count) for count in exits]
    with torch.inference_mode(), place.autocast():
        for number, (x, target, cached) in enumerate(map(unpacked, batches)):
            if number == 0:
                for forward in forwards:
                    forward(x, **cached)  # warm-up
            again = passes if sum(tally.seconds for tally in tallies) < ENOUGH else 1
            runs = [[timed(partial(forward, **cached), x, place) for forward in forwards] for _ in range(again)]
            for position, tally in enumerate(tallies):
                tally.add(runs[0][position][0], target, min(run[position][1] for run in runs))
    return [tally.scores() for tally in tallies]


class _Tally:
    """Sums over the batches of a split."""

    def __init__(self, place: Place, exits: int) -> None:
        self.place, self.gated = place, exits > 0
        self.sums = torch.zeros(4, dtype=place.sum_dtype, device=place.device)
        self.bins = torch.zeros(3, BINS, dtype=place.sum_dtype, device=place.device)
        self.exits = torch.zeros(exits, dtype=torch.long, device=place.device)
        self.seconds, self.timed, self.has_top5 = 0.0, 0, False

    def add(self, output: Any, target: Tensor, seconds: float) -> None:
        if self.gated:
            output, stopped = output
            self.exits += torch.bincount(stopped, minlength=len(self.exits))
        logits = output.float()
        self.seconds, self.timed, self.has_top5 = self.seconds + seconds, self.timed + len(logits), logits.shape[1] > 5
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        loss = nn.functional.cross_entropy(logits, target, reduction="sum")
        confidence = logits.softmax(1).amax(1)
        values = torch.stack([confidence, top[:, 0].float(), torch.ones_like(confidence)]).to(self.bins.dtype)
        self.bins.index_add_(1, (confidence * BINS).nan_to_num().long().clamp(0, BINS - 1), values)
        count = torch.tensor(len(logits), device=logits.device)
        self.sums += torch.stack([top[:, 0].sum(), top.any(1).sum(), loss, count]).to(self.sums.dtype)

    def scores(self) -> Scores:
        speed = torch.tensor(self.timed / self.seconds if self.seconds else 0.0, device=self.place.device)
        images_per_second = float(summed(speed))
        right, right5, loss_sum, total = summed(self.sums).tolist()
        n = max(int(total), 1)
        top5 = 100 * right5 / n if self.has_top5 else None
        confidence, correct, _ = summed(self.bins)
        ece = 100 * float((confidence - correct).abs().sum()) / n
        exits = tuple(summed(self.exits).tolist())
        return Scores(100 * right / n, top5, loss_sum / n, ece, n, images_per_second, exits)


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


def timed(forward: Callable[[Tensor], Any], x: Tensor, place: Place) -> tuple[Any, float]:
    """The output of a forward pass, and its seconds: the host waits for the device before and after it."""
    wait = torch.get_device_module(place.device).synchronize if place.device.type != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    output = forward(x)
    wait()
    return output, time.perf_counter() - start
