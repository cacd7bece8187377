"""Knowledge distillation on logits (Hinton, Vinyals, Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.methods.base import Frozen, FrozenMaps, LogitTask


class KdTask(LogitTask):
    """``(1 - alpha) * CE(z_S, y) + alpha * KL_tau(z_T, z_S)``.

    Args:
        student: Trained.
        teacher: Frozen, with as many classes as the student.
        alpha, temperature: Weight of the distillation loss, and tau; None: the defaults of that loss.
        logit_loss: In place of KL, a key of :data:`~kdcompress.methods.losses.LOGIT_LOSSES`.
        partly_labelled: As for :class:`~kdcompress.methods.base.LogitTask`.

    Example:
        >>> task = KdTask(student, Frozen(teacher), alpha=0.9, temperature=4)
        >>> task(images, labels)["loss"].backward()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Frozen,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        alpha: float | None = None,
        temperature: float | None = None,
        logit_loss: str = "kl",
        partly_labelled: bool = False,
    ) -> None:
        super().__init__(
            student,
            adapter,
            label_smoothing,
            alpha=alpha,
            temperature=temperature,
            logit_loss=logit_loss,
            partly_labelled=partly_labelled,
        )
        self.teacher = teacher

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"teacher_logits": self.teacher}

    def forward(self, input: Tensor, target: Tensor, teacher_logits: Tensor | None = None) -> dict[str, Tensor]:
        """Images [B, C, H, W], labels [B] or soft targets [B, K], and the teacher's logits [B, K] where cached."""
        if teacher_logits is None:
            teacher_logits = self.teacher(input)
        return self.distilled(teacher_logits, self.student_logits(input), target)
