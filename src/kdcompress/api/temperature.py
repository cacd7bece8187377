"""The scale of a student's logits, where its loss leaves that open: one temperature, folded into the classifier.

Temperature scaling (Guo et al. 2017, section 4.2), so that probabilities mean something, to a gate as well. It changes
no prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST, HALVINGS = 1e-3, 1e3, 60


def best_scale(logits: Tensor, labels: Tensor) -> float:
    """The factor of logits ``[N, K]`` with the lowest cross-entropy for labels ``[N]``: 1 over the temperature.

    The cross-entropy is convex in it, so the zero of its derivative is found by bisection. Labels are as uncertain as N
    images can tell (Platt 1999, section 2.2): a network that is right on all of them would else get an infinite factor.
    """
    logits = logits.double()
    count, classes = logits.shape
    doubt = 1 / (count + 2)
    own = logits.gather(1, labels[:, None])[:, 0]
    others = (logits.sum(1) - own) / max(classes - 1, 1)
    own = (1 - doubt) * own + doubt * others
    low, high = LOWEST, HIGHEST
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        slope = float(((middle * logits).softmax(1) * logits).sum(1).mean() - own.mean())
        low, high = (low, middle) if slope > 0 else (middle, high)
    return (low * high) ** 0.5


@torch.no_grad()
def scale_classifier(layers: list[torch.nn.Module], factor: float) -> bool:
    """Multiply what a network's last layers give; False, and nothing is changed, where one is not linear."""
    if not all(isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) for layer in layers):
        return False
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.mul_(factor)
    return True
