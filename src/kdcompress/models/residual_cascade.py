"""The ResKD ensemble as one timm model: a student and res-students whose logits add up, with a gate that stops early.

ResKD, arXiv 2006.04719: res-students correct the student's logits, and per sample those that are not needed are not
run. That logits are summed, how much the sum so far weighs beside the next member, and that the gate compares a
certainty of the sum with a threshold is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from kdcompress.models.build import ModelSpec, build
from kdcompress.models.own_input import OwnInput
from kdcompress.models.small_network import create
from kdcompress.models.staged import Staged

ARCHITECTURE = "residual_cascade"


class ResidualCascade(Staged):
    """Members whose logits are summed, in the order in which they were trained; each is a stage.

    With ``w_k`` a member's ``sum_weight``, the logits after it are ``s_k = w_k s_k-1 + z_k``.

    Args:
        members: ``{"architecture": name, "model_args": {…}, "sum_weight": w, "input": {…}}`` of each; a weight not
            given is 1, and with ``input`` (see :class:`~kdcompress.models.own_input.OwnInput`) the member converts its
            images first.
        gate: ``Gate.to_dict()``, or None to run all members always.
        num_classes, in_chans: Of every member.
        drop_rate: Dropout rate of the members that have none of their own.

    Raises:
        UserError: A member is code that the user did not name: timm, too, may have it from a file.

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
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(gate)
        if not members:
            raise ValueError("A residual cascade needs a member.")
        self.num_classes, self.in_chans = num_classes, in_chans
        shared = {"in_chans": in_chans, **({"drop_rate": drop_rate} if drop_rate else {})}
        self.sum_weights = [float(entry.get("sum_weight", 1.0)) for entry in members]
        self.members = nn.ModuleList(_member(entry, shared, num_classes) for entry in members)
        self.num_features = getattr(self.members[-1], "num_features", 0)  # timm's function for the hub writes it down

    def stage_names(self) -> list[str]:
        return [f"members.{number}" for number in range(len(self.members))]

    def networks(self) -> list[str]:
        return [
            f"{name}.network" if isinstance(member, OwnInput) else name
            for name, member in zip(self.stage_names(), self.members, strict=True)
        ]

    def stages(self) -> list[nn.Module]:
        return list(self.members)

    def sum_weight(self, stage: int) -> float:
        return self.sum_weights[stage]

    def get_classifier(self) -> list[nn.Module]:
        """The last layer of every member."""
        return [member.get_classifier() for member in self.members]  # type: ignore[operator]

    def reset_classifier(self, num_classes: int) -> None:
        """New, untrained classifiers of all members."""
        self.num_classes = num_classes
        for member in self.members:
            member.reset_classifier(num_classes)  # type: ignore[operator]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^members\.0", "blocks": r"^members\.(\d+)"}


def _member(entry: dict[str, Any], shared: dict[str, Any], num_classes: int) -> nn.Module:
    spec = ModelSpec(entry["architecture"], {**shared, **entry.get("model_args", {})})
    network = build(spec, num_classes=num_classes)[0]
    return OwnInput(network, **entry["input"]) if entry.get("input") else network


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
    model: ResidualCascade = create(ResidualCascade, ARCHITECTURE, pretrained, **kwargs)
    return model
