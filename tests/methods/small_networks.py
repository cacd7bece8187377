"""What the tests of several methods train: networks of five classes on 8 x 8 grey images."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from kdcompress.models.build import ModelSpec, build

CLASSES = 5


def network(seed: int, spec: str) -> nn.Module:
    """With BatchNorm statistics that are not the initial ones; the caller's own."""
    made, state = _network(seed, spec)
    torch.set_rng_state(state)  # as if it had been made anew
    return copy.deepcopy(made)


@functools.cache
def _network(seed: int, spec: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    model, _ = build(ModelSpec.parse(spec), num_classes=CLASSES, in_chans=1, size=(8, 8))
    with torch.no_grad():
        for _ in range(3):
            model.train()(2 * torch.randn(32, 1, 8, 8) + 1)
    return model, torch.get_rng_state()
