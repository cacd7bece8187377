"""``gate-calibrate``: thresholds for a cascade, from its calibration split."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

from kdcompress.api.cost import facts, member_profiles
from kdcompress.api.job import finished, versions
from kdcompress.api.reference import check_classes, check_unchanged, inherit, open_data, resize_input, resolve
from kdcompress.data import Data
from kdcompress.engine.distributed import Place, from_main, start
from kdcompress.engine.evaluate import collect
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.gate_search import best_measure, search
from kdcompress.gating import MEASURES, Gate, Outcome, Stages, outcome
from kdcompress.guarantee import Promise, promise
from kdcompress.models.loading import Network, load_network, model_config, save_network
from kdcompress.options import GateCalibrateOptions
from kdcompress.plot import check_plot, plot
from kdcompress.results import GateResult
from kdcompress.runs import RECORD, RunFolder, claim, file_hash


def gate_calibrate(
    options: GateCalibrateOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> GateResult:
    """Give a cascade a gate: a copy of the run whose members are skipped where they are not needed.

    Thresholds of all stages are searched together, on logits of the calibration split that are computed once.

    Args:
        options: All options at once; else give them by name (the fields of :class:`GateCalibrateOptions`).
        reporter: Told of notices.

    Raises:
        UserError: No cascade, a target out of reach (the nearest one is named), thresholds out of range.

    Example:
        >>> kdcompress.gate_calibrate(run="runs/cascade", max_drop=0.5).expected_macs_ratio
    """
    options = options or GateCalibrateOptions.resolve(given)
    if sum((options.max_drop is not None, options.target_macs is not None, bool(options.threshold))) != 1:
        remedy = "Say --max-drop POINTS, --target-macs RATIO or --threshold X."
        raise usage_error("gate-calibrate needs exactly one target.", remedy)
    if options.confidence_level is not None and not options.max_drop:
        raise usage_error("--confidence-level promises a --max-drop.", "Give --max-drop POINTS, above 0, beside it.")
    if options.plot is not None:
        check_plot(options.plot)
    # thresholds compare certainties, so they are found in the arithmetic in which most users will run them
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision)
    options, began = dataclasses.replace(options, run=resolve(options.run)), time.perf_counter()
    told = (reporter if place.is_main else None) or Silent()
    if (done := finished(options, "gate-calibrate", GateResult, told)) is not None:
        return _drawn(done, options, place)
    network = load_network(options.run)
    cascade = network.staged("so there is no gate to calibrate")
    if len(cascade.stages()) < 2:
        raise UserError(
            f"{network.reference} has a single member: nothing to skip.", "Run kdcompress add-res-student first."
        )
    options = inherit(options, network.record)
    resize_input(network, options)
    source = open_data(options)
    check_classes(network, source, "cascade")
    check_unchanged(network, source)
    data = Data(source, network.prep, options, place.device, note=told.note)
    cascade.to(place.device).to(memory_format=torch.channels_last)
    logits, labels = collect(cascade.forward_stages, data.evaluation("calibration", options.batch_size), place)
    cascade.cpu()
    profiles = member_profiles(network)
    macs = [found.macs for found in profiles]
    names = list(MEASURES) if options.measure == "auto" else [options.measure]
    teacher, promised = network.record.get("teacher"), None
    if options.confidence_level is None or options.max_drop is None:
        measured = {name: Stages.from_logits(logits, labels, macs, name) for name in names}
        measure, chosen, curve = _choose(measured, options, teacher)
        stages = measured[measure]
    else:
        promised = promise(
            logits, labels, macs, names, max_drop=options.max_drop, confidence_level=options.confidence_level
        )
        measure = promised.measure
        stages = Stages.from_logits(logits, labels, macs, measure)
        chosen = outcome(stages, measure, promised.thresholds)
        curve = search(stages, measure, max_drop=options.max_drop)[1]
        if all(limit is None for limit in promised.thresholds):
            told.note(f"Notice: {len(labels)} images are too few to promise any gate; {_more(promised)}.")
    cascade.gate = Gate(measure, chosen.thresholds)
    full = outcome(stages, measure, [None] * (len(profiles) - 1))
    network.model_args = {**network.model_args, "gate": cascade.gate.to_dict()}
    stem = f"gated-{network.path.name if network.path else network.architecture}"
    run = from_main(lambda: claim(options.out, stem, resume=options.resume))
    if place.is_main:
        run.write_json(RECORD, {"command": "gate-calibrate", "status": "unfinished"})
    result = GateResult(
        command="gate-calibrate",
        run=str(run.path),
        seconds=round(time.perf_counter() - began, 3),
        data=source.spec,
        split="calibration",
        n=len(labels),
        full_top1=round(full.top1, 4),
        curve=[_point(entry, teacher) for entry in curve],
        promise=promised.to_dict() if promised else None,
        **_gate_facts(chosen, measure, teacher),
        **facts(network, teacher, profiles),
    )
    if place.is_main:
        _save(run, network, options, result, data)
    return _drawn(result, options, place)


def _drawn(result: GateResult, options: GateCalibrateOptions, place: Place) -> GateResult:
    if options.plot is not None and place.is_main:
        plot(result, options.plot)
    return result


def _choose(
    measured: dict[str, Stages], options: GateCalibrateOptions, teacher: dict[str, Any] | None
) -> tuple[str, Outcome, list[Outcome]]:
    """The measure of the gate, what it does, and the trade-off around it."""
    first, stages = next(iter(measured.items()))
    count = len(stages.values)
    if options.threshold:
        if len(measured) > 1:
            raise usage_error("--threshold is in the units of a measure.", "Name it: --measure confidence, say.")
        thresholds = options.threshold * count if len(options.threshold) == 1 else options.threshold
        if len(thresholds) != count:
            remedy = "Give one for all of them, or one each by repeating the flag."
            raise usage_error(f"{len(thresholds)} thresholds for {count} stages.", remedy)
        return first, outcome(stages, first, thresholds), []
    if options.max_drop is not None:
        limit = {"max_drop": options.max_drop}
        measure = best_measure(measured, **limit)
        return measure, *search(measured[measure], measure, **limit)
    if teacher is None:
        raise UserError(
            "The MACs of the teacher are not on record, so --target-macs has no meaning.", "Use --max-drop."
        )
    assert options.target_macs is not None
    least = int(stages.macs[0]) / teacher["macs"]
    if options.target_macs < least:
        remedy = f"The nearest reachable is --target-macs {_rounded_up(least)}; for less, distil a smaller student."
        raise usage_error(f"--target-macs {options.target_macs} is below the first member's own {least:.4f}.", remedy)
    limit = {"max_macs": options.target_macs * teacher["macs"]}
    measure = best_measure(measured, **limit)
    return measure, *search(measured[measure], measure, **limit)


def _more(promised: Promise) -> str:
    if promised.enough is None:
        return "nor would more images like these do"
    return f"about {promised.enough} would do, if the first one tested errs as often on them"


def _rounded_up(ratio: float) -> str:
    return f"{ratio + 5e-5:.4f}"


def _gate_facts(found: Outcome, measure: str, teacher: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "measure": measure,
        "thresholds": list(found.thresholds),
        "exit_rates": [round(rate, 6) for rate in found.exit_rates],
        "gated_top1": round(found.top1, 4),
        **expected(found.expected_macs, teacher),
    }


def expected(macs: float, teacher: dict[str, Any] | None) -> dict[str, Any]:
    """Expected MACs, and their ratio to the teacher's where that is known."""
    ratio = round(macs / teacher["macs"], 6) if teacher else None
    return {"expected_macs": round(macs, 1), "expected_macs_ratio": ratio}


def _point(found: Outcome, teacher: dict[str, Any] | None) -> dict[str, Any]:
    values = {**expected(found.expected_macs, teacher), "top1": round(found.top1, 4)}
    return {**values, "thresholds": list(found.thresholds)}


def _save(run: RunFolder, network: Network, options: GateCalibrateOptions, result: GateResult, data: Data) -> None:
    config = model_config(network.model, network.architecture, network.model_args, network.class_names)
    save_network(run, network.model, config)
    record = {
        **network.record,
        "command": "gate-calibrate",
        "options": {**options.to_dict(), "data": data.source.spec, "holdout": data.holdout},
        "parents": [network.reference],
        "parent_fingerprint": file_hash(network.path),
        "versions": versions(),
        "result": result.to_dict(),
        "training": network.record.get("training", network.record.get("result")),
    }
    run.finish(record)
