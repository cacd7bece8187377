"""The ResKD ensemble as one timm model: a student and res-students whose logits add up, with a gate that stops early.

ResKD, arXiv 2006.04719: res-students correct the student's logits, and per sample those that are not needed are not
run. That logits are summed and that the gate compares a certainty of the sum so far with a threshold is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from kdcompress.gating import Gate
from kdcompress.models.build import ModelSpec, build

ARCHITECTURE = "residual_cascade"


class ResidualCascade(nn.Module):
    """Members whose logits are summed, in the order in which they were trained.

    In eval mode with a gate, each member sees only the samples that no earlier stage was sure of: the sub-batches
    really shrink. Without a gate, and in training mode, every member sees every sample.

    Logits are summed in float32, whatever the members compute in: thresholds are calibrated on such sums.

    Args:
        members: ``{"architecture": name, "model_args": {…}}`` of each member.
        gate: ``Gate.to_dict()``, or None to run all members always.
        num_classes, in_chans: Of every member.

    Example:
        >>> members = [{"architecture": "resnet20_cifar"}, {"architecture": "resnet8_cifar"}]
        >>> timm.create_model("residual_cascade", members=members, num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        members: Sequence[dict[str, Any]],
        gate: dict[str, Any] | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        if not members:
            raise ValueError("A residual cascade needs a member.")
        self.num_classes = num_classes
        self.gate = Gate.from_dict(gate) if gate else None
        self.members = nn.ModuleList(
            build(
                ModelSpec(entry["architecture"], {"in_chans": in_chans, **entry.get("model_args", {})}),
                num_classes=num_classes,
            )[0]
            for entry in members
        )

    def forward(self, x: Tensor) -> Tensor:
        """Summed logits [B, num_classes] of images [B, C, H, W]."""
        if self.gate is None or self.training:
            return self.forward_full(x)
        return self.forward_gated(x)[0]

    def forward_full(self, x: Tensor) -> Tensor:
        """Every member on every sample: [B, num_classes]."""
        logits = self.members[0](x).float()
        for member in self.members[1:]:
            logits = logits + member(x)
        return logits

    def forward_members(self, x: Tensor) -> Tensor:
        """Each member's own logits, [M, B, num_classes]."""
        return torch.stack([member(x).float() for member in self.members])

    def forward_gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run each member only on the samples that need it.

        Returns:
            Logits [B, num_classes] and the stage at which each sample stopped [B], 0 for the first member alone.
        """
        logits = self.members[0](x).float()
        stages = torch.zeros(len(x), dtype=torch.long, device=x.device)
        going = torch.arange(len(x), device=x.device)
        for stage, member in enumerate(self.members[1:]):
            if self.gate is not None:
                going = going[~self.gate.stops(logits[going], stage)]
            if len(going) == 0:
                break
            logits[going] = logits[going] + member(x[going])
            stages[going] = stage + 1
        return logits, stages

    def get_classifier(self) -> list[nn.Module]:
        """The last layer of every member."""
        return [member.get_classifier() for member in self.members]  # type: ignore[operator]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^members\.0", "blocks": r"^members\.(\d+)"}


default_cfgs = generate_default_cfgs(
    {
        f"{ARCHITECTURE}.untrained": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": None,
            "classifier": None,
        }
    }
)


@register_model
def residual_cascade(pretrained: bool = False, **kwargs: Any) -> ResidualCascade:
    """A :class:`ResidualCascade` from its ``members`` and ``gate`` alone."""
    return build_model_with_cfg(ResidualCascade, ARCHITECTURE, pretrained, **kwargs)
