"""What all methods share: a trainable network, and frozen ones beside it, as one of timm's training tasks."""

from __future__ import annotations

from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.models.fold import fold_batchnorm


class Frozen(nn.Module):
    """A network that only tells: eval mode, no gradients, logits in float32.

    Args:
        model: Kept as it is; what runs is a copy with BatchNorm folded, where the network allows it.
        adapter: From the batches' preprocessing to this network's.
    """

    def __init__(self, model: nn.Module, adapter: InputAdapter | None = None) -> None:
        super().__init__()
        self.model = fold_batchnorm(model.eval()).requires_grad_(False).to(memory_format=torch.channels_last)
        self.adapter = adapter

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K]."""
        return self.model(x if self.adapter is None else self.adapter(x)).float()


class StudentTask(TrainingTask):
    """A network that is trained by some loss; subclasses say which.

    Args:
        student: Trained; logits [B, K].
        adapter: From the batches' preprocessing to the student's, where they differ.
        label_smoothing: Of the cross-entropy.
    """

    def __init__(self, student: nn.Module, adapter: InputAdapter | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.trainable_module = student
        self.adapter = adapter
        self.label_smoothing = label_smoothing

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp: Any) -> StudentTask:
        self.trainable_module = nn.parallel.DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp)
        return self

    def student_logits(self, x: Tensor) -> Tensor:
        return self.trainable_module(x if self.adapter is None else self.adapter(x)).float()

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Batch mean for labels [B] or soft targets [B, K] (mixup)."""
        return nn.functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module:
        """What is scored on the calibration split: takes the batches as the task does."""
        student = unwrap_model(module or self.get_trainable_module(ema=ema))
        return student if self.adapter is None else nn.Sequential(self.adapter, student)
