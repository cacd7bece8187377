"""Base of composite networks: stages whose logits add up, and a gate that skips the stages an image does not need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.gating import Gate


class Staged(nn.Module):
    """Stages that all see the image, each adding its own logits to the sum of those before it.

    In eval mode with a gate, each stage runs only on the samples that the gate has not stopped earlier: the
    sub-batches really shrink. Without a gate, and in training mode, every stage sees every sample.

    Logits are summed in float32, whatever the stages compute in: thresholds are calibrated on such sums.

    Args:
        gate: ``Gate.to_dict()``, or None to run all stages always.
    """

    def __init__(self, gate: dict[str, Any] | None) -> None:
        super().__init__()
        self.gate = Gate.from_dict(gate) if gate else None

    def stage_names(self) -> list[str]:
        """Name of each stage, as in the names of its weights."""
        raise NotImplementedError

    def networks(self) -> list[str]:
        """Names of the submodules that are whole networks, from images to logits or features."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """Each stage as a network, from images [B, C, H, W] to its own logits [B, K]."""
        raise NotImplementedError

    def after(self, stage: int, before: Tensor, own: Tensor) -> Tensor:
        """Logits [B, K] after a later stage: the weighted sum of those before it and its own."""
        weight = self.sum_weight(stage)
        return weight * before + own if weight else own.float()

    def sum_weight(self, stage: int) -> float:
        """Factor of the logits before a stage, in the sum with its own."""
        return 1.0

    def module_name(self, stage: str, name: str) -> str:
        """Name in this network of the submodule ``name`` of a stage."""
        return f"{stage}.{name}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        if self.gate is None or self.training:
            return self.forward_full(x)
        return self.forward_gated(x)[0]

    def forward_full(self, x: Tensor) -> Tensor:
        """Every stage on every sample: [B, K]."""
        *_, logits = self._after_each(x)
        return logits

    def forward_stages(self, x: Tensor) -> Tensor:
        """Logits after each stage, [M, B, K]."""
        return torch.stack(list(self._after_each(x)))

    def _after_each(self, x: Tensor) -> Iterator[Tensor]:
        first, *others = self.stages()
        logits = first(x).float()
        yield logits
        for number, stage in enumerate(others, start=1):
            logits = self.after(number, logits, stage(x))
            yield logits

    def forward_gated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run each stage only on the samples that need it.

        Returns:
            Logits [B, K] and the stage at which each sample stopped [B], 0 for the first one alone.
        """
        first, *others = self.stages()
        logits = first(x).float()
        stopped = torch.zeros(len(x), dtype=torch.long, device=x.device)
        going = torch.arange(len(x), device=x.device)
        earlier: list[Tensor] = []  # logits [B, K] after each stage before, where the gate wants to see them
        for number, stage in enumerate(others):
            if self.gate is not None:
                stops = self.gate.stops(logits[going], number, [each[going] for each in earlier])
                going = going[~stops]
            if len(going) == 0:
                break
            if self.gate is not None and self.gate.looks_back:
                earlier.append(logits.clone())
            if len(going) == len(x):  # nobody stopped: the batch need not be copied
                logits = self.after(number + 1, logits, stage(x))
            else:
                logits[going] = self.after(number + 1, logits[going], stage(x[going]))
            stopped[going] = number + 1
        return logits, stopped
