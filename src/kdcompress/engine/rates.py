"""Default learning rate and weight decay of each family of timm's optimisers (our choice).

By short trainings of a small ResNet, ``examples/studies/optimizer_rates.py``: rates near a family's best. Adam and its
like keep the usual 0.001, which is low for so short a training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BASE_BATCH = 128  # images


@dataclass(frozen=True)
class Rate:
    """Of a family of optimisers.

    Attributes:
        lr: For batches of 128.
        weight_decay: Where it is part of the gradient, less than where it is decoupled.
        linear: Whether the rate is proportional to the batch (Goyal et al. 2017). That of adaptive optimisers grows
            with the square root of larger batches (Malladi et al. 2022) and stays the same for smaller ones: small data
            sets have few steps.
    """

    lr: float
    weight_decay: float = 0.05
    linear: bool = False

    def at(self, batch: float) -> float:
        """The learning rate for batches of so many images."""
        times = batch / BASE_BATCH
        return self.lr * (times if self.linear else math.sqrt(max(times, 1.0)))


SGD = Rate(0.1, 5e-4, linear=True)
ADAPTIVE = Rate(1e-3)
# by a part of the name; the first that fits
FAMILIES = {
    "muon": Rate(0.01),
    "lion": Rate(1e-3),
    "adan": Rate(5e-3),
    "lars": Rate(3.0, 5e-4, linear=True),
    "larc": Rate(0.1, 5e-4, linear=True),
    "lamb": Rate(0.01),
    "sgd": SGD,
    "momentum": SGD,
    "nesterov": SGD,
    "adadelta": Rate(1.0),
    "adagrad": Rate(0.03),
    "adafactorbv": Rate(3e-3),
    "novograd": Rate(0.01),
}


def rate_of(opt: str) -> Rate:
    """The rate of one of timm's optimisers."""
    name = opt.split("_")[-1]
    return next((rate for part, rate in FAMILIES.items() if part in name), ADAPTIVE)
