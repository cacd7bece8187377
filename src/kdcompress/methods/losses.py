"""Losses on logits that several methods use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

DKD_WEIGHTS = 1.0, 2.0  # target class, others: the authors' for ResNet-56 to ResNet-20; up to 8 for other pairs
TINY = 1e-12
FLOOR = 1e-3  # least norm or deviation to divide by, so that gradients stay bounded where nothing varies yet


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """``KL(softmax(z_T / tau) || softmax(z_S / tau)) * tau^2``, the batch mean (Hinton et al. 2015, section 2).

    Args:
        teacher_logits, student_logits: [B, K].
        temperature: tau; its square keeps the gradient's size comparable between temperatures.
    """
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    student = F.log_softmax(student_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def residual_energy(teacher_logits: Tensor, logits: Tensor) -> Tensor:
    """``E``, the mean over images and classes of ``(z_T - z)^2``: the residual that is left (ResKD; form: our choice).

    Args:
        teacher_logits, logits: [N, K].
    """
    return (teacher_logits - logits).square().mean()


def kl(teacher_logits: Tensor, student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """:func:`kl_divergence` as a logit loss; ignores the labels."""
    return kl_divergence(teacher_logits, student_logits, temperature)


def mse(teacher_logits: Tensor, student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``mean((z_T - z_S)^2)`` of the raw logits [B, K] (Kim et al. 2021, arXiv 2105.08919)."""
    return F.mse_loss(student_logits, teacher_logits)


def dkd(teacher_logits: Tensor, student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Decoupled KD: the target class against the rest, and the rest among themselves (arXiv 2203.08679, equation 7).

    ``a KL(b_T || b_S) + b KL(q_T || q_S)``, times ``tau^2``, batch means: ``b`` is the softmax at tau with all other
    classes merged, ``q`` the softmax without the target class. For soft targets the target class is the most probable.

    Args:
        teacher_logits, student_logits: [B, K], K at least 2.
        target: Labels [B] or soft targets [B, K].
    """
    right = (target.argmax(1) if target.ndim == 2 else target)[:, None]
    others = torch.arange(student_logits.shape[1] - 1, device=right.device).expand(len(right), -1)
    others = others + (others >= right)

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of b [B, 2] and of q [B, K - 1]."""
        log = (logits / temperature).log_softmax(1)
        rest = log.gather(1, others)
        return torch.cat([log.gather(1, right), rest.logsumexp(1, keepdim=True)], 1), rest.log_softmax(1)

    target_class, non_target = (
        F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        for theirs, ours in zip(parts(teacher_logits), parts(student_logits), strict=True)
    )
    return (DKD_WEIGHTS[0] * target_class + DKD_WEIGHTS[1] * non_target) * temperature**2


def dist(teacher_logits: Tensor, student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Pearson correlation within images and within classes (DIST, arXiv 2205.10536).

    ``tau^2 (mean_i (1 - r(p_T[i], p_S[i])) + mean_k (1 - r(p_T[:, k], p_S[:, k])))`` for softmax probabilities at tau
    [B, K] and Pearson's r.
    """
    teacher, student = ((logits / temperature).softmax(1) for logits in (teacher_logits, student_logits))
    return (2 - pearson(teacher, student).mean() - pearson(teacher.T, student.T).mean()) * temperature**2


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of the rows [N, D] of two matrices of probabilities: [N]; 0 where a row does not vary.

    Rows are divided by their means first, because with many classes all probabilities are small.
    """
    one, other = (rows / rows.mean(1, keepdim=True).clamp_min(TINY) - 1 for rows in (one, other))
    return F.cosine_similarity(one, other, eps=FLOOR)


def standardized_kl(teacher_logits: Tensor, student_logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL of logits [B, K] standardized to mean 0 and deviation 1 per image (Sun et al. 2024, arXiv 2403.01427)."""

    def standardized(logits: Tensor) -> Tensor:
        centred = logits - logits.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + FLOOR**2).sqrt()

    return kl_divergence(standardized(teacher_logits), standardized(student_logits), temperature)


LogitLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
LOGIT_LOSSES: dict[str, LogitLoss] = {
    "kl": kl,
    "dkd": dkd,
    "dist": dist,
    "mse": mse,
    "standardized-kl": standardized_kl,
}
