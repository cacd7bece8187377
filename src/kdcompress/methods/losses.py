"""Losses on logits that several methods use."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


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
    """``E``, the mean over images and classes of ``(z_T - z)^2``: what the sum still misses (ResKD; form: our choice).

    Args:
        teacher_logits, logits: [N, K].
    """
    return (teacher_logits - logits).square().mean()
