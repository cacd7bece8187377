"""Losses on logits, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdcompress.methods.losses import kl_divergence, residual_energy


def naive_kl(teacher: list[list[float]], student: list[list[float]], tau: float) -> float:
    """KL(softmax(p / tau) || softmax(q / tau)) * tau^2, batch mean, in plain Python."""

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        weights = [math.exp((value - top) / tau) for value in row]
        return [weight / sum(weights) for weight in weights]

    total = 0.0
    for ours, theirs in zip(teacher, student, strict=True):
        p, q = softmax(ours), softmax(theirs)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(teacher) * tau**2


@pytest.mark.parametrize("tau", [1.0, 4.0, 20.0])
def test_kl_is_the_formula(tau: float) -> None:
    """Another reduction or direction is another method: results would not compare with the literature."""
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(6, 5), 3 * torch.randn(6, 5)
    found = kl_divergence(teacher, student, tau)
    assert float(found) == pytest.approx(naive_kl(teacher.tolist(), student.tolist(), tau), rel=1e-5)
    p, q = (teacher / tau).softmax(1), (student / tau).softmax(1)
    expected = F.kl_div(q.log(), p, reduction="batchmean") * tau**2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_kl_is_zero_only_for_the_same_distribution() -> None:
    """A student that has reached its teacher must not be pushed on."""
    logits = torch.randn(4, 3)
    assert float(kl_divergence(logits, logits + 5, 2.0)) == pytest.approx(0, abs=1e-6)
    assert float(kl_divergence(logits, -logits, 2.0)) > 0.01


def test_kl_survives_extreme_logits() -> None:
    """A very sure teacher must not end the training with a NaN."""
    found = kl_divergence(torch.tensor([[1e4, -1e4]]), torch.tensor([[-50.0, 50.0]]), 1.0)
    assert torch.isfinite(found)
    assert float(found) == pytest.approx(100.0, rel=1e-4)


def test_tau_squared_keeps_the_size_of_the_gradient() -> None:
    """Without it alpha would mean something else at every temperature."""
    torch.manual_seed(0)
    teacher, base = torch.randn(16, 10), torch.randn(16, 10)

    def gradient(tau: float) -> torch.Tensor:
        student = base.clone().requires_grad_()
        kl_divergence(teacher, student, tau).backward()
        assert student.grad is not None
        return student.grad

    # Hinton et al. 2015, equation 4: for high temperatures (z - v) / K of centred logits, whatever tau is
    limit = ((base - base.mean(1, True)) - (teacher - teacher.mean(1, True))) / 10 / 16
    torch.testing.assert_close(gradient(1e3), limit, rtol=1e-2, atol=1e-5)
    assert float(gradient(100.0).norm() / gradient(1e3).norm()) == pytest.approx(1, rel=0.02)


def test_energy_is_the_mean_square() -> None:
    """The energy says when to stop adding res-students; a sum over classes would depend on their number."""
    teacher, logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    assert float(residual_energy(teacher, logits)) == (0 + 4 + 9 + 0) / 4
    assert float(residual_energy(logits, logits)) == 0
