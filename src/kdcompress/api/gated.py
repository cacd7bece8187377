"""A cascade's logits on its calibration split, and the gated run that commands make from them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcompress.api.cost import expected, facts, member_profiles
from kdcompress.api.job import recorded, versions
from kdcompress.api.recorded_split import keep_split
from kdcompress.api.teacher import SEEN, TRAINED, knows_calibration, origin_of
from kdcompress.api.teacher_score import lost
from kdcompress.data import Data, EvalBatches
from kdcompress.deferral import for_thresholds
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.evaluate import collect
from kdcompress.engine.fit import RECIPE
from kdcompress.flops import Profile
from kdcompress.gating import Gate, Measure, MemberScores, Outcome, outcome
from kdcompress.halving import numbered
from kdcompress.models.loading import Network
from kdcompress.models.saving import model_config, save_network
from kdcompress.options import DataOptions
from kdcompress.results import GateResult
from kdcompress.runs import RunFolder, file_hash

TARGET = "gate_target"  # in run.json: what the gate was asked for, which is not what compress was asked for
CALIBRATED = "calibrated"  # in run.json: what a gate does on the calibration images, where the result is of others
TARGETS = ("max_drop", "target_macs", "target_ms", "threshold", "confidence_level")


def target_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the gate of a run was asked for, by its ``run.json``."""
    options = record.get("options", {})  # where older versions have it
    found: dict[str, Any] = record.get(TARGET, {key: options[key] for key in TARGETS if options.get(key)})
    return found


@dataclass
class Calibration:
    """Logits of a cascade on its calibration images, at each exit.

    Attributes:
        logits: At each exit, [M, N, K].
        labels: [N].
        profiles: Of each member by itself.
        is_whole: Whether these are all of the images.
        groups: [N] a number that copies of an image share; None where there are none.
    """

    network: Network
    data: Data
    logits: Tensor
    labels: Tensor
    profiles: list[Profile]
    is_whole: bool = True
    groups: Tensor | None = None

    @classmethod
    def of(cls, network: Network, data: Data, batches: EvalBatches, place: Place) -> Calibration:
        """Run every member on every image of ``batches``, the calibration split of ``data``."""
        model = network.staged("so it has no members to skip")
        model.to(place.device).to(memory_format=torch.channels_last)
        logits, labels = collect(model.forward_stages, batches, place)
        model.cpu()
        groups = data.groups_of(batches.images.ids)
        return cls(network, data, logits, labels, member_profiles(network), groups=groups)

    @property
    def distinct(self) -> int:
        """Number of images, of which copies count once."""
        return numbered(len(self.labels), self.groups)[1]

    @property
    def macs(self) -> list[int]:
        """MACs per image of each member."""
        return [profile.macs for profile in self.profiles]

    def for_thresholds(self, measure: Measure) -> Calibration:
        """The same for those images alone on which thresholds of a measure may be chosen."""
        if measure.heads is None:
            return self
        chosen = for_thresholds(measure, len(self.labels), self.groups)
        groups = None if self.groups is None else self.groups[chosen]
        logits, labels = self.logits[:, chosen], self.labels[chosen]
        return dataclasses.replace(self, logits=logits, labels=labels, groups=groups, is_whole=False)

    def member_scores(self, measure: Measure) -> MemberScores:
        """Correctness and certainty of each exit on each image, by a certainty measure."""
        return MemberScores.from_logits(self.logits, self.labels, self.macs, measure)

    def save_gated(
        self,
        run: RunFolder,
        command: str,
        options: DataOptions,
        chosen: tuple[Measure, Outcome],
        *,
        began: float,
        parent: Network,
        curve: Sequence[Outcome] = (),
        promise: dict[str, Any] | None = None,
        cost_bound: dict[str, Any] | None = None,
        timing: dict[str, Any] | None = None,
        former_top1: float | None = None,
        polished: bool | None = None,
    ) -> GateResult:
        """Save the network with a gate as a run.

        Args:
            chosen: The gate's certainty measure, and its outcome.
            began: ``time.perf_counter()`` at the start of the command.
            parent: The network that the command was given.
            curve: Outcomes of other gates, to be recorded as trade-off.
            promise, cost_bound, timing, former_top1, polished: As those of :class:`~kdcompress.results.GateResult`.
        """
        measure, best = chosen
        network, teacher, source = self.network, self.network.record.get("teacher"), self.data.source
        gate = Gate.by(measure, best.thresholds)
        network.staged("so it takes no gate").gate = gate
        network.model_args = {**network.model_args, "gate": gate.to_dict()}
        past = network.record.get("training") or network.record.get("result") or {}
        seen = knows_calibration(network, source, self.data.holdout)
        same_images = network.record.get("data_fingerprint") == source.fingerprint and self.is_whole
        full = outcome(self.member_scores(measure), measure, [None] * (len(self.profiles) - 1))
        result = GateResult(
            command=command,
            run=str(run.path),
            seconds=round(time.perf_counter() - began, 3),
            data=source.spec,
            split="calibration",
            n=len(self.labels),
            calibration_seen=seen,
            full_top1=round(full.top1, 4),
            curve=[_point(entry, teacher) for entry in curve],
            measure=measure.name,
            thresholds=list(best.thresholds),
            exit_rates=[round(rate, 6) for rate in best.exit_rates],
            gated_top1=round(best.top1, 4),
            **lost(best.top1, past.get("teacher_top1") if same_images else None, source),
            **expected(best.expected_macs, teacher),
            **facts(network, teacher, self.profiles),
            promise=promise,
            cost_bound=cost_bound,
            timing=timing,
            former_top1=former_top1,
            polished=polished,
        )
        config = model_config(network.model, network.architecture, network.model_args, network.class_names)
        asked = {name: value for name in TARGETS if (value := getattr(options, name, None)) not in (None, ())}
        if polished is False:  # the gate is the one that it was
            asked = target_of(network.record)
        record = {
            **{key: value for key, value in network.record.items() if key not in (RECIPE, CALIBRATED)},
            "command": command,
            TARGET: asked,
            "options": recorded(options, self.data),
            "data_fingerprint": source.fingerprint,
            TRAINED: network.record.get(TRAINED) or origin_of(network.record),
            SEEN: seen,
            "parents": [parent.reference],
            "parent_fingerprint": file_hash(parent.path),
            "versions": versions(),
            "result": result.to_dict(),
            "training": network.record.get("training", network.record.get("result")),
        }

        def save() -> None:
            save_network(run, network.model, config)
            keep_split(run, source)
            run.finish(record)

        from_main(save)
        return result


def _point(gated: Outcome, teacher: dict[str, Any] | None) -> dict[str, Any]:
    values = {**expected(gated.expected_macs, teacher), "top1": round(gated.top1, 4)}
    return {**values, "thresholds": list(gated.thresholds)}
