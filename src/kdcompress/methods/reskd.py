"""ResKD: a res-student learns the residual between the teacher's logits and those of the frozen members before it
(arXiv 2006.04719).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.methods.base import Frozen, FrozenMaps, LogitTask
from kdcompress.methods.losses import residual_energy


class ResidualSum(nn.Module):
    """Weighted logits of the frozen members, plus those of the res-student in training."""

    def __init__(self, members: Frozen, res_student: nn.Module, sum_weight: float) -> None:
        super().__init__()
        self.members, self.res_student, self.sum_weight = members, res_student, sum_weight

    def forward(self, x: Tensor, member_logits: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], and the members' logits [B, K] where cached, to logits [B, K]."""
        before = self.members(x) if member_logits is None else member_logits
        return self.sum_weight * before + self.res_student(x).float()


class ResKdTask(LogitTask):
    """Train one res-student through the sum, or on the residual itself (both: our choice).

    ``kl``: ``(1 - alpha) * CE(z, y) + alpha * KL_tau(z_T, z)``; ``mse``: ``mean((z_T - z)^2)``;
    both with ``z = w s + z_k+1``, where ``s`` are the logits after the members so far.

    Their weight ``w`` grows from 0 to ``sum_weight`` during the warm-up, then stays there (our choice). The residual is
    a weak signal, from which alone a new network hardly learns features. So it first learns as an ordinary student, and
    then the residual. Much of a weak member's logits is error, which the res-student has to undo in a plain sum; with a
    weight below 1 there is less to undo.

    Args:
        res_student: Trained.
        members: The sum of the members so far, frozen; takes the same input as the res-student.
        teacher: Frozen.
        residual_loss: ``kl`` or ``mse``.
        logit_loss: In place of KL, a key of :data:`~kdcompress.methods.losses.LOGIT_LOSSES`.
        sum_weight: ``w`` of the finished cascade, 0 to 1; 1 is the plain sum.
        alpha, temperature, partly_labelled: As for :class:`~kdcompress.methods.kd.KdTask`.
        warmup: Share of the training, 0 to 1. With 0 the classifier should start at zero, so that training starts from
            the sum of the members.
    """

    def __init__(
        self,
        res_student: nn.Module,
        members: Frozen,
        teacher: Frozen,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        residual_loss: str = "kl",
        alpha: float | None = None,
        temperature: float | None = None,
        sum_weight: float = 1.0,
        warmup: float = 0.5,
        logit_loss: str = "kl",
        partly_labelled: bool = False,
    ) -> None:
        super().__init__(
            res_student,
            adapter,
            label_smoothing,
            alpha=alpha,
            temperature=temperature,
            logit_loss=logit_loss,
            partly_labelled=partly_labelled,
        )
        self.members, self.teacher = members, teacher
        self.scale_is_open = False  # the members' logits have one, and the sum is of both
        self.residual_loss, self.sum_weight, self.warmup = residual_loss, sum_weight, warmup

    def hyperparameters(self) -> dict[str, float]:
        of_loss = {} if self.residual_loss == "mse" else super().hyperparameters()
        return {**of_loss, "sum_weight": self.sum_weight}

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"teacher_logits": self.teacher, **self.eval_frozen()}

    def eval_frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"member_logits": self.members}

    def forward(
        self, input: Tensor, target: Tensor, teacher_logits: Tensor | None = None, member_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images [B, C, H, W], labels [B] or soft targets [B, K], and frozen networks' logits [B, K] where cached.

        ``output`` is the sum.
        """
        if teacher_logits is None:
            teacher_logits = self.teacher(input)
        if member_logits is None:
            member_logits = self.members(input)
        logits = self.weight_now() * member_logits + self.student_logits(input)
        energy = residual_energy(teacher_logits, logits)
        if self.residual_loss == "mse":
            return {"loss": energy, "output": logits, "energy": energy}
        return {**self.distilled(teacher_logits, logits, target), "energy": energy}

    def weight_now(self) -> float:
        """``w`` at this point of the training; ``sum_weight`` in eval mode."""
        grown = min(self.progress / self.warmup, 1.0) if self.warmup and self.training else 1.0
        return grown * self.sum_weight

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module:
        return ResidualSum(self.members, super().get_eval_model(module, ema), self.sum_weight)
