"""A batch for the networks of ``small_networks``."""

from __future__ import annotations

import pytest
import torch
from small_networks import CLASSES
from torch import Tensor


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(16, 1, 8, 8)


@pytest.fixture
def y() -> Tensor:
    return torch.arange(16) % CLASSES
