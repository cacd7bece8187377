"""``eval``: accuracy, cost and speed on the test split."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from kdcompress.api.cost import facts, gated_facts, member_profiles
from kdcompress.api.exported_file import evaluate_file
from kdcompress.api.fitting import check_classes, check_images, open_data, resize_input
from kdcompress.api.inputs import settle_input
from kdcompress.api.reference import inherit, resolve
from kdcompress.api.teacher_score import TeacherScores, lost
from kdcompress.data import Data, EvalBatches
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, alone, check_same, from_main, start, summed
from kdcompress.engine.evaluate import Scores, collect, compare
from kdcompress.engine.evaluate import evaluate as score
from kdcompress.engine.latency import latency_ms
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.export.onnx_network import is_onnx
from kdcompress.flops import Profile
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import EvalOptions
from kdcompress.plot import check_plot, plot
from kdcompress.results import EvalResult
from kdcompress.runs import WEIGHTS

PASSES = 2


def evaluate(options: EvalOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> EvalResult:
    """Score a network on a split that it was not trained on. A gated cascade is scored gated and full.

    The teacher of a run is scored once on the same split, if it is on this disk; its accuracy is kept in the cache.

    Args:
        options: All options at once; else give them by name (the fields of :class:`EvalOptions`).
        reporter: Receives notices, and what is about to be scored.

    Raises:
        UserError: Nothing to load, data that do not fit, or no test split.

    Example:
        >>> kdcompress.evaluate(run="runs/gated").gated_top1
    """
    options = options or EvalOptions.resolve(given)
    if options.plot is not None:
        check_plot(options.plot)
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    reporter = (reporter if place.is_main else None) or Silent()
    reference, began = resolve(options.run), time.perf_counter()  # waiting for the command before is not our time
    if is_onnx(reference):
        own = dataclasses.replace(options, run=reference)
        return from_main(lambda: _file_alone(own, reporter))
    take_free_cores(place, reporter)
    network = load_network(reference, options.arch, key=options.weights_key, note=reporter.note)
    options = inherit(options, network.record)
    resize_input(network, options)
    source = open_data(options, network)
    check_classes(network, source, "network")
    settle_input(network, source, options, reporter.note, "--arch")
    check_images(network, source, options, options.split, "network")
    data = Data(source, network.prep, options, place.device, place.rank, place.world, reporter.note)
    batches = data.evaluation(options.split, options.batch_size)
    if place.world > 1:
        check_same({f"the {options.split} split": batches.digest()})
    reporter.note(f"Scoring {network.architecture} on the {options.split} split of {source.spec}.")
    profiles = member_profiles(network)
    teacher = network.record.get("teacher")
    model = for_inference(network.model, place.device)
    gate: dict[str, Any] = {}
    if isinstance(model, Staged) and model.gate is not None:
        scores, gate = _gated(model, batches, place, profiles, teacher)
    else:
        scores = score(model, batches, place, passes=PASSES)
    if isinstance(model, Staged) and len(profiles) > 1:
        gate["stage_top1"] = _by_stage(model, batches, place)
    latency = latency_ms(model, batches, place)
    cost = facts(network, teacher, profiles)
    teachers = TeacherScores(options.split, source, options, place, reporter)
    teacher_top1 = teachers.top1(teacher, wanted=options.score_teacher)
    teachers.remember(network, cost, scores.top1)
    result = EvalResult(
        command="eval",
        run=str(network.path) if network.path else None,
        seconds=round(time.perf_counter() - began, 3),
        data=source.spec,
        split=options.split,
        **scores.rounded(),
        ece=round(scores.ece, 4),
        bytes=_size(network),
        latency_ms=latency,
        images_per_second=round(scores.images_per_second, 1),
        hardware=place.describe(),
        device=str(place.device),
        precision=place.precision,
        **gate,
        **lost(scores.top1, teacher_top1, source),
        **cost,
    )
    if options.plot is not None and place.is_main:
        plot(result, options.plot)
    return result


def _file_alone(options: EvalOptions, reporter: Reporter) -> EvalResult:
    """An exported file runs in one process, whoever else waits."""
    with alone():
        return evaluate_file(options, reporter)


def _size(network: Network) -> int | None:
    """Bytes of the file that the weights come from."""
    file = network.path / WEIGHTS if network.path else Path(network.reference)
    return file.stat().st_size if file.is_file() else None


def _by_stage(model: Staged, batches: EvalBatches, place: Place) -> list[float]:
    """Accuracy of the first stage alone, of the first two, and so on."""
    logits, labels = collect(model.forward_stages, batches, place)
    right = (logits.argmax(-1) == labels).sum(-1).tolist()
    *counts, n = summed(torch.tensor([*right, len(labels)], device=place.device)).tolist()
    return [round(100 * count / n, 4) for count in counts]


def _gated(
    model: Staged,
    batches: EvalBatches,
    place: Place,
    profiles: list[Profile],
    teacher: dict[str, Any] | None,
) -> tuple[Scores, dict[str, Any]]:
    """Scores with the gate, and beside them those with every member run."""
    assert model.gate is not None
    macs = [each.macs for each in profiles]
    forwards = (model.forward_full, model.forward_gated)
    full, scores = compare(forwards, batches, place, passes=PASSES, exits=(0, len(macs)))
    return scores, {
        **gated_facts(model.gate.to_dict(), scores, macs, teacher),
        "full_top1": round(full.top1, 4),
        "full_images_per_second": round(full.images_per_second, 1),
        "speedup": round(scores.images_per_second / full.images_per_second, 4),
    }
