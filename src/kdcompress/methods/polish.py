"""Joint fine-tuning of a gated cascade: each member learns from the images that reach it (our choice)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.gating import Gate
from kdcompress.methods.kd import KdTask
from kdcompress.models.staged import Staged


def stop_probabilities(gate: Gate, logits: Tensor, member: int, earlier: list[Tensor]) -> Tensor:
    """The soft gate: probability that samples stop after a member, from summed logits [B, K] to [B].

    ``sigmoid(c - t)`` for certainty and threshold as log-odds, or unchanged for energies. No gradient flows through it:
    it would only teach the network to seem surer and so to stop earlier.

    Args:
        member: From 0.
        earlier: Summed logits [B, K] after each member before.
    """
    threshold = gate.thresholds[member]
    if threshold is None:
        return logits.new_zeros(len(logits))
    measure = gate.measured
    value = measure.value(logits.detach(), *[each.detach() for each in earlier])
    limit = float(measure.unbounded(torch.tensor(threshold)))  # on the CPU: avoids a GPU synchronization
    surer = measure.unbounded(value) - limit
    return torch.sigmoid(surer if measure.higher_is_surer else -surer)


class SoftlyGated(nn.Module):
    """In training, a cascade whose members are weighted by the probability that they run; in eval mode unchanged.

    Args:
        cascade: With a gate.
    """

    def __init__(self, cascade: Staged) -> None:
        super().__init__()
        self.cascade = cascade

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, K]: the sum over members of (probability that it runs) x (what it adds).

        The hard gate adds all or nothing; this is the expected value.
        """
        gate = self.cascade.gate
        if not self.training or gate is None:
            return self.cascade(x)
        first, *others = self.cascade.stages()
        logits = first(x).float()
        sums, going = [logits], logits.new_ones(len(x))
        for number, member in enumerate(others):
            going = going * (1 - stop_probabilities(gate, sums[-1], number, sums[:-1]))
            sums.append(self.cascade.after(number + 1, sums[-1], member(x)))
            logits = logits + going[:, None] * (sums[-1] - sums[-2])
        return logits


class PolishTask(KdTask):
    """KD of a :class:`SoftlyGated` cascade; the cascade itself is saved, with its gate."""

    def trained(self, module: nn.Module | None = None) -> nn.Module:
        """The cascade without its soft gate."""
        cascade = super().trained(module).cascade
        assert isinstance(cascade, nn.Module)
        return cascade
