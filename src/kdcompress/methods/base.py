"""What all methods share: a trained network and frozen ones beside it, as a timm training task."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress import options
from kdcompress.data import InputAdapter
from kdcompress.methods.features import FeatureStage, final_and_maps
from kdcompress.methods.losses import LOGIT_LOSSES
from kdcompress.models.fold import fold_batchnorm
from kdcompress.training_task import TrainingTask, unwrapped

Outputs = tuple[Tensor, Tensor | None, list[Tensor]]  # logits [B, K], features [B, D], feature maps [B, C, h, w]


class Frozen(nn.Module):
    """A frozen network: eval mode, no gradients, logits in float32.

    Attributes:
        exact: Whether to run in float32 whatever the precision of the training; for networks whose predictions change
            in lower precision.

    Args:
        model: Not modified; a copy with folded BatchNorm runs, where the network allows it.
        adapter: Converts from the preprocessing of the batches to that of this network.
    """

    def __init__(self, model: nn.Module, adapter: InputAdapter | None = None) -> None:
        super().__init__()
        self.model = fold_batchnorm(model.eval()).requires_grad_(False).to(memory_format=torch.channels_last)
        self.adapter = adapter
        self.exact = False

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K]."""
        with self._precision(x):
            return self.model(x if self.adapter is None else self.adapter(x)).float()

    @torch.no_grad()
    def observe(self, x: Tensor, stages: Sequence[FeatureStage], features: bool = False) -> Outputs:
        """Images [B, C, H, W] to logits [B, K], the classifier's input [B, D] if asked for, and maps [B, C, h, w].

        Args:
            stages: Feature stages at which to take maps.
            features: Whether to return the classifier's input; else it is None.
        """
        with self._precision(x):
            final, maps = final_and_maps(self.model, x if self.adapter is None else self.adapter(x), stages)
            head: Any = self.model.forward_head
            return head(final).float(), head(final, pre_logits=True).float() if features else None, maps

    def _precision(self, x: Tensor) -> Any:
        return torch.autocast(x.device.type, enabled=False) if self.exact else contextlib.nullcontext()


