"""LW-KD: soft targets that follow the label and vary, and a discriminator that the student can fool."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.methods.losses import kl_divergence
from kdcompress.methods.lwkd import DISCRIMINATOR_LR, MOST_ACCURATE, Discriminator, LwKdTask, SoftTargetBank, paired

CLASSES, IMAGES = 5, 7


def bank() -> SoftTargetBank:
    """Logits that are correct, each different."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(CLASSES, IMAGES, CLASSES, generator=generator)
    logits[torch.arange(CLASSES), :, torch.arange(CLASSES)] += 6
    return SoftTargetBank(logits)


def task(**given: float) -> LwKdTask:
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(6, CLASSES))
    return LwKdTask(student, bank(), **{"adversarial_weight": 0.1, **given})  # type: ignore[arg-type]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(64, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(64) % CLASSES


def test_targets_follow_the_label_and_vary(y: Tensor) -> None:
    """One fixed target a class would be label smoothing; one that ignores the label would be noise."""
    torch.manual_seed(0)
    drawn = bank().draw(y)
    torch.testing.assert_close(drawn.exp().sum(1), torch.ones(64))
    assert (drawn.argmax(1) == y).all()
    for label in range(CLASSES):
        rows = drawn[y == label]
        assert len(rows.unique(dim=0)) > 1, "all images of a class get one target"
        answers = bank().logits[label].float().log_softmax(1)
        assert all((row == answers).all(1).any() for row in rows), "a target is not one of the teacher's answers"
    torch.manual_seed(0)
    assert torch.equal(bank().draw(y), drawn), "a replayed step draws other targets"


def test_every_entry_of_the_bank_is_drawn() -> None:
    """Else part of the bank is never used."""
    torch.manual_seed(0)
    drawn = bank().draw(torch.zeros(500, dtype=torch.long))
    assert len(drawn.unique(dim=0)) == IMAGES


def test_classes_are_mapped_there_and_back() -> None:
    """Else a mapped bank teaches one class and scores another."""
    made = bank()
    made.classes = torch.tensor([2, 0, 1, 4, 3])
    labels = torch.arange(CLASSES)
    assert torch.equal(made.draw(labels).argmax(1), labels)
    torch.manual_seed(0)
    mapped = made.draw(labels)
    torch.manual_seed(0)
    plain = bank().draw(made.classes)
    torch.testing.assert_close(mapped, plain[:, made.classes])


def test_mixed_labels_get_mixed_targets() -> None:
    """Else mixup cannot be used with it."""
    torch.manual_seed(0)
    soft = torch.zeros(2000, CLASSES)
    soft[:, 1], soft[:, 3] = 0.7, 0.3
    mean = bank().draw(soft).exp().mean(0)
    answers = bank().logits.float().softmax(-1).mean(1)
    torch.testing.assert_close(mean, 0.7 * answers[1] + 0.3 * answers[3], atol=0.01, rtol=0)


def test_the_loss_is_the_sum_of_its_parts(x: Tensor, y: Tensor) -> None:
    """The formula of the method, with nothing left out."""
    made = task(alpha=0.3, temperature=2.0, adversarial_weight=0.7, adversarial_warmup=0.0).eval()
    torch.manual_seed(5)
    found = made(x, y)
    torch.manual_seed(5)
    logits = made.trainable_module(x)
    teacher = paired(made.bank.draw(y), logits, y)
    ce, kd = F.cross_entropy(logits, y), kl_divergence(teacher, logits, 2.0)
    assert made.discriminator is not None
    labels = torch.eye(logits.shape[1])[y]
    adversarial = -torch.sigmoid(made.discriminator((logits / 2).softmax(1), labels)).log().mean()
    torch.testing.assert_close(found["loss"], 0.7 * ce + 0.3 * kd + 0.7 * adversarial)
    assert found["discriminator_accuracy"].item() == pytest.approx(
        0.5 * float((made.discriminator((teacher / 2).softmax(1), labels) > 0).float().mean())
        + 0.5 * float((made.discriminator((logits / 2).softmax(1), labels) <= 0).float().mean())
    )


def test_the_adversarial_weight_grows(x: Tensor, y: Tensor) -> None:
    """At full weight an untrained discriminator would pull the student anywhere."""
    made = task(adversarial_weight=0.5, adversarial_warmup=0.2)
    weights = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        made.progress = progress
        found = made(x, y)
        rest = 0.5 * found["task_loss"] + 0.5 * found["kd_loss"]
        weights.append(((found["loss"] - rest) / found["adversarial_loss"]).item())
    assert weights == pytest.approx([0, 0.25, 0.5, 0.5], abs=1e-4)


def test_each_learns_from_its_own_loss(x: Tensor, y: Tensor) -> None:
    """With swapped losses the discriminator would learn to fail, or the student to be recognized."""
    made = task(alpha=0.0, adversarial_warmup=0.0)
    assert made.discriminator is not None
    before = [value.clone() for value in made.discriminator.parameters()]
    found = made(x, y)
    found["loss"].backward()
    moved = [
        float((new - old).detach().abs().max())
        for new, old in zip(made.discriminator.parameters(), before, strict=True)
    ]
    assert max(moved) == pytest.approx(DISCRIMINATOR_LR, rel=0.01), "one step of Adam moves a weight by the rate"
    own = [parameter.grad.clone() for parameter in made.discriminator.parameters() if parameter.grad is not None]
    made.trainable_module.zero_grad()
    made.eval()
    made(x, y)["adversarial_loss"].backward()
    still = [parameter.grad for parameter in made.discriminator.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(own, still, strict=True)), "the student's loss reached D's weights"
    assert any(parameter.grad.abs().sum() > 0 for parameter in made.trainable_module.parameters())
    assert all(parameter.requires_grad for parameter in made.discriminator.parameters())


