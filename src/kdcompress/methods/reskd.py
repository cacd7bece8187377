"""ResKD: a res-student learns what the frozen members before it still miss (arXiv 2006.04719)."""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.methods.base import Frozen, FrozenMaps, LogitTask
from kdcompress.methods.losses import residual_energy


class ResidualSum(nn.Module):
    """Logits of the frozen members plus those of the network in training."""

    def __init__(self, members: Frozen, res_student: nn.Module) -> None:
        super().__init__()
        self.members, self.res_student = members, res_student

    def forward(self, x: Tensor, member_logits: Tensor | None = None) -> Tensor:
        """Images [B, C, H, W], and the members' logits [B, K] where known, to logits [B, K]."""
        return (self.members(x) if member_logits is None else member_logits) + self.res_student(x).float()


class ResKdTask(LogitTask):
    """Train one res-student through the sum, or on the residual itself (both: our choice).

    ``kl``: ``(1 - alpha) * CE(z, y) + alpha * KL_tau(z_T, z)``; ``mse``: ``mean((z_T - z)^2)``;
    both with ``z = w (z_0 + … + z_k) + z_k+1``.

    The members' weight ``w`` grows from 0 to 1 during the warm-up, then stays 1 (our choice). A residual is a faint
    signal: a new network that has nothing else to go by hardly learns features at all. So it first learns as a student
    of its own, and then what the others leave.

    Args:
        res_student: Trained.
        members: The sum so far, frozen; takes the same input as the res-student.
        teacher: Frozen.
        residual_loss: ``kl`` or ``mse``.
        logit_loss: In place of KL, a key of :data:`~kdcompress.methods.losses.LOGIT_LOSSES`.
        warmup: Share of the training, 0 to 1. With 0 the classifier should start at zero: the sum starts as it was.
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
        warmup: float = 0.5,
        logit_loss: str = "kl",
    ) -> None:
        super().__init__(
            res_student, adapter, label_smoothing, alpha=alpha, temperature=temperature, logit_loss=logit_loss
        )
        self.members, self.teacher = members, teacher
        self.residual_loss, self.warmup = residual_loss, warmup

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"teacher_logits": self.teacher, **self.eval_frozen()}

    def eval_frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"member_logits": self.members}

    def forward(
        self, input: Tensor, target: Tensor, teacher_logits: Tensor | None = None, member_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images [B, C, H, W], labels [B] or soft targets [B, K], and what the frozen networks say [B, K] where known.

        ``output`` is the sum.
        """
        if teacher_logits is None:
            teacher_logits = self.teacher(input)
        if member_logits is None:
            member_logits = self.members(input)
        logits = self.members_weight() * member_logits + self.student_logits(input)
        energy = residual_energy(teacher_logits, logits)
        if self.residual_loss == "mse":
            return {"loss": energy, "output": logits, "energy": energy}
        return {**self.distilled(teacher_logits, logits, target), "energy": energy}

    def members_weight(self) -> float:
        """``w`` at this point of the training; 1 in eval mode."""
        return min(self.progress / self.warmup, 1.0) if self.warmup and self.training else 1.0

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module:
        return ResidualSum(self.members, super().get_eval_model(module, ema))
