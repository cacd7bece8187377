"""Residual KD with an assistant: S mimics the teacher's feature maps, A learns the residual (arXiv 2002.09168).

Not to be confused with Relational KD. From the paper: the two networks, that A learns the residual between the maps of
teacher and student, and the two schemes. The losses below are our interpretation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdcompress.data import InputAdapter
from kdcompress.methods.base import Frozen, FrozenMaps, Outputs, StudentTask
from kdcompress.methods.features import TRANSFERS, Connectors, FeatureStage, Transfer, at_common_size, fitnets, observe
from kdcompress.methods.losses import LOGIT_LOSSES
from kdcompress.models.student_assistant import StudentAssistant
from kdcompress.options import METHODS, has_temperature
from kdcompress.training_task import unwrapped

Pairs = Sequence[tuple[FeatureStage, FeatureStage]]

# part that trains in each phase, and its share of the epochs (our choice, not measured)
SCHEMES = {
    "end-to-end": (("all", 1.0),),
    "progressive": (("student", 0.8), ("assistant", 0.15), ("classifier", 0.05)),
}


class Undivided(nn.Module):
    """A single network in training, with connectors from its maps to the teacher's channels if the transfer has them.

    Args:
        pairs: Matched feature stages of the teacher and of the model.
        connected: Whether there are connectors.
    """

    def __init__(self, model: nn.Module, pairs: Pairs, connected: bool = True) -> None:
        super().__init__()
        self.model, self.connectors = model, Connectors(pairs) if connected else None
        self.stages = [own for _, own in pairs]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images [B, C, H, W] to logits [B, K] and maps [B, C, h, w]."""
        logits, maps = observe(self.model, x, self.stages)
        return logits, maps if self.connectors is None else self.connectors(maps)


class Parts(NamedTuple):
    """Outputs of S and A: features [B, F], their parts of the logits [B, K], maps [B, C, h, w].

    ``student_estimates`` are S's maps after a 1x1 convolution: its estimate of the teacher's maps [B, C_T, h, w]; to
    them ``assistant_maps`` [B, C_T, h, w] are added. While the student trains alone, the fields of A are empty; while
    the classifier trains, there are no maps.
    """

    student_features: Tensor
    student_logits: Tensor
    student_maps: list[Tensor]
    student_estimates: list[Tensor]
    assistant_features: Tensor | None = None
    assistant_logits: Tensor | None = None
    assistant_maps: Sequence[Tensor] = ()


class Divided(nn.Module):
    """Student and assistant in training with their connectors, all of them or one part at a time.

    Parts that do not train are in eval mode and get no gradients: the student stays bit-identical while its assistant
    trains.

    Args:
        model: Student and assistant.
        student_pairs, assistant_pairs: Matched feature stages of teacher and S, and of teacher and A.
        keep_classifier: Whether the classifier is never trained.
        connected: Whether S's maps are compared after connectors. If not, those only serve to add S's estimates to
            A's, and pass no gradient to S.
    """

    def __init__(
        self,
        model: StudentAssistant,
        student_pairs: Pairs,
        assistant_pairs: Pairs,
        keep_classifier: bool = False,
        connected: bool = True,
    ) -> None:
        super().__init__()
        self.model, self.keep_classifier, self.connected, self.part = model, keep_classifier, connected, "all"
        self.stages = [own for _, own in student_pairs]
        self.student_connectors = Connectors(student_pairs)
        self.assistant_connectors = Connectors(assistant_pairs)

    def learn(self, part: str) -> None:
        """Choose the part to train: ``all``, ``student``, ``assistant``, or ``classifier`` with both projections."""
        model, self.part = self.model, part
        student: list[nn.Module] = [model.student, model.student_projection, self.student_connectors]
        assistant: list[nn.Module] = [model.assistant, model.assistant_projection, self.assistant_connectors]
        parts: dict[str, list[nn.Module]] = {
            "all": [*student, *assistant],
            "student": student,
            "assistant": assistant,
            "classifier": [model.student_projection, model.assistant_projection],
        }
        self.requires_grad_(False)
        for module in [*parts[part], *([] if part == "assistant" or self.keep_classifier else [model.fc])]:
            module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Divided:
        super().train(mode)
        if self.part in ("assistant", "classifier"):
            self.model.student.eval()
        if self.part in ("student", "classifier"):
            self.model.assistant.eval()
        return self

    def forward(self, x: Tensor) -> Parts:
        """Images [B, C, H, W] to the outputs of both."""
        model, stages = self.model, [] if self.part == "classifier" else self.stages
        classify = model.fc
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.part in ("all", "student")):
            embedding, maps = observe(model.student, x, stages)
            inputs = maps if self.connected else [each.detach() for each in maps]
            estimates = self.student_connectors(inputs) if stages else []
        features = model.student_projection(embedding)
        student = Parts(features, classify(features), estimates if self.connected else maps, estimates)
        if self.part == "student":
            return student
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.part != "classifier"):
            embedding, maps = observe(model.assistant, x, stages)
        features = model.assistant_projection(embedding)
        assistant_maps = self.assistant_connectors(maps) if stages else []
        logits = nn.functional.linear(features, classify.weight)
        return student._replace(assistant_features=features, assistant_logits=logits, assistant_maps=assistant_maps)