def test_the_discriminator_learns_and_is_fooled(x: Tensor, y: Tensor) -> None:
    """The simplest case must work: first D tells them apart, then the student follows the teacher."""
    made = task(alpha=0.0, temperature=1.0, adversarial_weight=20.0, adversarial_warmup=0.0)
    optimizer = torch.optim.Adam(made.trainable_module.parameters(), lr=0.02)
    accuracy, entropies = [], []
    for step in range(600):
        torch.manual_seed(step)
        made.progress = 0.0
        found = made(x, y)
        if step >= 150:  # D alone at first
            optimizer.zero_grad()
            found["loss"].backward()
            optimizer.step()
        log = found["output"].detach().log_softmax(1)
        accuracy.append(float(found["discriminator_accuracy"]))
        entropies.append(float(-(log.exp() * log).sum(1).mean()))
    assert 0.7 < sum(accuracy[100:150]) / 50 < 0.9, "it waits where it is right too often"
    assert sum(accuracy[-50:]) / 50 < 0.9
    assert abs(entropies[-1] - bank().entropy()) < 0.5 * abs(entropies[100] - bank().entropy())


def test_a_discriminator_that_is_nearly_always_right_waits(x: Tensor, y: Tensor) -> None:
    """A student learns nothing from one that it cannot fool."""
    made = task(alpha=0.0, adversarial_warmup=0.0)
    assert made.discriminator is not None
    assert made.optimizer is not None
    made.trainable_module.requires_grad_(False)
    for step in range(300):
        torch.manual_seed(step)
        before = [each.clone() for each in made.discriminator.parameters()]
        accurate = bool(made(x, y)["discriminator_accuracy"] > MOST_ACCURATE)
        same = all(torch.equal(old, new) for old, new in zip(before, made.discriminator.parameters(), strict=True))
        assert same == accurate
    assert accurate


def test_the_surest_image_gets_the_surest_draw() -> None:
    """Every image would learn the mean of its class, and the draws be noise."""
    torch.manual_seed(0)
    target = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2])
    draws, logits = torch.randn(8, 3).log_softmax(1), torch.randn(8, 3)
    dealt = paired(draws, logits, target)
    for label in range(3):
        mine = target == label
        sure, drawn = logits[mine].softmax(1)[:, label], dealt[mine][:, label]
        assert torch.equal(sure.argsort(), drawn.argsort())
        assert torch.equal(drawn.sort().values, draws[mine][:, label].sort().values), "each draw is used once"
    assert torch.equal(paired(draws[:1], logits[:1], target[:1]), draws[:1])


def test_without_weight_there_is_no_discriminator(x: Tensor, y: Tensor) -> None:
    """The ablation would pay for a discriminator that it does not use."""
    made = task(adversarial_weight=0.0)
    assert made.discriminator is None
    assert made(x, y).keys() == {"loss", "output", "task_loss", "kd_loss"}
    made.load_task_state(made.get_task_state())


def test_the_state_includes_the_discriminator(x: Tensor, y: Tensor) -> None:
    """A resumed run would continue with a new discriminator."""
    whole, cut = task(), task()
    cut.bank.classes = whole.bank.classes = torch.tensor([1, 0, 2, 3, 4])
    for step in range(6):
        torch.manual_seed(step)
        whole(x, y)
        if step < 3:
            torch.manual_seed(step)
            cut(x, y)
    resumed = task()
    resumed.load_task_state(cut.get_task_state())
    assert torch.equal(resumed.bank.classes, whole.bank.classes)
    for step in range(3, 6):
        torch.manual_seed(step)
        resumed(x, y)
    assert resumed.discriminator is not None
    assert whole.discriminator is not None
    for ours, theirs in zip(resumed.discriminator.parameters(), whole.discriminator.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_rate_of_the_discriminator_falls(x: Tensor, y: Tensor) -> None:
    """With a constant learning rate the discriminator would keep changing when the student hardly does."""
    made, rates = task(), []
    assert made.optimizer is not None
    for progress in (0.0, 0.5, 0.999):
        made.progress = progress
        made(x, y)
        rates.append(made.optimizer.param_groups[0]["lr"] / DISCRIMINATOR_LR)
    assert rates == pytest.approx([1, 0.5, 0], abs=1e-3)


def test_the_discriminator_works_for_any_number_of_classes() -> None:
    assert Discriminator(1000)(torch.rand(3, 1000), torch.rand(3, 1000)).shape == (3,)


def test_the_discriminator_knows_the_label() -> None:
    """A student that is sure of a wrong class would please it as one that is sure of the right one."""
    torch.manual_seed(0)
    made = Discriminator(5)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(200):
        labels = torch.eye(5)[torch.randint(5, (64,))]
        right, wrong = 0.8 * labels + 0.04, 0.8 * labels.roll(1, dims=1) + 0.04
        logits = made(torch.cat([right, wrong]), torch.cat([labels, labels]))
        is_right = torch.arange(128) < 64
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, is_right.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((logits > 0) == is_right).float().mean() > 0.95


def test_the_entropy_is_between_zero_and_log_k() -> None:
    """Zero where the teacher adds nothing to the label, log K where it is uniform."""
    sure = torch.full((CLASSES, 2, CLASSES), -100.0)
    sure[torch.arange(CLASSES), :, torch.arange(CLASSES)] = 100
    assert SoftTargetBank(sure).entropy() == pytest.approx(0, abs=1e-3)
    assert SoftTargetBank(torch.zeros(CLASSES, 2, CLASSES)).entropy() == pytest.approx(math.log(CLASSES), abs=1e-3)
