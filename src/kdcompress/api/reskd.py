"""``add-res-student``, and a whole cascade in one command (ResKD)."""

from __future__ import annotations

from typing import Any

from kdcompress.api.job import Job, Phase
from kdcompress.api.prepare import adapter, batches_for, logit_weights, shared
from kdcompress.api.reference import (
    Teacher,
    check_channels,
    check_classes,
    check_unchanged,
    inherit,
    load_teacher,
    open_data,
    resize_input,
)
from kdcompress.api.targets import check_views
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import Frozen
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.assemble import as_cascade, joined, new_member
from kdcompress.models.build import ModelSpec
from kdcompress.models.loading import Network, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged
from kdcompress.option_set import flag
from kdcompress.options import (
    AddResStudentOptions,
)
from kdcompress.results import TrainResult
from kdcompress.trust import check_trusted


def add_res_student(
    options: AddResStudentOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    """Freeze the members of a run and train one more on what they miss of the teacher.

    Args:
        options: All options at once; else give them by name (the fields of :class:`AddResStudentOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: As for :func:`distill`; a run whose teacher is not known.

    Example:
        >>> kdcompress.add_res_student(run="runs/cascade", arch="resnet8_cifar,width=0.5").energies
    """
    options = options or AddResStudentOptions.resolve(given)
    if len(options.arch) != 1:
        raise usage_error("add-res-student needs one --arch.", "E.g. --arch resnet8_cifar,width=0.5.")
    if options.residual_loss == "mse" and (weights := logit_weights(options)):
        raise usage_error(f"{flag(min(weights))} has no meaning here (--residual-loss mse).", "Leave it out.")
    check_views(options)
    job = Job.begin("add-res-student", "reskd", options, reporter)
    options = job.options
    if (done := job.finished()) is not None:
        return done
    base = as_cascade(_ungated(load_network(options.run), job))
    assert isinstance(base.model, ResidualCascade)
    teacher = _teacher_of(base, options, job)
    options = job.options = inherit(options, base.record)
    resize_input(base, options)
    source = open_data(options)
    check_classes(teacher.network, source, "teacher")
    check_classes(base, source, "student")
    check_unchanged(base, source)
    check_channels(teacher.network, base.prep.channels, "teacher")
    member = new_member(ModelSpec.parse(options.arch[0]), base, options.seed)
    prep = shared(base.prep, teacher.network.prep, source)
    task = ResKdTask(
        member.model,
        Frozen(base.model, adapter(prep, base.prep)),
        teacher.freeze(adapter(prep, teacher.network.prep)),
        adapter(prep, base.prep),
        options.label_smoothing or 0.0,
        options.residual_loss,
        **logit_weights(options),
        warmup=options.residual_warmup,
    )
    data = batches_for(source, prep, job)
    # the result of a gated cascade is its gate's; that of its training is kept beside it
    earlier = (base.record.get("training") or base.record.get("result") or {}).get("energies") or []
    return job.train(
        [Phase(lambda: task)],
        member,
        data,
        teacher,
        assemble=lambda network: joined(base, network),
        energies=[*earlier[:-1], job.energy(task.members, teacher.frozen, data)],
        parent=base,
        view_shift=len(base.model.members),
    )


def _ungated(network: Network, job: Job) -> Network:
    if isinstance(network.model, Staged) and network.model.gate is not None:
        job.reporter.note("Notice: the gate of the run does not fit another member; calibrate it again.")
        network.model.gate = None
        network.model_args = {key: value for key, value in network.model_args.items() if key != "gate"}
    return network


def _teacher_of(base: Network, options: AddResStudentOptions, job: Job) -> Teacher:
    known = base.record.get("teacher")
    if options.teacher is not None:
        return load_teacher(options.teacher, options.teacher_arch, job.reporter)
    if known is None:
        raise UserError(
            f"The run {base.reference} has no teacher on record.", "Give the one to learn from: --teacher REF."
        )
    if base.record.get("method") == "lwkd":
        problem = f"{base.reference} learned from a lightweight teacher, which knows nothing of its images."
        raise UserError(problem, "Give a teacher of these data: --teacher REF.")
    check_trusted([known["reference"], known.get("arch")], f"The run {base.reference}")
    teacher = load_teacher(known["reference"], known.get("arch"), job.reporter)
    if teacher.entry["fingerprint"] != known["fingerprint"]:
        job.reporter.note(f"Notice: the teacher {known['reference']} has changed since this run was distilled.")
    return teacher
