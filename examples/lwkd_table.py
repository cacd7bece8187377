"""A table: 13 measurements of a wine to one of three growers. LW-KD without a single image::

cd examples && kdcompress distill --method lwkd --data py:lwkd_table:data --student py:lwkd_table:model --epochs 60
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

Rows = list[tuple[Tensor, int]]


def data() -> tuple[Rows, Rows]:
    """Standardised rows, every third one for the test."""
    found = load_wine()
    fitted = found.data[np.arange(len(found.data)) % 3 > 0]
    x = (found.data - fitted.mean(0)) / fitted.std(0)
    rows = [(torch.tensor(row, dtype=torch.float32), int(label)) for row, label in zip(x, found.target, strict=True)]
    return [row for number, row in enumerate(rows) if number % 3], rows[::3]


def model(num_classes: int, in_chans: int) -> nn.Module:
    """Rows [B, 1, 1, 13] to [B, K]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, num_classes))
