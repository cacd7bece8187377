"""Joint polish: all members of a gated cascade learn together, each from the images that reach it (our choice)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.gating import Gate
from kdcompress.methods.kd import KdTask
from kdcompress.models.staged import Staged


def stop_chances(gate: Gate, logits: Tensor, stage: int, earlier: list[Tensor]) -> Tensor:
    """The gate, softened: how likely samples stop after ``stage``, from summed logits [B, K] to [B].

    ``sigmoid(c - t)`` of certainty and threshold as log-odds, or as they are where they are energies. No gradient goes
    through it: a network that learned to seem surer would only stop earlier.

    Args:
        earlier: Summed logits [B, K] after each stage before.
    """
    threshold = gate.thresholds[stage]
    if threshold is None:
        return logits.new_zeros(len(logits))
    measure = gate.measured
    value = measure.value(logits.detach(), *[each.detach() for each in earlier])
    limit = float(measure.unbounded(torch.tensor(threshold)))  # a number: a GPU would be waited for
    surer = measure.unbounded(value) - limit
    return torch.sigmoid(surer if measure.higher_is_surer else -surer)


class SoftlyGated(nn.Module):
    """In training, a cascade whose stages weigh as much as it is likely that they are run; in eval mode as it is.

    Args:
        cascade: With a gate.
    """

    def __init__(self, cascade: Staged) -> None:
        super().__init__()
        self.cascade = cascade

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K]: the sum over stages of (chance that it is run) x (what it changes).

        The hard gate adds all of it or nothing; this is the mean of the two.
        """
        gate = self.cascade.gate
        if not self.training or gate is None:
            return self.cascade(x)
        first, *others = self.cascade.stages()
        logits = first(x).float()
        sums, going = [logits], logits.new_ones(len(x))
        for number, stage in enumerate(others):
            going = going * (1 - stop_chances(gate, sums[-1], number, sums[:-1]))
            sums.append(self.cascade.after(number + 1, sums[-1], stage(x)))
            logits = logits + going[:, None] * (sums[-1] - sums[-2])
        return logits


class PolishTask(KdTask):
    """KD of a :class:`SoftlyGated` cascade; what is kept is the cascade itself, with its gate."""

    def trained(self, module: nn.Module | None = None) -> nn.Module:
        cascade = super().trained(module).cascade
        assert isinstance(cascade, nn.Module)
        return cascade
