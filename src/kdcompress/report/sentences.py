"""The report in words: the sentence that answers the user, and what the guarantee means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcompress.quantities import scaled
from kdcompress.report.facts import Facts
from kdcompress.results import ReportResult

MEASURES = {
    "confidence": "the largest probability",
    "margin": "the lead of the largest probability over the second",
    "entropy": "the entropy of the probabilities, divided by its maximum,",
    "energy": "the energy of the logits",
    "agreement": "the mean probability that the members so far give to the answer",
    "learned": "the learned certainty that going on would not mend the answer",
}


def headline(facts: Facts) -> str:
    """Accuracy, cost and loss in one sentence."""
    found = facts.result
    macs = found.macs if found.expected_macs is None else found.expected_macs
    ratio = found.macs_ratio if found.expected_macs is None else found.expected_macs_ratio
    cost = f"for {scaled(macs)} MACs per image" if ratio is None else f"at {percent(ratio)} of the teacher’s MACs"
    what = "agreement with the teacher" if found.agreement else "top-1"
    start = f"This {facts.subject} reaches {found.top1:.2f} % {what} on the {found.split} split {cost}"
    if found.points_lost is None or found.teacher_top1 is None:
        return f"{start}."
    return f"{start}, {_apart(found.points_lost)} the teacher ({found.teacher_top1:.2f} %)."


def certainty(found: ReportResult) -> str:
    """How precisely that is known from so many images."""
    images = f"{found.n:,} image{'s' * (found.n != 1)}"
    if found.agreement:
        return f"Measured on {images} without labels: every accuracy on this page is agreement with the teacher."
    if found.points_lost is None or found.points_lost_interval is None:
        return f"Measured on {images}."
    low, high = found.points_lost_interval
    return (
        f"Measured on {images}, the same for both: with 95 % confidence the loss is between {_signed(low)} and "
        f"{_signed(high)} points (below zero is a gain)."
    )


def percent(share: float) -> str:
    """``18.3 %`` of a share of 0.183."""
    return f"{100 * share:.3g} %"


def gate_in_words(found: ReportResult) -> str:
    """The rule by which images leave a cascade."""
    limits = found.thresholds or []
    if found.measure is None or not limits:
        return ""
    shown = ["no limit" if limit is None else f"{limit:.4g}" for limit in limits]
    side = "at most" if found.measure == "entropy" else "at least"
    many = len(shown) > 1
    return (
        f"An image stops as soon as {MEASURES.get(found.measure, found.measure)} is {side} the threshold "
        f"({'after each member: ' if many else ''}{_listed(shown)}); later members are then not run."
    )


def how_measured(facts: Facts) -> list[str]:
    """What one must know to read the plots of accuracy over cost."""
    found, notes = facts.result, list[str]()
    if found.measure is not None:
        notes.append("Thresholds were chosen on the calibration split, and MACs are averages over these images.")
    if len(facts.curve) > 1:
        notes.append("The curve shows what the other thresholds that were found there do here.")
    if found.oracle_top1 is not None and found.oracle_macs is not None:
        notes.append(
            "The oracle stops each image at the first member that is right "
            f"({found.oracle_top1:.2f} % for {scaled(found.oracle_macs)} MACs): no gate does better."
        )
    if found.hardware is not None:
        notes.append(f"Milliseconds: one image at a time, on average, in turns, on {found.hardware}.")
    return notes


SEEN_BEFORE = (
    "Weights of this network may have been trained on the calibration images, so that what follows may not hold: on "
    "new images it may lose, or cost, more."
)


def guarantee_in_words(facts: Facts) -> list[str]:
    """What is promised of new images, how it was tested, and what this split says."""
    found, promise = facts.result, facts.promise
    if found.measure is None:
        return ["A guarantee is about a gate, and this run has none: every image gets all of the network."]
    bound = facts.cost_bound
    told = _bounded(bound) if bound and promise is None else _promised(promise)
    if facts.calibration_seen and (bound or promise):
        told.insert(0, SEEN_BEFORE)
    return [*told, *_seen(found, promise)]


def _bounded(bound: dict[str, Any]) -> list[str]:
    return [
        f"With {100 * float(bound['confidence_level']):g} % confidence, this gate costs at most "
        f"{100 * float(bound['macs_ratio']):.1f} % of the teacher's MACs on new images, on average: an upper "
        f"bound from {bound['images']:,} calibration images, as long as no weights were chosen on those. Of accuracy "
        "nothing was guaranteed."
    ]


def _promised(promise: dict[str, Any] | None) -> list[str]:
    if promise is None:
        return [
            "No guarantee was asked for. The thresholds are those that were best on the calibration split; new images "
            "may lose somewhat more. A guarantee takes "
            "`kdcompress gate-calibrate --max-drop 0.5 --confidence-level 0.95`."
        ]
    drop, level = float(promise["max_drop"]), f"{100 * float(promise['confidence_level']):g} %"
    if promise.get("p_value") is None:
        return [
            f"At most {drop:g} points lost was asked for, with {level} confidence, and no gate passed the test: "
            "every member runs on every image."
        ]
    return [
        f"With {level} confidence, this gate loses at most {drop:g} points of top-1 on new images against running "
        "every member. It holds for any distribution of images, as long as new images are drawn from the same one as "
        "the calibration images, and no weights were chosen on those.",
        f"Gates were tested on {promise['images']:,} calibration images that had no part in finding them. Of those, "
        f"this one loses {promise['broken']:,} that all members together get right, and gains {promise['mended']:,} "
        f"(p = {float(promise['p_value']):.2g}; {promise['gates']:,} gates were tested, in a fixed order).",
    ]


def _seen(found: ReportResult, promise: dict[str, Any] | None) -> list[str]:
    if found.full_top1 is None:
        return []
    loss = round(found.full_top1 - found.top1, 4)
    start = f"On the {found.split} split, the gate has {found.top1:.2f} % and all members {found.full_top1:.2f} %: "
    text = start + (f"{loss:.2f} points lost." if loss > 0 else f"{-loss:.2f} points gained." if loss else "none lost.")
    if promise is not None and promise.get("p_value") is not None and loss > float(promise["max_drop"]):
        text += " That is more than was promised: these images are few, or of another kind than the calibration images."
    return [text]


def _apart(lost: float) -> str:
    if round(lost, 2) == 0:
        return "as many as"
    return f"{abs(lost):.2f} points {'below' if lost > 0 else 'above'}"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
