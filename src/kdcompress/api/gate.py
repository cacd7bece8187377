"""``gate-calibrate``: thresholds for a cascade, from its calibration split."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from kdcompress.api.check import check_engine
from kdcompress.api.claimed import claimed
from kdcompress.api.fitting import check_classes, check_images, open_data, resize_input
from kdcompress.api.gate_by_time import Device, gate_within
from kdcompress.api.gated import Calibration
from kdcompress.api.job import finished
from kdcompress.api.reference import inherit, resolve
from kdcompress.api.teacher import knows_calibration
from kdcompress.cost_bound import bound_of_macs, search_within
from kdcompress.data import Data
from kdcompress.deferral import fit_heads
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.restart import job_key, resuming
from kdcompress.errors import UserError, usage_error
from kdcompress.gate_search import best_measure, search
from kdcompress.gating import LEARNED, MEASURES, Measure, Outcome, learned, outcome
from kdcompress.guarantee import GuaranteedGate, guaranteed_gate
from kdcompress.halving import halves
from kdcompress.models.loading import load_network
from kdcompress.options import GateCalibrateOptions
from kdcompress.options.methods import meaningless
from kdcompress.plot import check_plot, plot
from kdcompress.results import GateResult

AT_ONCE = 128  # images per batch
LEAST_DROP = 0.001  # points that can be guaranteed: no split has images enough for less


def gate_calibrate(
    options: GateCalibrateOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> GateResult:
    """Give a cascade a gate: a copy of the run whose members are skipped where they are not needed.

    Thresholds of all exits are searched together, on logits of the calibration split that are computed once.

    Args:
        options: All options at once; else give them by name (the fields of :class:`GateCalibrateOptions`).
        reporter: Receives notices.

    Raises:
        UserError: No cascade, a target out of reach (the error names the lowest possible), thresholds out of range.

    Example:
        >>> kdcompress.gate_calibrate(run="runs/cascade", max_drop=0.5).expected_macs_ratio
    """
    options = options or GateCalibrateOptions.resolve(given)
    _check_target(options)
    if options.plot is not None:
        check_plot(options.plot)
    # certainties depend on the precision, so thresholds are chosen in the one that most users will run
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    if options.target_ms is not None and place.world > 1:
        raise usage_error("--target-ms is measured in one process.", "Start it without torchrun.")
    options, began = dataclasses.replace(options, run=resolve(options.run)), time.perf_counter()
    reporter = (reporter if place.is_main else None) or Silent()
    options = resuming(options, "gate-calibrate", reporter.note)
    take_free_cores(place, reporter)
    if (done := finished(options, "gate-calibrate", GateResult, reporter)) is not None:
        return _plotted(done, options, place)
    network = load_network(options.run, arch_flag=None)
    cascade = network.staged("so there is no gate to calibrate")
    if len(cascade.stages()) < 2:
        raise UserError(
            f"{network.reference} has a single member: nothing to skip.", "Run kdcompress add-res-student first."
        )
    options = inherit(options, network.record)
    resize_input(network, options)
    source = open_data(options, network)
    check_classes(network, source, "cascade")
    check_images(network, source, options, "calibration", "cascade")
    data = Data(source, network.prep, options, place.device, note=reporter.note)
    at_once = AT_ONCE if options.target_ms is not None else options.batch_size or AT_ONCE
    calibration = Calibration.of(network, data, data.evaluation("calibration", at_once), place)
    images = calibration.distinct
    calibration, measures = _measures(calibration, options)
    guaranteed = timing = bound = None
    if options.target_ms is not None:
        timed = Device(calibration, options.engine, options.batch_size or 1, place, reporter)
        measure, chosen, timing = gate_within(calibration, measures, options.target_ms, timed, reporter)
        curve = search(calibration.member_scores(measure), measure, max_macs=chosen.expected_macs)[1]
    elif options.confidence_level is None or options.max_drop is None:
        measure, chosen, curve = _choose(calibration, measures, options)
        bound = _bound(calibration, measure, chosen, options)
    else:
        guaranteed = guaranteed_gate(
            calibration.logits,
            calibration.labels,
            calibration.macs,
            measures,
            max_drop=options.max_drop,
            confidence_level=options.confidence_level,
            groups=calibration.groups,
        )
        measure = next(each for each in measures if each.name == guaranteed.measure)
        scores = calibration.member_scores(measure)
        chosen = outcome(scores, measure, guaranteed.thresholds)
        curve = search(scores, measure, max_drop=options.max_drop)[1]
        if all(limit is None for limit in guaranteed.thresholds):
            reporter.note(f"Notice: every member runs: {_why_none(guaranteed, images)}.")
    if options.confidence_level is not None and (by := _chosen_by(network.record)):
        reporter.note(
            f"Notice: {by} chose the cascade on the calibration images; the guarantee holds only approximately."
        )
    if knows_calibration(network, source, data.holdout):
        what = "the gate may" if options.confidence_level is None else "the guarantee does not hold, and the gate may"
        how = "cost more" if options.target_macs is not None else "lose more"
        reporter.note(
            "Notice: the cascade, or what it started from, may have been trained on the calibration images; "
            f"{what} {how} on new ones."
        )
    stem = f"gated-{network.path.name if network.path else network.architecture}"
    with claimed(options, stem, place, reporter) as run:
        if place.is_main:
            run.write_record({"command": "gate-calibrate", "status": "unfinished", **job_key()}, digests={})
        result = calibration.save_gated(
            run,
            "gate-calibrate",
            options,
            (measure, chosen),
            began=began,
            parent=network,
            curve=curve,
            promise=guaranteed.to_dict() if guaranteed else None,
            cost_bound=bound,
            timing=timing,
        )
    return _plotted(result, options, place)


def _measures(calibration: Calibration, options: GateCalibrateOptions) -> tuple[Calibration, list[Measure]]:
    """The measures to choose from, and the images to choose thresholds on: half of them where a measure is learned.

    Raises:
        UserError: There are too few images to learn from.
    """
    if options.measure == LEARNED:
        fitted, _ = halves(len(calibration.labels), calibration.groups)
        measure = learned(fit_heads(calibration.logits[:, fitted], calibration.labels[fitted]))
        return calibration.for_thresholds(measure), [measure]
    return calibration, list(MEASURES.values()) if options.measure == "auto" else [MEASURES[options.measure]]


def _check_target(options: GateCalibrateOptions) -> None:
    """Raises:
    UserError: There is not exactly one target, or options that it does not use.
    """
    targets = (options.max_drop, options.target_macs, options.target_ms, options.threshold or None)
    if sum(target is not None for target in targets) != 1:
        remedy = "Give --max-drop POINTS, --target-macs RATIO, --target-ms X or --threshold X."
        raise usage_error("gate-calibrate needs exactly one target.", remedy)
    level, drop = options.confidence_level, options.max_drop
    if level is not None and (options.target_ms is not None or options.threshold):
        raise meaningless("confidence_level", "--target-ms" if options.target_ms is not None else "--threshold")
    if level is not None and options.target_macs is None and not LEAST_DROP <= (drop or 0) < 100:
        remedy = f"Add --max-drop POINTS, at least {LEAST_DROP} and below 100, or --target-macs RATIO."
        raise usage_error("--confidence-level needs a --max-drop or --target-macs to guarantee.", remedy)
    if options.engine != "torch" and options.target_ms is None:
        raise meaningless("engine", "no --target-ms")
    check_engine(options)


def _plotted(result: GateResult, options: GateCalibrateOptions, place: Place) -> GateResult:
    """Plot the result where ``--plot`` asks for it, and return it."""
    if options.plot is not None and place.is_main:
        plot(result, options.plot)
    return result


def _choose(
    calibration: Calibration, measures: list[Measure], options: GateCalibrateOptions
) -> tuple[Measure, Outcome, list[Outcome]]:
    """The certainty measure of the gate, its outcome, and the trade-off curve around it."""
    measured = {measure: calibration.member_scores(measure) for measure in measures}
    teacher = calibration.network.record.get("teacher")
    first, scores = next(iter(measured.items()))
    count = len(scores.values)
    if options.threshold:
        if len(measured) > 1:
            raise usage_error(
                "--threshold needs one measure, not --measure auto.", "Name one, e.g. --measure confidence."
            )
        thresholds = options.threshold * count if len(options.threshold) == 1 else options.threshold
        if len(thresholds) != count:
            remedy = "Give one for all exits, or repeat the flag once per exit."
            raise usage_error(f"{len(thresholds)} thresholds for {count} exit(s) before the last member.", remedy)
        return first, outcome(scores, first, thresholds), []
    if options.max_drop is not None:
        limit = {"max_drop": options.max_drop}
        measure = best_measure(measured, **limit)
        return measure, *search(measured[measure], measure, **limit)
    if teacher is None or "macs" not in teacher:
        raise UserError("--target-macs needs the teacher's MACs, which are not on record.", "Use --max-drop.")
    assert options.target_macs is not None
    least = int(scores.macs[0]) / teacher["macs"]
    if options.target_macs < least:
        remedy = f"The lowest possible is --target-macs {_rounded_up(least)}; for less, distil a smaller student."
        raise usage_error(
            f"--target-macs {options.target_macs} is below the {least:.4f} of the first member alone.", remedy
        )
    most = options.target_macs * teacher["macs"]
    measure = best_measure(measured, max_macs=most)
    if options.confidence_level is not None:
        return measure, *search_within(measured[measure], measure, most, options.confidence_level, calibration.groups)
    return measure, *search(measured[measure], measure, max_macs=most)


def _bound(
    calibration: Calibration, measure: Measure, chosen: Outcome, options: GateCalibrateOptions
) -> dict[str, Any] | None:
    """What the gate may cost on new images, where that was asked for."""
    if options.confidence_level is None:
        return None
    scores, teacher = calibration.member_scores(measure), calibration.network.record["teacher"]["macs"]
    macs = bound_of_macs(scores, measure, chosen.thresholds, options.confidence_level, calibration.groups)
    ratio = round(macs / teacher, 6)
    return {"confidence_level": options.confidence_level, "images": calibration.distinct, "macs_ratio": ratio}


def _chosen_by(record: dict[str, Any]) -> str:
    """What chose among cascades by their accuracy on the calibration images, if anything did."""
    training, result = record.get("training") or {}, record.get("result") or {}
    reasons = {
        "polish": result.get("polished"),
        "--search": training.get("search") or result.get("search"),
        "--grow": "target" in (training.get("stopped_by"), result.get("stopped_by")),
        "--stop-top1": record.get("options", {}).get("stop_top1") is not None,
    }
    return ", ".join(name for name, holds in reasons.items() if holds)


def _why_none(guaranteed: GuaranteedGate, images: int) -> str:
    """Why no gate is guaranteed."""
    if not guaranteed.gates:
        return "no gate that skips members loses so little"
    if guaranteed.enough_for_next is None:
        return f"{images} images are too few to guarantee a gate, and more like these would not suffice"
    more = f"about {guaranteed.enough_for_next} would suffice if the first gate tested errs as often on them"
    return f"{images} images are too few to guarantee a gate; {more}"


def _rounded_up(ratio: float) -> str:
    return f"{ratio + 5e-5:.4f}"
