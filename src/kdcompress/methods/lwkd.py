"""LW-KD: learning from a lightweight teacher (arXiv 2005.09163).

From the paper: a small teacher, trained on a synthesized data set with as many classes as the target, whose soft
targets are learned by KD together with an adversarial loss. That its outputs are kept in a bank, and how the
discriminator is built and trained, is our choice. The teacher never sees the student's images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.data import InputAdapter
from kdcompress.methods.base import LogitTask
from kdcompress.options import METHODS

HIDDEN = 128
REAL = 0.9  # label of the teacher's distributions (one-sided label smoothing, Salimans et al. 2016, section 3.4)
DISCRIMINATOR_LR = 1e-3
MOST_ACCURATE = 0.8  # a discriminator that is right more often takes no step, so that the student can follow


class SoftTargetBank(nn.Module):
    """A teacher's logits for M images of every class; a training step draws one for each label.

    Attributes:
        logits: [K, M, K] in half precision; row (y, m) has the teacher's logits for the m-th image of its class y.
        classes: [K], the teacher's class for each class of the target data; at first the identity.
    """

    logits: Tensor
    classes: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits.half())
        self.register_buffer("classes", torch.arange(len(logits), device=logits.device))

    def draw(self, target: Tensor) -> Tensor:
        """Log-probabilities [B, K] for labels [B], each of an image drawn at random.

        A soft target [B, K] (mixup) gets the mixture of those drawn for its two largest classes.
        """
        if target.ndim == 1:
            return self._one(target)
        weights, classes = target.float().topk(2, dim=1)
        parts = torch.stack([self._one(classes[:, rank]) for rank in range(2)])
        shares = (weights / weights.sum(1, keepdim=True)).clamp_min(1e-12).log().T[:, :, None]
        return torch.logsumexp(parts + shares, dim=0)

    def _one(self, labels: Tensor) -> Tensor:
        chosen = torch.randint(self.logits.shape[1], labels.shape, device=labels.device)
        return self.logits[self.classes[labels], chosen][:, self.classes].float().log_softmax(1)

    def entropy(self, temperature: float = 1.0) -> float:
        """Mean entropy of the softened distributions, in nats: 0 where the teacher adds nothing to the label."""
        total = 0.0
        for rows in self.logits:  # by class: all at once would take many times the bank's memory
            log = (rows.float() / temperature).log_softmax(-1)
            total -= float((log.exp() * log).sum(-1).mean())
        return total / len(self.logits)


def paired(draws: Tensor, logits: Tensor, target: Tensor) -> Tensor:
    """The draws of a batch, dealt anew within each class: the surer of its class a student is, the surer the draw.

    Of soft targets that are drawn at random a student can learn no more than their mean over the class, which a
    discriminator tells from the teacher's single outputs (our choice).

    Args:
        draws: [B, K], log-probabilities for the labels in their order.
        logits: [B, K], the student's.
        target: [B], labels.

    Returns:
        [B, K], the rows of ``draws`` in another order.
    """

    def ranked(log: Tensor) -> Tensor:
        """Positions [B] by class, within a class by the probability of that class."""
        order = log.gather(1, target[:, None])[:, 0].argsort()
        return order[target[order].argsort(stable=True)]

    dealt = torch.empty_like(draws)
    dealt[ranked(logits.detach().float().log_softmax(1))] = draws[ranked(draws)]
    return dealt


class Discriminator(nn.Module):
    """Tells the teacher's class distributions from the student's, given the label.

    One that does not see the label is pleased by a student that is sure of any class, of a wrong one as well
    (conditional discriminators for distillation: arXiv 1709.00513).
    """

    def __init__(self, classes: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * classes, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
            nn.Flatten(0),
        )

    def forward(self, distributions: Tensor, labels: Tensor) -> Tensor:
        """Logits [B], above 0 for the teacher's.

        Args:
            distributions: [B, K].
            labels: One-hot or soft, [B, K].
        """
        logits: Tensor = self.layers(torch.cat([distributions, labels], dim=1))
        return logits


class LwKdTask(LogitTask):
    """``(1 - alpha) * CE + alpha * KL_tau + beta * L_adv``, ``L_adv = -log D(softmax(z_S / tau), y)``.

    The soft target of an image is the lightweight teacher's on some image of the same class; within a batch the surest
    goes to the image that the student is surest of (:func:`paired`). Each step also takes one step of D's own
    optimiser, with a cosine schedule, inside the task, so that the training loop need not know of D.

    Args:
        student: Trained.
        bank: Of soft targets, for the student's classes in their order.
        alpha: Weight of the distillation loss.
        temperature: tau.
        logit_loss: In place of KL, a key of :data:`~kdcompress.methods.losses.LOGIT_LOSSES`.
        adversarial_weight: beta; 0 trains no discriminator.
        adversarial_warmup: Share of the training in which beta grows to its value, while D already trains.

    Example:
        >>> task = LwKdTask(student, SoftTargetBank(teacher_logits))
        >>> task(images, labels)["loss"].backward()
    """

    def __init__(
        self,
        student: nn.Module,
        bank: SoftTargetBank,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        alpha: float | None = METHODS["lwkd"].alpha,
        temperature: float | None = METHODS["lwkd"].temperature,
        adversarial_weight: float = 0.0,
        adversarial_warmup: float = 0.1,
        logit_loss: str = "kl",
    ) -> None:
        super().__init__(student, adapter, label_smoothing, alpha=alpha, temperature=temperature, logit_loss=logit_loss)
        self.bank = bank
        self.adversarial_weight, self.adversarial_warmup = adversarial_weight, adversarial_warmup
        self.discriminator = Discriminator(bank.logits.shape[0]) if adversarial_weight else None
        parameters = list(self.discriminator.parameters()) if self.discriminator is not None else []
        self.optimizer = torch.optim.Adam(parameters, DISCRIMINATOR_LR, betas=(0.5, 0.999)) if parameters else None

    def hyperparameters(self) -> dict[str, float]:
        return {**super().hyperparameters(), "bank_size": self.bank.logits.shape[1]}

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images [B, C, H, W] (or other input of the student) and labels [B] or soft targets [B, K]."""
        logits = self.student_logits(input)
        teacher = self.bank.draw(target)
        if target.ndim == 1:
            teacher = paired(teacher, logits, target)
        result = self.distilled(teacher, logits, target)
        if self.discriminator is not None:
            real, fake = (F.softmax(z.float() / self.temperature, dim=1) for z in (teacher, logits))
            with torch.autocast(logits.device.type, enabled=False):
                labels = target.float() if target.ndim == 2 else F.one_hot(target, logits.shape[1]).float()
                result.update(self._train_discriminator(real, fake.detach(), labels))
                self.discriminator.requires_grad_(False)  # the student's loss must not train it
                result["adversarial_loss"] = F.softplus(-self.discriminator(fake, labels)).mean()
                self.discriminator.requires_grad_(True)
            result["loss"] = result["loss"] + self._weight() * result["adversarial_loss"]
        return result

    def _weight(self) -> float:
        """beta at this point of the training."""
        grown = min(self.progress / self.adversarial_warmup, 1.0) if self.adversarial_warmup else 1.0
        return self.adversarial_weight * grown

    def _train_discriminator(self, real: Tensor, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step on distributions [B, K] for labels [B, K]; its loss and accuracy before the step."""
        assert self.discriminator is not None
        assert self.optimizer is not None
        logits = self.discriminator(torch.cat([real, fake]), torch.cat([labels, labels]))
        is_real = torch.cat([torch.ones_like(logits[: len(real)]), torch.zeros_like(logits[len(real) :])])
        loss = F.binary_cross_entropy_with_logits(logits, REAL * is_real)
        accuracy = ((logits.detach() > 0) == (is_real > 0.5)).float().mean()
        if self.training:
            self.optimizer.zero_grad()
            loss.backward()
            _average([accuracy, *(each.grad for each in self.discriminator.parameters() if each.grad is not None)])
            self.optimizer.param_groups[0]["lr"] = DISCRIMINATOR_LR * 0.5 * (1 + math.cos(math.pi * self.progress))
            if accuracy <= MOST_ACCURATE:
                self.optimizer.step()
        return {"discriminator_loss": loss.detach(), "discriminator_accuracy": accuracy}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The state that a checkpoint needs besides the student; the bank itself is computed again by its teacher."""
        state: dict[str, Any] = {"classes": self.bank.classes}
        if self.discriminator is not None and self.optimizer is not None:
            state |= {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state

    def load_task_state(self, state: dict[str, Any] | None, *args: Any, **more: Any) -> None:
        """Restore what :meth:`get_task_state` returned."""
        assert state is not None
        self.bank.classes.copy_(state["classes"])
        if self.discriminator is not None and self.optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.optimizer.load_state_dict(state["optimizer"])


def _average(tensors: Sequence[Tensor]) -> None:
    """Average tensors over all processes, where there are several."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(dist.get_world_size())
