"""``distill --method rkd-assistant``: divide the student, match its feature maps with the teacher's, train."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from kdcompress.api.job import Job, Phase
from kdcompress.api.recipes.prepare import adapter, batches_for, learner, logit_weights, opened, shared, smoothing
from kdcompress.api.targets import gib
from kdcompress.api.teacher import Teacher
from kdcompress.data import Preprocess
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import FrozenMaps
from kdcompress.methods.features import TRANSFERS, FeatureStage, feature_size, feature_stages, matched
from kdcompress.methods.rkd_assistant import SCHEMES, Divided, RkdAssistantTask, TransferTask, Undivided
from kdcompress.models.assemble import new_network, take_input
from kdcompress.models.build import ModelSpec
from kdcompress.models.loading import Network
from kdcompress.models.separate import separate
from kdcompress.models.student_assistant import ARCHITECTURE, StudentAssistant
from kdcompress.options import METHODS, DistillOptions
from kdcompress.results import TrainResult


def train_rkd_assistant(job: Job[DistillOptions]) -> TrainResult:
    """Train a student and its assistant, or with ``undivided`` the model that would be divided into them.

    Raises:
        UserError: A teacher or student without feature maps, a share that no widths give, a classifier that cannot be
            reused.
    """
    teacher, source, channels = opened(job)
    options = job.options
    assert teacher is not None
    if options.student.split(",")[0] == ARCHITECTURE:
        raise usage_error(f"--student {ARCHITECTURE} is already divided.", "Give the model that is to be divided.")
    if not options.undivided:
        _phases(options)
    if options.fine_tunes and not options.undivided:
        weights = "--pretrained weights" if options.pretrained else f"The weights of {options.student}"
        raise usage_error(f"{weights} do not fit the narrower student.", "Give a model spec, or add --undivided.")
    whole = learner(job, source, channels)
    classifier = _classifier_of(teacher) if options.reuse_teacher_classifier else None
    teacher_stages = feature_stages(teacher.network.model, f"The teacher {teacher.network.reference}")
    own_stages = feature_stages(whole.model, options.student)
    pairs = matched(teacher_stages, own_stages)
    _note_unmatched(job, options.student, teacher_stages, own_stages, pairs)
    prep = shared(whole.prep, teacher.network.prep, source)
    transfer = TRANSFERS[options.transfer]
    given: dict[str, Any] = {
        "transfer": transfer,
        "adapter": adapter(prep, whole.prep),
        "label_smoothing": smoothing(options),
        "transfer_weight": options.transfer_weight,
        "logit_weight": options.logit_weight,
        **logit_weights(options, METHODS[job.method]),
    }
    frozen = teacher.freeze(adapter(prep, teacher.network.prep))
    data = batches_for(source, prep, job)
    teachers, size = [stage for stage, _ in pairs], (prep.channels, *prep.size)
    shown = FrozenMaps(frozen, teachers, size, features=classifier is not None)
    network = whole if options.undivided else _separated(whole, options, teacher, job)
    _check_cache_size(job, options, gib(1, data.fit_size(), shown.width))
    matching = [[theirs.reduction, own.reduction] for theirs, own in pairs]
    if options.undivided:
        task = TransferTask(Undivided(whole.model, pairs, transfer.connected), shown, **given)
        return job.train([Phase(lambda: task)], network, data, teacher, matched_stages=matching)
    model = network.model
    assert isinstance(model, StudentAssistant)
    if classifier is not None:
        model.fc.load_state_dict(classifier.state_dict())
    positions = [own.index for _, own in pairs]
    student_pairs, assistant_pairs = (
        list(zip(teachers, [by_index[index] for index in positions], strict=True))
        for by_index in (
            {stage.index: stage for stage in feature_stages(part, options.student)}
            for part in (model.student, model.assistant)
        )
    )
    divided = Divided(model, student_pairs, assistant_pairs, options.freeze_classifier, transfer.connected)
    without_maps = FrozenMaps(frozen, [], size, features=shown.features)

    def phase(part: str, epochs: int) -> Phase:
        seen = without_maps if part == "classifier" else shown
        weight = options.student_weight
        return Phase(
            lambda: RkdAssistantTask(divided, seen, part=part, student_weight=weight, **given),
            epochs,
            f"({part}, {epochs} of {options.epochs} epochs)" if part != "all" else "",
        )

    phases = [phase(part, epochs) for part, epochs in _phases(options)]
    return job.train(phases, network, data, teacher, matched_stages=matching)


def _check_cache_size(job: Job[DistillOptions], options: DistillOptions, size: float) -> None:
    """Check that the feature maps to cache fit, or with ``--target-views auto`` print how large they would be.

    Args:
        size: GiB per view.

    Raises:
        UserError: They do not fit into ``--cache-size``.
    """
    wanted = (options.chosen_views or 0) * size
    if wanted > options.cache_size:
        problem = f"--target-views {options.chosen_views} of feature maps take {wanted:.3g} GiB"
        remedy = f"Give fewer views, --cache-size {math.ceil(wanted)}, or --target-views 0."
        raise usage_error(f"{problem}, and --cache-size is {options.cache_size:g}.", remedy)
    if options.chosen_views is None:
        job.reporter.note(
            "The teacher's feature maps are computed at every step. --target-views K would cache them for K views of "
            f"the images, {size:.3g} GiB per view."
        )


def _note_unmatched(
    job: Job[DistillOptions],
    student: str,
    teachers: list[FeatureStage],
    own: list[FeatureStage],
    pairs: list[tuple[FeatureStage, FeatureStage]],
) -> None:
    if len(pairs) == max(len(teachers), len(own)):
        return
    matching = ", ".join(f"{theirs.reduction} with {mine.reduction}" for theirs, mine in pairs)
    what = "only the last maps are matched" if len(pairs) == 1 else f"maps are matched by reduction: {matching}"
    job.reporter.note(f"Notice: {student} and the teacher have different feature stages; {what}.")


def _phases(options: DistillOptions) -> list[tuple[str, int]]:
    """The part that each phase trains, and its epochs, which add up to ``--epochs``.

    Raises:
        UserError: Fewer epochs than phases.
    """
    parts = SCHEMES[options.scheme]
    if options.epochs < len(parts):
        problem = f"--epochs {options.epochs} is too few for the {len(parts)} phases of --scheme {options.scheme}."
        raise usage_error(problem, f"Give {len(parts)} or more, or --scheme end-to-end.")
    later = [max(round(share * options.epochs), 1) for _, share in parts[1:]]
    return list(zip([part for part, _ in parts], [options.epochs - sum(later), *later], strict=True))


def _separated(whole: Network, options: DistillOptions, teacher: Teacher, job: Job[DistillOptions]) -> Network:
    """The given model, divided into a student and an assistant that take the same input."""
    args = {key: value for key, value in whole.model_args.items() if key not in ("in_chans", "num_classes")}
    features = feature_size(teacher.network.model)
    if (
        not options.reuse_teacher_classifier
    ):  # else projecting a narrow network to that many features costs more than it
        features = min(features, feature_size(whole.model))
    prep: Preprocess = whole.prep
    separation = separate(
        ModelSpec(whole.architecture, args),
        options.assistant_share,
        features=features,
        num_classes=whole.num_classes,
        in_chans=prep.channels,
        size=prep.size,
    )
    share, integration = (
        macs / separation.undivided_macs for macs in (separation.assistant_macs, separation.integration_macs)
    )
    if not 0.75 <= share / options.assistant_share <= 1.33:
        job.reporter.note(
            f"Notice: the assistant has {share:.0%} of the MACs: widths are whole channels, and the layers that add up "
            f"the features of both take {integration:.0%}."
        )
    if separation.student_macs < separation.assistant_macs:
        job.reporter.note("Notice: the student is smaller than its assistant. Try a smaller --assistant-share.")
    model = {"architecture": whole.architecture, "model_args": args}
    spec = ModelSpec(ARCHITECTURE, {"model": model, "widths": list(separation.widths), "features": features})
    network = new_network(
        spec, num_classes=whole.num_classes, channels=prep.channels, size=prep.size, seed=options.seed
    )
    take_input(network.model, whole.model)
    return network


def _classifier_of(teacher: Teacher) -> nn.Linear:
    model = teacher.network.model
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    if (
        not isinstance(classifier, nn.Linear)
        or classifier.in_features != feature_size(model)
        or classifier.bias is None
    ):
        raise UserError(
            f"The classifier of {teacher.network.reference} is not one linear layer on its features.",
            "Leave out --reuse-teacher-classifier.",
        )
    return classifier
