"""A network on all images of a split: its most probable classes after each stage, and where each image stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.api.cost import expected, member_profiles
from kdcompress.data import EvalBatches
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import BINS, collect
from kdcompress.errors import UserError
from kdcompress.flops import Profile
from kdcompress.gating import MemberScores, Outcome, expected_macs, outcome
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network
from kdcompress.models.staged import Staged

TOP = 5


@dataclass
class Measured:
    """What a network says of N images.

    Attributes:
        classes, probabilities: [R, N, T], most probable first, at each stage with all before it, and last the answer.
        stopped: [N], the last stage that ran.
        values: [M - 1, N], the certainty that a gate looks at; None without a gate.
        labels: [N].
        profiles: Of each stage.
    """

    network: Network
    classes: Tensor
    probabilities: Tensor
    stopped: Tensor
    values: Tensor | None
    labels: Tensor
    profiles: list[Profile]

    @classmethod
    def of(cls, network: Network, batches: EvalBatches, place: Place) -> Measured:
        """Run a network as ``eval`` does, with its gate if it has one, and stage by stage."""
        model = for_inference(network.model, place.device)
        packed, labels = collect(lambda images: _packed(model, images), batches, place)
        top = (packed.shape[-1] - 1) // 2
        gated = isinstance(model, Staged) and model.gate is not None
        stages = len(packed) - 1 if isinstance(model, Staged) else 1
        last = torch.full_like(labels, stages - 1)
        return cls(
            network,
            packed[..., :top].long(),
            packed[..., top:-1],
            packed[-1, :, -1].long() if gated else last,
            packed[: stages - 1, :, -1] if gated else None,
            labels,
            member_profiles(network),
        )

    @property
    def macs(self) -> list[int]:
        """Of each stage."""
        return [each.macs for each in self.profiles]

    @property
    def right(self) -> Tensor:
        """Whether the most probable class is the label, [R, N]."""
        return self.classes[..., 0] == self.labels

    @property
    def top1(self) -> float:
        """Percent."""
        return _percent(self.right[-1])

    @property
    def top5(self) -> float | None:
        """Percent; None with five classes or fewer."""
        found = self.classes[-1] == self.labels[:, None]
        return _percent(found.any(-1)) if self.network.num_classes > TOP else None

    @property
    def stage_top1(self) -> list[float]:
        """Percent, with the first stage alone, with the first two, and so on."""
        return [_percent(own) for own in self.right[: len(self.macs)]]

    @property
    def exit_rates(self) -> list[float]:
        """Share of the images that stop after each stage."""
        counts = torch.bincount(self.stopped, minlength=len(self.macs)).tolist()
        return [count / len(self.labels) for count in counts]

    @property
    def cost(self) -> float:
        """MACs per image, on average."""
        return expected_macs(self.exit_rates, self.macs)

    @property
    def gate(self) -> dict[str, Any] | None:
        """``Gate.to_dict()``; None without one."""
        model = self.network.model
        return model.gate.to_dict() if isinstance(model, Staged) and model.gate is not None else None

    def gate_facts(self, teacher: dict[str, Any] | None) -> dict[str, Any]:
        """Keyword arguments of :class:`~kdcompress.results.GateFacts`; none without a gate."""
        if self.gate is None:
            return {}
        return {
            "measure": self.gate["measure"],
            "thresholds": self.gate["thresholds"],
            "exit_rates": [round(rate, 6) for rate in self.exit_rates],
            "full_top1": round(self.stage_top1[-1], 4),
            "gated_top1": round(self.top1, 4),
            **expected(self.cost, teacher),
        }

    def bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of confidence and of right answers, and counts, in 15 equal bins of confidence, as ``eval`` has them."""
        confidence = self.probabilities[-1, :, 0].double()
        values = torch.stack([confidence, self.right[-1].double(), torch.ones_like(confidence)])
        index = (confidence * BINS).nan_to_num().long().clamp(0, BINS - 1)
        sums = torch.zeros(3, BINS, dtype=torch.double).index_add_(1, index, values)
        return sums[0], sums[1], sums[2]

    @property
    def ece(self) -> float:
        """Expected calibration error, percent."""
        confidence, correct, _ = self.bins()
        return 100 * float((confidence - correct).abs().sum()) / len(self.labels)

    def outcomes(self, thresholds: list[Any]) -> list[Outcome]:
        """Of other thresholds of the same measure, on these images; those that cannot be are left out."""
        model = self.network.model
        if self.values is None or not isinstance(model, Staged) or model.gate is None or self.values.isnan().any():
            return []
        scores = MemberScores(self.values, self.right[: len(self.macs)], self.macs)
        found = []
        for each in thresholds:
            try:
                found.append(outcome(scores, model.gate.measured, each))
            except (UserError, TypeError, ValueError):  # of a record that was edited
                continue
        return found

    def oracle(self) -> list[tuple[float, float]]:
        """(MACs, top-1) of gates that know the labels, from the cheapest to the most accurate.

        The first one stops every image at the first stage; the others let go on those that a later one gets right, the
        cheapest first.
        """
        right, ends = self.right[: len(self.macs)], torch.tensor(self.macs).cumsum(0).tolist()
        first = torch.where(right.any(0), right.long().argmax(0), 0)
        counts = torch.bincount(first[right.any(0)], minlength=len(self.macs)).tolist()
        n = len(self.labels)
        macs, correct = float(ends[0]), counts[0]
        points = [(macs, 100 * correct / n)]
        for count, end in list(zip(counts, ends, strict=True))[1:]:
            macs, correct = macs + count * (end - ends[0]) / n, correct + count
            points.append((macs, 100 * correct / n))
        return points


def _packed(model: nn.Module, images: Tensor) -> Tensor:
    """[R, B, 2 T + 1]: classes and probabilities; the certainty after each stage, and last where images stopped."""
    if not isinstance(model, Staged):
        logits: Tensor = model(images)
        return _top(logits.float()[None], logits.new_zeros(1, len(logits)))
    after = model.forward_stages(images)
    extra = after.new_zeros(len(after) + 1, len(images))
    if model.gate is None:
        return _top(torch.cat([after, after[-1:]]), extra)
    measure = model.gate.measured
    for stage in range(len(after) - 1):
        extra[stage] = measure.value(after[stage], *after[:stage])
    answer, stopped = model.forward_gated(images)
    extra[-1] = stopped
    return _top(torch.cat([after, answer[None].to(after.dtype)]), extra)


def _top(logits: Tensor, extra: Tensor) -> Tensor:
    classes = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices
    probabilities = logits.float().softmax(-1).gather(-1, classes)
    return torch.cat([classes.float(), probabilities, extra.float()[..., None]], dim=-1)


def _percent(flags: Tensor) -> float:
    return 100 * float(flags.double().mean())