class FrozenMaps(nn.Module):
    """Logits and feature maps of a frozen network as one row per image, so that they can be cached as logits are.

    Args:
        network: The frozen network.
        stages: Feature stages at which maps are taken.
        size: (C, H, W) of the batches.
        features: Whether rows also hold the input of the classifier.
    """

    def __init__(
        self, network: Frozen, stages: Sequence[FeatureStage], size: tuple[int, int, int], features: bool = False
    ) -> None:
        super().__init__()
        self.network, self.stages, self.features = network, list(stages), features
        blank = next(network.parameters()).new_zeros(1, *size)
        self.shapes = [tuple(part.shape[1:]) for part in self._parts(blank)]

    @property
    def model(self) -> nn.Module:
        """The network itself."""
        return self.network.model

    @property
    def width(self) -> int:
        """W, the length of a row."""
        return sum(map(math.prod, self.shapes))

    def extra_repr(self) -> str:
        return f"stages={self.stages}, features={self.features}"

    def observe(self, x: Tensor) -> Outputs:
        """Images [B, C, H, W] to logits [B, K], features [B, D] and maps [B, C, h, w]."""
        return self.network.observe(x, self.stages, self.features)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to rows [B, W]."""
        return torch.cat([part.flatten(1).float() for part in self._parts(x)], 1)

    def unpack(self, rows: Tensor) -> Outputs:
        """Rows [B, W] to what :meth:`observe` returns."""
        parts = rows.split([math.prod(shape) for shape in self.shapes], dim=1)
        logits, *rest = [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        features = rest.pop(0) if self.features else None
        return logits, features, [each.movedim(-1, 1) for each in rest]

    def _parts(self, x: Tensor) -> list[Tensor]:
        """The parts of a row, in order; maps with their channels last, as they are in memory."""
        logits, features, maps = self.observe(x)
        return [logits, *([] if features is None else [features]), *(each.movedim(1, -1) for each in maps)]


class StudentTask(TrainingTask):
    """A network to train; subclasses define the loss.

    Attributes:
        progress: Share of the training that is done, in [0, 1); the training loop updates it.
        scale_is_open: Whether the loss does not determine the scale of the logits.

    Args:
        student: Trained; images to logits [B, K].
        adapter: Converts from the preprocessing of the batches to that of the student, where they differ.
        label_smoothing: Of the cross-entropy.
    """

    def __init__(self, student: nn.Module, adapter: InputAdapter | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(verbose=False)
        self.progress, self.scale_is_open, self.find_unused = 0.0, False, False
        self.trainable_module = student
        self.adapter = adapter
        self.label_smoothing = label_smoothing

    def hyperparameters(self) -> dict[str, float]:
        """Those of the loss as they are used, by the names of their options; none that has no effect."""
        return {"label_smoothing": self.label_smoothing}

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        """Frozen networks whose outputs [B, W] can be cached, by the argument of :meth:`forward` that takes them."""
        return {}

    def eval_frozen(self) -> dict[str, Frozen | FrozenMaps]:
        """As :meth:`frozen`, for the forward of :meth:`get_eval_model`."""
        return {}

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp: Any) -> StudentTask:
        """Wrap the student in DistributedDataParallel."""
        ddp = {"find_unused_parameters": self.find_unused, **ddp}
        self.trainable_module = nn.parallel.DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp)
        return self

    def update_ema(self, step: int | None = None) -> None:
        """Take the student's weights into their moving average; of a user's own wrapper all, not what is inside."""
        if self.has_ema():
            average = self.get_trainable_module(ema=True)
            average.update(unwrapped(self.get_trainable_module()), step=step)  # type: ignore[union-attr, operator]

    def adapted(self, x: Tensor) -> Tensor:
        """A batch in the student's preprocessing."""
        return x if self.adapter is None else self.adapter(x)

    def student_logits(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to the student's logits [B, K] in float32."""
        return self.trainable_module(self.adapted(x)).float()

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Batch mean for labels [B] or soft targets [B, K] (mixup)."""
        return nn.functional.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def trained(self, module: nn.Module | None = None) -> nn.Module:
        """The network to save: the student without what only training needs."""
        return unwrapped(module or self.trainable_module)

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module:
        """The network to score on the calibration split; takes the same batches as the task."""
        student = self.scored(module or self.get_trainable_module(ema=ema))
        return student if self.adapter is None else nn.Sequential(self.adapter, student)

    def scored(self, module: nn.Module | None = None) -> nn.Module:
        """The part of the student that is scored: by default, all that is saved."""
        return self.trained(module)


class LogitTask(StudentTask):
    """A student that learns from labels and from a teacher's logits; subclasses define the teacher.

    Args:
        student, adapter, label_smoothing: As for :class:`StudentTask`.
        alpha: Weight of the distillation loss; None: its default (:data:`kdcompress.options.LOGIT_LOSSES`).
        temperature: tau; likewise.
        logit_loss: L, a key of :data:`LOGIT_LOSSES`.
        partly_labelled: Whether batches hold images without a label (-1), which the teacher alone teaches.
    """

    def __init__(
        self,
        student: nn.Module,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        *,
        alpha: float | None,
        temperature: float | None,
        logit_loss: str = "kl",
        partly_labelled: bool = False,
    ) -> None:
        super().__init__(student, adapter, label_smoothing)
        self.partly_labelled = partly_labelled
        usual = options.LOGIT_LOSSES[logit_loss]
        self.alpha = usual.alpha if alpha is None else alpha
        self.has_temperature = options.has_temperature(logit_loss)
        self.temperature = (usual.temperature or 1.0) if temperature is None else temperature
        self.logit_loss, self.scale_is_open = LOGIT_LOSSES[logit_loss], not usual.has_scale

    def hyperparameters(self) -> dict[str, float]:
        own = {"alpha": self.alpha, **({"temperature": self.temperature} if self.has_temperature else {})}
        return {**super().hyperparameters(), **own}

    def distilled(self, teacher_logits: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``(1 - alpha) * CE(z_S, y) + alpha * L_tau(z_T, z_S)`` for logits [B, K], as the result of a step.

        An image without a label counts as ``L_tau(z_T, z_S)``, as with an alpha of 1; ``task_loss`` is then the sum of
        the cross-entropies divided by all B images.
        """
        if self.partly_labelled:
            return self._partly_distilled(teacher_logits, logits, target)
        task_loss = self.cross_entropy(logits, target)
        kd_loss = self.logit_loss(teacher_logits, logits, target, self.temperature)
        loss = (1 - self.alpha) * task_loss + self.alpha * kd_loss
        return {"loss": loss, "output": logits, "task_loss": task_loss, "kd_loss": kd_loss}

    def _partly_distilled(self, teacher_logits: Tensor, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The same for labels [B] of which some are -1; shapes do not depend on how many."""
        labelled = target >= 0
        task_loss = nn.functional.cross_entropy(
            logits, target, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
        ) / len(target)
        classes = torch.where(labelled, target, teacher_logits.argmax(1))
        kd_loss = self.logit_loss(teacher_logits, logits, classes, self.temperature)
        # a labelled image with the teacher's own logits is at no distance: what remains is of those without labels
        others = torch.where(labelled[:, None], teacher_logits, logits)
        instead = self.logit_loss(teacher_logits, others, classes, self.temperature)
        loss = (1 - self.alpha) * (task_loss + instead) + self.alpha * kd_loss
        return {"loss": loss, "output": logits, "task_loss": task_loss, "kd_loss": kd_loss}
