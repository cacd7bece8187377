"""Training on labels: plain, with label smoothing, or with a hand-made teacher distribution."""

from __future__ import annotations

import math

from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.methods.base import LogitTask, StudentTask
from kdcompress.options import METHODS


class SupervisedTask(StudentTask):
    """Cross-entropy, optionally with label smoothing (Szegedy et al. 2016). Also trains teachers."""

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] and labels [B] or soft targets [B, K]."""
        logits = self.student_logits(input)
        return {"loss": self.cross_entropy(logits, target), "output": logits}


class TfKdTask(LogitTask):
    """Teacher-free KD: a hand-made distribution is the teacher (Tf-KD, Yuan et al. 2020, section 4.2).

    ``(1 - alpha) * CE + alpha * KL_tau``, where the teacher gives 0.99 to the correct class and the rest to all others.

    Args:
        alpha: Weight of the hand-made teacher (the paper's 0.1).
        temperature: tau (the paper's 20).
    """

    CORRECT = 0.99

    def __init__(
        self,
        student: nn.Module,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        alpha: float | None = METHODS["tf-kd"].alpha,
        temperature: float | None = METHODS["tf-kd"].temperature,
    ) -> None:
        super().__init__(student, adapter, label_smoothing, alpha=alpha, temperature=temperature)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] and labels [B] or soft targets [B, K]."""
        logits = self.student_logits(input)
        classes = logits.shape[1]
        soft = target if target.ndim == 2 else nn.functional.one_hot(target, classes)
        wrong = math.log((1 - self.CORRECT) / (classes - 1))
        virtual = wrong + (math.log(self.CORRECT) - wrong) * soft.float()
        return self.distilled(virtual, logits, target)
