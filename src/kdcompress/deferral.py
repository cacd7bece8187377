"""A learned gate: heads that predict from the logits so far what going on would do to the answer.

Post-hoc deferral (Jitkrittum et al. 2023, arXiv 2307.02764). That the heads are logistic, and what they see, is our
choice. They must be fitted on other images than those that thresholds are chosen on: on its own images a head is surer
than on new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.gating import Heads, Measure, features
from kdcompress.halving import halves

TOP = 10  # log-probabilities of each member
LEAST = 20  # images that going on mends; where fewer are spoiled, none is taken to be
NEVER = -30.0  # bias of a head that predicts what did not happen
STRENGTH = 1.0  # inverse of the L2 penalty


def for_thresholds(measure: Measure, samples: int, groups: Tensor | None) -> Tensor:
    """Positions among ``samples`` calibration images of those on which thresholds of ``measure`` may be chosen: all, or
    for a learned measure the second half, as its heads are fitted on the first.

    Args:
        groups: As for :func:`~kdcompress.halving.halves`.
    """
    return torch.arange(samples) if measure.heads is None else halves(samples, groups)[1]


def fit_heads(logits: Tensor, labels: Tensor) -> Heads:
    """Fit the heads of each exit.

    Args:
        logits: ``[M, N, K]``, summed logits after each member.
        labels: ``[N]`` class indices.

    Raises:
        UserError: There are too few images that going on mends.
    """
    top = min(TOP, logits.shape[-1])
    correct = logits.argmax(-1) == labels
    mends, spoils = [], []
    for exit in range(len(logits) - 1):
        mended, spoiled = correct[-1] & ~correct[exit], correct[exit] & ~correct[-1]
        if (count := int(mended.sum())) < LEAST:
            raise UserError(
                f"{len(labels)} images are too few to learn a gate: going on after member {exit + 1} mends {count}.",
                f"Take another --measure, or train the cascade with more held out (--holdout): {LEAST} such images are "
                "needed.",
            )
        seen = features(top, logits[exit], *logits[:exit]).double()
        mends.append(_fitted(seen, mended))
        spoils.append(_fitted(seen, spoiled))
    return Heads(top, tuple(mends), tuple(spoils))


def _fitted(seen: Tensor, happened: Tensor) -> tuple[float, ...]:
    """Weights of a logistic regression, then its bias.

    Args:
        seen: [N, F].
        happened: Bool [N].
    """
    from sklearn.linear_model import LogisticRegression

    count = int(happened.sum())
    if not LEAST <= count <= len(happened) - LEAST:
        return (*[0.0] * seen.shape[1], NEVER if count < LEAST else -NEVER)
    mean, std = seen.mean(0), seen.std(0).clamp_min(1e-6)
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(((seen - mean) / std).numpy(), happened.numpy())
    weights = torch.from_numpy(model.coef_[0]) / std
    return (*weights.float().tolist(), float(model.intercept_[0] - (weights * mean).sum()))
