"""Text: which module of the standard library is a passage of source from? LW-KD without a single image::

    cd examples && kdcompress distill --method lwkd --data py:lwkd_text:data --student py:lwkd_text:model --epochs 15

A passage is 128 characters, given to the network as their codes.
"""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import torch
from torch import Tensor, nn

MODULES = ("argparse", "asyncio.base_events", "decimal", "email.message", "http.client", "statistics", "tarfile")
LENGTH, TEST_SHARE = 128, 0.2


class Passages:
    """Non-overlapping passages, the first part of each module for training, the rest for the test."""

    classes = MODULES

    def __init__(self, train: bool) -> None:
        self.codes, self.targets = [], []
        for label, name in enumerate(MODULES):
            text = inspect.getsource(importlib.import_module(name)).encode("ascii", "replace")
            rows = np.frombuffer(text, dtype=np.uint8)[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
            cut = round((1 - TEST_SHARE) * len(rows))
            rows = rows[:cut] if train else rows[cut:]
            self.codes += [torch.from_numpy(row.astype(np.float32)) for row in rows]
            self.targets += [label] * len(rows)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.codes[index], self.targets[index]


class Reader(nn.Module):
    """Characters to vectors, two convolutions, the mean over the passage."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(128, 16)
        self.layers = nn.Sequential(
            nn.Conv1d(16, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(64, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Codes [B, 1, 1, 128] to [B, K]."""
        codes = x.flatten(1).long().clamp(0, 127)
        return self.fc(self.layers(self.embedding(codes).transpose(1, 2)).mean(2))


def data() -> tuple[Passages, Passages]:
    return Passages(train=True), Passages(train=False)


def model(num_classes: int, in_chans: int) -> Reader:
    return Reader(num_classes)