class TransferTask(StudentTask):
    """Feature transfer to one network, ``CE + w d(phi(F), phi(F_T)) + v KL_tau``: FitNets, AT, and RKD's control.

    Args:
        student: With its connectors.
        teacher: Frozen, with a map for each of the student's.
        transfer: d with its phi, and whether there are connectors.
        transfer_weight: w.
        logit_weight: v.
        logit_loss: In place of KL, a key of :data:`~kdcompress.methods.losses.LOGIT_LOSSES`.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: FrozenMaps,
        transfer: Transfer,
        adapter: InputAdapter | None = None,
        label_smoothing: float = 0.0,
        transfer_weight: float = 1.0,
        logit_weight: float = 0.0,
        temperature: float = METHODS["rkd-assistant"].temperature or 4.0,
        logit_loss: str = "kl",
    ) -> None:
        super().__init__(student, adapter, label_smoothing)
        self.logit_loss, self.has_temperature = LOGIT_LOSSES[logit_loss], has_temperature(logit_loss)
        self.teacher, self.transfer = teacher, transfer
        self.transfer_weight, self.logit_weight, self.temperature = transfer_weight, logit_weight, temperature

    def hyperparameters(self) -> dict[str, float]:
        own = {"temperature": self.temperature} if self.logit_weight and self.has_temperature else {}
        return {**super().hyperparameters(), **own}

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return {"teacher_rows": self.teacher}

    def forward(self, input: Tensor, target: Tensor, teacher_rows: Tensor | None = None) -> dict[str, Tensor]:
        """Images [B, C, H, W], labels [B] or soft targets [B, K], and the teacher's rows [B, W] where cached."""
        teacher_logits, _, teacher_maps = self.teacher_outputs(input, teacher_rows)
        logits, maps = self.trainable_module(self.adapted(input))
        losses = {"transfer_loss": self.transfer_weight * self.distance(teacher_maps, maps)}
        return self.total(teacher_logits, logits.float(), target, losses)

    def teacher_outputs(self, input: Tensor, rows: Tensor | None) -> Outputs:
        """The teacher's outputs, from cached rows [B, W] where there are any."""
        return self.teacher.observe(input) if rows is None else self.teacher.unpack(rows)

    def distance(
        self, teacher_maps: Sequence[Tensor], maps: Sequence[Tensor], transfer: Transfer | None = None
    ) -> Tensor:
        """Mean over the feature stages of the distance between maps [B, C, h, w] and the teacher's."""
        distance, parts = (transfer or self.transfer).distance, []
        for teacher_map, student_map in zip(teacher_maps, maps, strict=True):
            goal, own = at_common_size(teacher_map, student_map)
            parts.append(distance(own, goal, goal))
        return torch.stack(parts).mean()

    def total(
        self, teacher_logits: Tensor, logits: Tensor, target: Tensor, losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The result of a step: the given losses and those on the logits [B, K]."""
        if "task_loss" not in losses:
            losses = {"task_loss": self.cross_entropy(logits, target), **losses}
        if self.logit_weight:
            losses["kd_loss"] = self.logit_weight * self.logit_loss(teacher_logits, logits, target, self.temperature)
        return {"loss": torch.stack(list(losses.values())).sum(), "output": logits, **losses}

    def trained(self, module: nn.Module | None = None) -> nn.Module:
        """The network without the connectors."""
        return unwrapped(module or self.trainable_module).get_submodule("model")


class RkdAssistantTask(TransferTask):
    """``CE + w (L_S + L_A) + v KL_tau`` on the sum of both, in one phase of a scheme.

    ``L_S = d(phi(F_S), phi(F_T))`` and ``L_A = d(phi(F_S + F_A), phi(F_T))`` at every feature stage, with F_S detached
    in ``L_A``. For L2 the second is the distance of F_A from the residual ``F_T - F_S``; AT has no sign, and only a sum
    can be compared (our choice). In the sum both have the teacher's channels, by connectors. With FitNets S's is that
    of ``L_S``. AT ignores channels and has no such connector, so one is trained by L2 on S's detached map (our choice).
    Where all parts train at once, a share of the cross-entropy may be on the logits of S alone, because S is the first
    exit of a gate (our choice): the larger this share, the less A can add. Where the teacher's classifier is taken
    over, the summed features are also trained to match the teacher's.

    Args:
        student, args, more: As for :class:`TransferTask`.
        part: The part to train: ``all``, ``student``, ``assistant``, or ``classifier``, which needs no maps.
        teacher: Where it gives features, ``w`` times the distance of the summed feature from them is added.
        student_weight: Share of the cross-entropy on the logits of S alone, in [0, 1]; for the part ``all``.
    """

    def __init__(
        self,
        student: Divided,
        teacher: FrozenMaps,
        *args: Any,
        part: str,
        student_weight: float = 0.2,
        **more: Any,
    ) -> None:
        super().__init__(student, teacher, *args, **more)
        self.part, self.student_weight = part, student_weight
        student.learn(part)

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss of this part uses the teacher; a classifier may be trained on labels alone."""
        return self.part != "classifier" or self.teacher.features or bool(self.logit_weight)

    def frozen(self) -> dict[str, Frozen | FrozenMaps]:
        return super().frozen() if self.needs_teacher else {}

    def teacher_outputs(self, input: Tensor, rows: Tensor | None) -> Outputs:
        return super().teacher_outputs(input, rows) if self.needs_teacher else (input.new_empty(0), None, [])

    def forward(self, input: Tensor, target: Tensor, teacher_rows: Tensor | None = None) -> dict[str, Tensor]:
        """As :meth:`TransferTask.forward`."""
        teacher_logits, teacher_features, teacher_maps = self.teacher_outputs(input, teacher_rows)
        parts: Parts = self.trainable_module(self.adapted(input))
        logits, features = parts.student_logits.float(), parts.student_features.float()
        losses: dict[str, Tensor] = {}
        if self.part in ("all", "student"):
            losses["transfer_loss"] = self.transfer_weight * self.distance(teacher_maps, parts.student_maps)
            if not self.transfer.connected:
                losses["connector_loss"] = self.distance(teacher_maps, parts.student_estimates, TRANSFERS["fitnets"])
        if self.part in ("all", "assistant"):
            losses["residual_loss"] = self.transfer_weight * self.residual(teacher_maps, parts)
        if parts.assistant_logits is not None and parts.assistant_features is not None:
            alone = logits
            logits, features = logits + parts.assistant_logits.float(), features + parts.assistant_features.float()
            if self.part == "all" and self.student_weight:
                own, shared = self.cross_entropy(alone, target), self.cross_entropy(logits, target)
                losses["task_loss"] = torch.lerp(shared, own, self.student_weight)
        if teacher_features is not None:
            losses["feature_loss"] = self.transfer_weight * fitnets(features, teacher_features, teacher_features)
        return self.total(teacher_logits, logits, target, losses)

    def scored(self, module: nn.Module | None = None) -> nn.Module:
        """While the student trains alone, it is scored alone, for its assistant is untrained."""
        pair = self.trained(module)
        assert isinstance(pair, StudentAssistant)
        return pair.student_branch() if self.part == "student" else pair

    def residual(self, teacher_maps: Sequence[Tensor], parts: Parts) -> Tensor:
        """``L_A``: mean over the feature stages of the distance of both maps' sum from the teacher's."""
        distances = []
        triples = zip(teacher_maps, parts.student_estimates, parts.assistant_maps, strict=True)
        for teacher, student, assistant in triples:
            goal, first = at_common_size(teacher, student.detach())
            own, goal = at_common_size(assistant, goal)
            distances.append(self.transfer.distance(at_common_size(first, own)[0] + own, goal, goal))
        return torch.stack(distances).mean()
