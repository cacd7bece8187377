"""A student and its assistant as one timm model: two narrow copies of one architecture under one classifier.

Residual KD with an assistant, arXiv 2002.09168: the student S mimics the teacher's feature maps, the assistant A learns
what S misses of them, and both come out of one given model at no added cost. That they differ from it in width, and
that their final features are brought to one size and summed, is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.models.build import ModelSpec, config_of
from kdcompress.models.narrow import narrow
from kdcompress.models.small_network import create, default_cfg
from kdcompress.models.staged import Staged

ARCHITECTURE = "student_assistant"


class Branch(nn.Module):
    """One of the two, from images to what it adds to the logits."""

    def __init__(self, backbone: nn.Module, projection: nn.Linear, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone, self.projection, self.classifier = backbone, projection, classifier

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to [B, K]."""
        return self.classifier(self.projection(self.backbone(x)))


class Unbiased(nn.Module):
    """A classifier without its bias, which another one adds: features [B, F] to [B, K]. The weight is shared."""

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.weight = classifier.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class StudentAssistant(Staged):
    """``W (P_S f_S + P_A f_A) + b``: the pooled features f of S and A, projected, summed and classified.

    The classifier is linear, so A's part can be added to the logits of S afterwards: S answers first, and with a gate
    A runs only where S is unsure.

    Args:
        model: ``{"architecture": name, "model_args": {…}}`` of the undivided model.
        widths: Those of S and A, as factors on its channels.
        features: F, the size of the summed feature.
        gate: ``Gate.to_dict()``, or None to run both always.
        num_classes, in_chans: As for any network of timm's.
        drop_rate: Dropout rate of both, where the model has none of its own.

    Raises:
        UserError: The model is code that the user did not name: timm, too, may have it from a file.

    Example:
        >>> timm.create_model("student_assistant", model={"architecture": "resnet20_cifar"}, widths=(0.94, 0.3))
    """

    def __init__(
        self,
        model: dict[str, Any],
        widths: Sequence[float],
        features: int = 64,
        gate: dict[str, Any] | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(gate)
        shared = {"drop_rate": drop_rate} if drop_rate else {}
        spec = ModelSpec(model["architecture"], {**shared, **(model.get("model_args") or {})})
        self.student, self.assistant = (narrow(spec, width, num_classes=0, in_chans=in_chans) for width in widths)
        self.num_classes, self.num_features = num_classes, features
        self.student_projection = nn.Linear(embedding_size(self.student), features, bias=False)
        self.assistant_projection = nn.Linear(embedding_size(self.assistant), features, bias=False)
        self.fc = nn.Linear(features, num_classes)
        for projection in (self.student_projection, self.assistant_projection):
            nn.init.orthogonal_(projection.weight)  # keeps lengths: both start as networks of their own would
        self.spec, self.in_chans = spec, in_chans

    def stage_names(self) -> list[str]:
        return ["student", "assistant"]

    def networks(self) -> list[str]:
        return self.stage_names()

    def module_name(self, stage: str, name: str) -> str:
        part, _, rest = name.partition(".")
        own = {"backbone": stage, "projection": f"{stage}_projection", "classifier": "fc"}[part]
        return f"{own}.{rest}" if rest else own

    def stages(self) -> list[nn.Module]:
        return [self.student_branch(), self.assistant_branch()]

    def student_branch(self) -> Branch:
        """The student alone, from images to logits."""
        return Branch(self.student, self.student_projection, self.fc)

    def assistant_branch(self) -> Branch:
        """What the assistant adds to the student's logits."""
        return Branch(self.assistant, self.assistant_projection, Unbiased(self.fc))

    def undivided(self) -> nn.Module:
        """The given model, with fresh weights."""
        return narrow(self.spec, 1, num_classes=self.num_classes, in_chans=self.in_chans)

    def get_classifier(self) -> nn.Module:
        """The classifier that both share."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new, untrained classifier of both."""
        self.num_classes, weight = num_classes, self.fc.weight
        self.fc = nn.Linear(self.num_features, num_classes).to(weight)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^student\.", "blocks": r"^(assistant)\."}


def embedding_size(backbone: nn.Module) -> int:
    """D of a network without classifier, which gives [B, D]; measured, for a pruned one no longer knows it."""
    mode, weight = backbone.training, next(backbone.parameters())
    image = torch.zeros(1, *config_of(backbone)["input_size"], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        size = backbone.eval()(image).shape[-1]
    backbone.train(mode)
    return int(size)


default_cfgs = generate_default_cfgs({f"{ARCHITECTURE}.untrained": default_cfg(first_conv=None, classifier="fc")})


@register_model
def student_assistant(pretrained: bool = False, **kwargs: Any) -> StudentAssistant:
    """A :class:`StudentAssistant` from ``model``, ``widths`` and ``features`` alone."""
    model: StudentAssistant = create(StudentAssistant, ARCHITECTURE, pretrained, **kwargs)
    return model
