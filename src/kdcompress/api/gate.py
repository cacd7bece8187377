"""``gate-calibrate``: thresholds for a cascade, from its calibration split."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from kdcompress.api.claimed import claimed
from kdcompress.api.fitting import check_classes, check_unchanged, open_data, resize_input
from kdcompress.api.gated import Calibration
from kdcompress.api.job import finished
from kdcompress.api.reference import inherit, resolve
from kdcompress.api.teacher import SEEN
from kdcompress.data import Data
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.restart import job_key, resuming
from kdcompress.errors import UserError, usage_error
from kdcompress.gate_search import best_measure, search
from kdcompress.gating import MEASURES, Outcome, outcome
from kdcompress.guarantee import Promise, promise
from kdcompress.models.loading import load_network
from kdcompress.options import GateCalibrateOptions
from kdcompress.plot import check_plot, plot
from kdcompress.results import GateResult

LEAST_DROP = 0.001  # points that can be promised: no split has so many images


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
    if options.confidence_level is not None and not LEAST_DROP <= (options.max_drop or 0) < 100:
        remedy = f"Give --max-drop POINTS, above 0 ({LEAST_DROP} or more) and below 100, beside it."
        raise usage_error("--confidence-level promises a --max-drop.", remedy)
    if options.plot is not None:
        check_plot(options.plot)
    # thresholds compare certainties, so they are found in the arithmetic in which most users will run them
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    options, began = dataclasses.replace(options, run=resolve(options.run)), time.perf_counter()
    reporter = (reporter if place.is_main else None) or Silent()
    options = resuming(options, "gate-calibrate", reporter.note)
    take_free_cores(place, reporter)
    if (done := finished(options, "gate-calibrate", GateResult, reporter)) is not None:
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
    data = Data(source, network.prep, options, place.device, note=reporter.note)
    found = Calibration.of(network, data, data.evaluation("calibration", options.batch_size), place)
    names = list(MEASURES) if options.measure == "auto" else [options.measure]
    promised = None
    if network.record.get(SEEN):
        what = "then the gate may lose" if options.confidence_level is None else "nothing is promised then: it may lose"
        reporter.note(
            "Notice: the cascade started from a teacher that may have learned from the calibration images; "
            f"{what} more on new ones."
        )
    if options.confidence_level is None or options.max_drop is None:
        measure, chosen, curve = _choose(found, names, options)
    else:
        promised = promise(
            found.logits,
            found.labels,
            found.macs,
            names,
            max_drop=options.max_drop,
            confidence_level=options.confidence_level,
        )
        measure = promised.measure
        stages = found.stages(measure)
        chosen = outcome(stages, measure, promised.thresholds)
        curve = search(stages, measure, max_drop=options.max_drop)[1]
        if all(limit is None for limit in promised.thresholds):
            reporter.note(f"Notice: every member runs: {_why(promised, len(found.labels))}.")
    stem = f"gated-{network.path.name if network.path else network.architecture}"
    with claimed(options, stem, place, reporter) as run:
        if place.is_main:
            run.write_record({"command": "gate-calibrate", "status": "unfinished", **job_key()}, digests={})
        result = found.save_gated(
            run,
            "gate-calibrate",
            options,
            (measure, chosen),
            began=began,
            parent=network,
            curve=curve,
            promise=promised.to_dict() if promised else None,
        )
    return _drawn(result, options, place)


def _drawn(result: GateResult, options: GateCalibrateOptions, place: Place) -> GateResult:
    if options.plot is not None and place.is_main:
        plot(result, options.plot)
    return result


def _choose(found: Calibration, names: list[str], options: GateCalibrateOptions) -> tuple[str, Outcome, list[Outcome]]:
    """The measure of the gate, what it does, and the trade-off around it."""
    measured, teacher = {name: found.stages(name) for name in names}, found.network.record.get("teacher")
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
    if teacher is None or "macs" not in teacher:
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


def _why(promised: Promise, images: int) -> str:
    """Why no gate is promised."""
    if not promised.gates:
        return "no gate that skips something loses so little"
    if promised.enough_for_next is None:
        return f"{images} images are too few to promise a gate, nor would more images like these do"
    more = f"about {promised.enough_for_next} would do, if the first gate tested errs as often on them"
    return f"{images} images are too few to promise a gate; {more}"


def _rounded_up(ratio: float) -> str:
    return f"{ratio + 5e-5:.4f}"
