"""``cascade``: networks that are trained already become the members of one cascade."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from kdcompress.api.claimed import claimed
from kdcompress.api.cost import facts, member_profiles, note_missed
from kdcompress.api.fitting import check_classes, check_images, open_data, resize_input
from kdcompress.api.inputs import note_assumed, settle_input
from kdcompress.api.job import finished, recorded, versions
from kdcompress.api.recorded_split import keep_split
from kdcompress.api.reference import inherit, resolved
from kdcompress.api.teacher import DIVIDED, SEEN, as_teacher, knows_calibration, load_teacher
from kdcompress.api.teacher_score import TeacherScores, lost
from kdcompress.data import Data, DataSource, parse_size
from kdcompress.data.prepared import HOLDOUT
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, from_main, start
from kdcompress.engine.evaluate import collect
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.restart import job_key, resuming
from kdcompress.errors import UserError, usage_error
from kdcompress.models.assemble import cascade_of
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import INPUT_SIZE, Network, Note, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.saving import model_config, save_network
from kdcompress.models.staged import Staged
from kdcompress.options import CascadeOptions
from kdcompress.options.methods import meaningless
from kdcompress.references import absolute, has_weights, needs_arch
from kdcompress.results import CascadeResult
from kdcompress.runs import RunFolder, file_hash

AT_ONCE = 128  # images


def cascade(
    options: CascadeOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> CascadeResult:
    """Make a cascade of networks that exist, from the cheapest to the dearest, without training.

    Each keeps the input size and normalisation that it was trained with. ``gate_calibrate`` then chooses which images
    stop early.

    Args:
        options: All options at once; else give them by name (the fields of :class:`CascadeOptions`).
        reporter: Receives notices.

    Raises:
        UserError: Fewer than two networks, or networks whose classes or channels differ.

    Example:
        >>> kdcompress.cascade(members=["runs/student", "runs/teacher"]).stage_top1
    """
    options = options or CascadeOptions.resolve(given)
    _check(options)
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    references, began = resolved(options.members, options.arch), time.perf_counter()
    reporter = (reporter if place.is_main else None) or Silent()
    options = resuming(options, "cascade", reporter.note)
    take_free_cores(place, reporter)
    done = finished(options, "cascade", CascadeResult, reporter)
    networks = _loaded(options, references, reporter)
    if done is not None:
        _check_same(done, networks)
        return done
    converts = options.input_size is not None and parse_size(options.input_size)[0]  # to channels that the members take
    if options.input_size is not None and not converts and not any(INPUT_SIZE in each.assumed for each in networks):
        raise meaningless("input_size", "every member records its own")
    options = _inherited(options, networks)
    source = None
    if options.data is not None:
        source = open_data(options, next((each for each in networks if each.record.get("options")), None))
    _check_alike(networks, source, options, reporter)
    made = _composed(networks, source.class_names if source is not None else None, options, reporter.note)
    teacher = _teacher(networks, source, options, reporter)
    profiles = member_profiles(made)
    note_missed(profiles, made.architecture, reporter)
    _note_order(networks, reporter)
    measured = _measured(made, networks, teacher, source, options, place, reporter)
    with claimed(options, f"cascade-{networks[0].architecture}", place, reporter) as run:
        if place.is_main:
            run.write_record({"command": "cascade", "status": "unfinished", **job_key()}, digests={})
        result = CascadeResult(
            command="cascade",
            run=str(run.path),
            seconds=round(time.perf_counter() - began, 3),
            **measured,
            **facts(made, teacher, profiles),
        )
        record: dict[str, Any] = {
            "command": "cascade",
            "options": options.to_dict(),
            "teacher": teacher,
            "parents": [network.reference for network in networks],
            "parent_fingerprints": [network.fingerprint() for network in networks],
            "parent_files": [file_hash(network.path) for network in networks],
            "versions": versions(),
            "result": result.to_dict(),
            **job_key(),
        }
        if source is None:
            record[SEEN] = True  # by whatever images come with a later command
        else:
            data = Data(source, made.prep, options, place.device)
            record.update(options=recorded(options, data), data_fingerprint=source.fingerprint)
            record[DIVIDED] = source.division
            record[SEEN] = result.calibration_seen

        config = model_config(made.model, made.architecture, made.model_args, made.class_names)

        def save() -> None:
            save_network(run, made.model, config)
            if source is not None:
                keep_split(run, source)
            run.finish(record)

        from_main(save)
    return result


def _inherited(options: CascadeOptions, networks: list[Network]) -> CascadeOptions:
    """Options with the data of the members, and of those on the same data the smallest share that one held out: of
    larger shares it was trained on a part.

    Raises:
        UserError: Another share is asked for.
    """
    past = [network.record.get("options", {}) for network in networks]
    data = next((each["data"] for each in past if each.get("data")), None)
    if options.data is not None:
        data = absolute(options.data)
    same = [network for network, each in zip(networks, past, strict=True) if data and each.get("data") == data]
    if not same:
        return options
    return inherit(options, min(same, key=lambda each: each.record["options"].get("holdout") or HOLDOUT).record)


def _check(options: CascadeOptions) -> None:
    """Before anything is loaded.

    Raises:
        UserError: Too few networks, or another number of weights than they need.
    """
    count = len(options.members)
    if count < 2:
        raise usage_error("A cascade has two members or more.", "Name them from the cheapest to the dearest.")
    if len(options.sum_weight) not in (0, 1, count - 1):
        problem = f"{len(options.sum_weight)} --sum-weight for {count} networks."
        raise usage_error(problem, f"Give one for all, or {count - 1}: one for each network but the first.")


def _loaded(options: CascadeOptions, references: list[str], reporter: Reporter) -> list[Network]:
    specs, networks = iter(options.arch), []
    for each in references:
        arch = next(specs) if needs_arch(each) else None
        network = load_network(each, arch, weights=True, note=reporter.note)
        if not has_weights(each):
            reporter.note(f"Notice: {each} comes with timm's pretrained weights.")
        if isinstance(network.model, Staged) and network.model.gate is not None:
            reporter.note(f"Notice: the gate of {each} is dropped; calibrate that of the new cascade.")
            network.model.gate = None
            network.model_args = {key: value for key, value in network.model_args.items() if key != "gate"}
        networks.append(network)
    return networks


def _check_alike(
    networks: list[Network], source: DataSource | None, options: CascadeOptions, reporter: Reporter
) -> None:
    """Refuse networks that cannot answer for each other.

    Raises:
        UserError: Their classes or channels differ, or are not those of the data.
    """
    first = networks[0]
    named = next((network for network in networks if network.class_names), first)
    for network in networks:
        if source is not None:
            check_classes(network, source, "network")
            settle_input(network, source, options, reporter.note, "--arch")
            check_images(network, source, options, "calibration", "network")
        else:
            if INPUT_SIZE in network.assumed:
                resize_input(network, options)
            note_assumed(network, reporter.note, "--arch")
    for network in networks[1:]:
        names = (named.class_names, network.class_names)
        if network.num_classes != first.num_classes or (all(names) and names[0] != names[1]):
            other = first if network.num_classes != first.num_classes else named
            problem = f"{other.reference} and {network.reference} have other classes, or in another order."
            raise UserError(problem, "Members must answer the same question: give networks of the same classes.")
        if network.prep.channels != first.prep.channels:
            counts = f"{first.prep.channels} and {network.prep.channels}"
            raise UserError(
                f"{first.reference} and {network.reference} take {counts} channels.",
                "Give networks for the same kind of images.",
            )


def _check_same(done: CascadeResult, networks: list[Network]) -> None:
    """Raises:
    UserError: A finished run has other members than it is to have.
    """
    known = RunFolder(Path(str(done.run))).record().get("parent_fingerprints")
    if known is not None and known != [network.fingerprint() for network in networks]:
        problem = f"The run {done.run} is finished, but its members are others, or have changed since."
        raise usage_error(problem, "Choose another folder, or remove this one to make it anew.")


def _note_order(networks: list[Network], reporter: Reporter) -> None:
    """Say which were most likely named the wrong way round."""
    costs = [sum(profile.macs for profile in member_profiles(network)) for network in networks]
    for (before, first), (after, second) in itertools.pairwise(zip(networks, costs, strict=True)):
        if second < first:
            reporter.note(
                f"Notice: {after.reference} costs less than {before.reference} before it. Every image runs the first "
                "member, so name them from the cheapest to the dearest."
            )


def _composed(networks: list[Network], classes: tuple[str, ...] | None, options: CascadeOptions, note: Note) -> Network:
    weights = list(options.sum_weight) or [0.0]
    if len(weights) == 1:
        weights *= len(networks) - 1
    for network, weight in zip(networks[1:], weights, strict=True):
        if weight and isinstance(network.model, ResidualCascade):  # its first member's share of its own sum differs
            problem = f"--sum-weight {weight:g} before {network.reference}, which is a cascade itself."
            raise usage_error(problem, "Give one for each network but the first, and 0 before a cascade.")
    made = cascade_of(networks, weights)
    for network in networks:
        own, size = (f"{side[0]}x{side[1]}" for side in (network.prep.size, made.prep.size))
        if own != size:
            note(f"Notice: {network.reference} gets images resized from {size} to {own}, which may cost accuracy.")
    names = (each.class_names for each in networks if each.class_names)
    made.class_names = next(names, classes) or next((each.labels for each in networks if each.labels), None)
    return made


def _teacher(
    networks: list[Network], source: DataSource | None, options: CascadeOptions, reporter: Reporter
) -> dict[str, Any]:
    """The entry of ``run.json`` against which costs are counted: the teacher on record, else the last network."""
    if options.teacher is None:
        for network in networks:
            if (known := network.record.get("teacher")) and "macs" in known:
                return dict(known)
    last = networks[-1]
    if options.teacher is not None:
        last = load_teacher(options.teacher, options.teacher_arch, None, reporter)
        if source is not None:
            check_classes(last, source, "teacher")
    if source is not None:
        return as_teacher(last, source, options, reporter).entry
    cost = facts(last, None, member_profiles(last))
    return {**last.entry(), **{key: cost[key] for key in ("architecture", "macs", "params")}}


def _measured(
    made: Network,
    networks: list[Network],
    teacher: dict[str, Any],
    source: DataSource | None,
    options: CascadeOptions,
    place: Place,
    reporter: Reporter,
) -> dict[str, Any]:
    """Accuracy of each stage on the calibration split, where there are data."""
    if source is None:
        reporter.note("Notice: no data are named, so nothing is scored; gate-calibrate needs --data, too.")
        return {}
    data = Data(source, made.prep, options, place.device, note=reporter.note)
    reporter.note(f"Scoring every member on the calibration split of {source.spec}.")
    model = for_inference(made.model, place.device)
    assert isinstance(model, ResidualCascade)
    logits, labels = collect(model.forward_stages, data.evaluation("calibration", AT_ONCE), place)
    right = (logits.argmax(-1) == labels).sum(-1)
    stage_top1 = [round(100 * count / len(labels), 4) for count in right.tolist()]
    scores = TeacherScores("calibration", source, options, place, reporter)
    holdout = options.holdout or HOLDOUT
    seen = any(knows_calibration(network, source, holdout) for network in networks)
    if seen:
        reporter.note(
            "Notice: a member may have been trained on the calibration images; a gate may then lose more on new ones."
        )
    return {
        "data": source.spec,
        "split": "calibration",
        "n": len(labels),
        "top1": stage_top1[-1],
        "stage_top1": stage_top1,
        "calibration_seen": seen,
        **lost(stage_top1[-1], scores.top1(teacher), source),
    }
