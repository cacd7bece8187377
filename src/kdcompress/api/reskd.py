"""``add-res-student``, and a whole cascade in one command (ResKD)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Protocol

from kdcompress.api.job import Job, Phase, finished
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
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import Frozen
from kdcompress.methods.reskd import ResKdTask
from kdcompress.models.assemble import as_cascade, joined, new_member
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.loading import Network, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged
from kdcompress.option_set import flag
from kdcompress.options import (
    AddResStudentOptions,
    DistillOptions,
    ResidualOptions,
)
from kdcompress.results import TrainResult
from kdcompress.runs import RECORD, claim
from kdcompress.trust import check_trusted


class Distill(Protocol):
    def __call__(self, options: DistillOptions, /, *, reporter: Reporter | None) -> TrainResult: ...


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


def grow(options: DistillOptions, reporter: Reporter | None, distill: Distill) -> TrainResult:
    """S0 and its res-students in one command: each a run of its own, below the folder of the last one.

    Args:
        distill: ``distill``, for S0.
    """
    began = time.perf_counter()
    place = start(options.device, options.precision)
    for spec in map(ModelSpec.parse, options.arch):
        if not spec.name.startswith("py:"):
            default_config(spec.name)  # before S0 is trained for nothing
    archs = [options.arch[min(number, len(options.arch) - 1)] for number in range(options.res_students)]
    if (done := finished(_step(options, archs[-1]), "add-res-student", TrainResult, Silent())) is not None:
        found = [str(member["architecture"]).split(",")[0] for member in done.members or []]
        if found[:1] != [ModelSpec.parse(options.student).name] or len(found) != options.res_students + 1:
            raise usage_error(f"The run {done.run} is finished, but has {' + '.join(found)}.", "Choose another folder.")
        if reporter is not None and place.is_main:
            reporter.note(f"{done.run} is finished already.")
        return dataclasses.replace(done, command="distill")
    stem = f"distill-reskd-{options.student}-{options.res_students}-res-students"
    run = from_main(lambda: claim(options.out, stem, resume=options.resume))
    if place.is_main and not (run.path / RECORD).exists():
        run.write_json(RECORD, {"command": "add-res-student", "status": "unfinished"})
    own = {name: value for name, value in vars(ResidualOptions()).items() if name.startswith("residual")}
    first = dataclasses.replace(options, res_students=0, arch=(), out=str(run.path / "member-0"), resume=True, **own)
    try:
        result = distill(first, reporter=reporter)
    except Interrupted as interrupted:
        raise Interrupted(run.path) from interrupted
    except UserError:
        if place.is_main and not Path(str(first.out)).exists():  # it was refused before it began
            run.discard()
        raise
    for number, arch in enumerate(archs, start=1):
        out = run.path if number == len(archs) else run.path / f"member-{number}"
        step = dataclasses.replace(_step(options, arch), run=str(result.run), out=str(out), resume=True)
        try:
            result = add_res_student(step, reporter=reporter)
        except Interrupted as interrupted:
            raise Interrupted(run.path) from interrupted
    return dataclasses.replace(result, command="distill", seconds=round(time.perf_counter() - began, 3))


def _step(options: DistillOptions, arch: str) -> AddResStudentOptions:
    """What ``add-res-student`` is told, as far as ``distill`` was told the same."""
    names = {field.name for field in dataclasses.fields(AddResStudentOptions)} - {"run", "teacher", "teacher_arch"}
    given = {name: getattr(options, name) for name in names}
    if options.residual_loss == "mse":  # then they are those of S0 alone
        given.update(alpha=None, temperature=None, logit_loss="kl")
    return AddResStudentOptions(**{**given, "arch": (arch,)})


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
