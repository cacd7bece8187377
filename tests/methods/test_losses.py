"""Losses on logits, against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdcompress import options
from kdcompress.methods.losses import LOGIT_LOSSES, dist, dkd, kl_divergence, mse, residual_energy, standardized_kl


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
def test_kl_follows_the_formula(tau: float) -> None:
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


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A teacher's and a student's [6, 5], and labels."""
    random = torch.Generator().manual_seed(0)
    teacher, student = 3 * torch.randn(2, 6, 5, generator=random)
    return teacher, student, torch.tensor([0, 1, 2, 3, 4, 0])


def test_the_options_know_every_loss() -> None:
    """One could not be chosen, or would fail after the data were loaded."""
    assert tuple(LOGIT_LOSSES) == tuple(options.LOGIT_LOSSES)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_every_loss_is_least_at_the_teachers_logits(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], name: str
) -> None:
    """A student would be led away from its teacher."""
    teacher, student, labels = logits
    student.requires_grad_()
    loss = LOGIT_LOSSES[name](teacher, student, labels, 4.0)
    loss.backward()
    assert float(LOGIT_LOSSES[name](teacher, teacher, labels, 4.0)) == pytest.approx(0, abs=1e-5)
    assert loss > 0.01
    assert student.grad is not None
    nearer = (student - 1e-3 * student.grad / student.grad.norm()).detach()
    assert LOGIT_LOSSES[name](teacher, nearer, labels, 4.0) < loss


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_no_loss_breaks_on_extreme_logits(name: str) -> None:
    """One NaN ends a training."""
    teacher = torch.tensor([[80.0, -80.0, 0.0], [3.0, 3.0, 3.0]])
    student = torch.tensor([[-80.0, 80.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    loss = LOGIT_LOSSES[name](teacher, student, torch.tensor([0, 1]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_dkd_with_the_weights_of_kd_is_kd(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decomposition is exact: KL = TCKD + (1 - p_T[y]) NCKD, image by image, as the paper shows."""
    for teacher, student, label in zip(*logits, strict=True):
        rest = 1 - float((teacher / 4).softmax(0)[label])
        monkeypatch.setattr("kdcompress.methods.losses.DKD_WEIGHTS", (1.0, rest))
        found = dkd(teacher[None], student[None], label[None], 4.0)
        torch.testing.assert_close(found, kl_divergence(teacher[None], student[None], 4.0), rtol=1e-4, atol=1e-5)


def test_dkd_takes_the_likeliest_of_soft_targets(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """With mixup it would fail, or take a class that hardly is in the image."""
    teacher, student, labels = logits
    soft = 0.6 * F.one_hot(labels, 5) + 0.4 / 5
    torch.testing.assert_close(dkd(teacher, student, soft, 4.0), dkd(teacher, student, labels, 4.0))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_no_loss_remains_at_a_teacher_with_many_classes(name: str) -> None:
    """Most of a thousand probabilities are tiny: too large a floor would remove their term."""
    teacher = 5 * torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    labels = teacher.argmax(1)
    assert float(LOGIT_LOSSES[name](teacher, teacher, labels, 1.0)) == pytest.approx(0, abs=1e-4)
    assert float(LOGIT_LOSSES[name](teacher, -teacher, labels, 1.0)) > 1


def test_dist_is_correlation_within_images_and_within_classes(
    logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Along the wrong axis it would be another method."""
    teacher, student, labels = logits
    p, q = ((each / 2).softmax(1).double().numpy() for each in (teacher, student))
    images = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    classes = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    assert float(dist(teacher, student, labels, 2.0)) == pytest.approx(4 * (images + classes), rel=1e-4)


def test_standardized_kl_ignores_scale_and_shift(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """What the method is for: a small student need not reach its teacher's range."""
    teacher, student, labels = logits
    found = standardized_kl(teacher, student, labels, 2.0)
    torch.testing.assert_close(standardized_kl(teacher, 3 * student + 7, labels, 2.0), found)
    ours, theirs = ((z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0) for z in (student, teacher))
    torch.testing.assert_close(found, kl_divergence(theirs, ours, 2.0))


def test_mse_compares_raw_logits(logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """Softened, it would be another loss for every temperature."""
    teacher, student, labels = logits
    assert mse(teacher, student, labels, 1.0) == mse(teacher, student, labels, 9.0) == residual_energy(teacher, student)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_gradients_are_bounded_where_nothing_varies(name: str) -> None:
    """A network with equal logits for all classes, as at its start, would diverge in a single step."""
    random = torch.Generator().manual_seed(0)
    teacher, labels = torch.randn(8, 10, generator=random), torch.arange(8)
    for flat in (torch.zeros(8, 10), torch.full((8, 10), 0.3)):
        student = flat.requires_grad_()
        LOGIT_LOSSES[name](teacher, student, labels, 4.0).backward()
        assert student.grad is not None
        assert student.grad.abs().max() < 1000
