"""``train-teacher``, ``distill`` and ``add-res-student``: three ways into the one training loop."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from kdcompress.api.job import Job, Phase, finished
from kdcompress.api.lwkd import train_lwkd
from kdcompress.api.prepare import adapter, batches_for, fresh, logit_weights, shared
from kdcompress.api.reference import (
    Teacher,
    check_channels,
    check_classes,
    check_unchanged,
    inherit,
    load_teacher,
    open_data,
    piped,
    resize_input,
)
from kdcompress.api.rkd_assistant import train_rkd_assistant
from kdcompress.data import Preprocess, choose_channels
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.kd import KdTask
from kdcompress.methods.reskd import ResKdTask
from kdcompress.methods.supervised import SupervisedTask, TfKdTask
from kdcompress.models.assemble import as_cascade, joined, new_member
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.loading import CHECKPOINT_SUFFIXES, Network, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged
from kdcompress.option_set import Options, flag
from kdcompress.options import (
    TEACHERLESS,
    AddResStudentOptions,
    AssistantOptions,
    DistillOptions,
    LightTeacherOptions,
    ResidualOptions,
    TrainTeacherOptions,
)
from kdcompress.results import TrainResult
from kdcompress.runs import RECORD, claim
from kdcompress.trust import check_trusted

LABEL_SMOOTHING = 0.1
DIVIDED_ONLY = ("assistant_share", "scheme", "reuse_teacher_classifier", "freeze_classifier")


def train_teacher(
    options: TrainTeacherOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    """Train, or fine-tune, a network on labels.

    Args:
        options: All options at once; else give them by name (the fields of :class:`TrainTeacherOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: Options, data or model that cannot be used.

    Example:
        >>> kdcompress.train_teacher(model="resnet32_cifar", data="digits", epochs=15).top1
    """
    options = options or TrainTeacherOptions.resolve(given)
    job = Job.begin("train-teacher", "ce", options, reporter)
    if (done := job.finished()) is not None:
        return done
    source = open_data(options)
    network = fresh(options.model, source, options, choose_channels(source, options), options.pretrained)
    task = SupervisedTask(network.model, label_smoothing=options.label_smoothing or 0.0)
    return job.train([Phase(lambda: task)], network, batches_for(source, network.prep, job))


def distill(options: DistillOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any) -> TrainResult:
    """Train a student, by a teacher or (``ce``, ``label-smoothing``, ``tf-kd``) without one.

    ``reskd`` makes a cascade of one member, and adds ``res_students`` more if asked for.

    Args:
        options: All options at once; else give them by name (the fields of :class:`DistillOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: Options, data or model that cannot be used; a teacher whose classes are not those of the data.

    Example:
        >>> kdcompress.distill(teacher="runs/teacher", method="kd", student="resnet8_cifar,width=0.5").run
    """
    options = _teacher_arch_first(options or DistillOptions.resolve(given))
    _check_distill(options)
    if options.teacher == "-":  # what comes may be a checkpoint
        start(options.device, options.precision)
        options = _teacher_arch_first(piped(options))
        _check_distill(options)
    if options.res_students:
        return _grow(options, reporter)
    job = Job.begin("distill", options.method, options, reporter)
    options = job.options
    if (done := job.finished()) is not None:
        return done
    if options.method == "lwkd":  # its teacher has other data
        return _lwkd(job, options)
    teacher = load_teacher(options.teacher, options.teacher_arch, job.reporter) if options.teacher is not None else None
    options = job.options = inherit(options, teacher.network.record if teacher else {})
    source = open_data(options)
    channels = choose_channels(source, options)
    if teacher is not None:
        check_classes(teacher.network, source, "teacher")
        if options.input_size is None and teacher.network.record.get("data_fingerprint") == source.fingerprint:
            channels = teacher.network.prep.channels
        check_channels(teacher.network, channels, "teacher")
    if options.method == "rkd-assistant":
        assert teacher is not None
        return train_rkd_assistant(job, options, teacher, source, channels)
    student = fresh(options.student, source, options, channels, options.pretrained)
    prep = shared(student.prep, teacher.network.prep, source) if teacher else student.prep
    task = _task(options, student, teacher, prep)
    cascade = options.method == "reskd"
    return job.train(
        [Phase(lambda: task)],
        student,
        batches_for(source, prep, job),
        teacher,
        assemble=as_cascade if cascade else lambda network: network,
        energies=[] if cascade else None,
    )


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
        raise usage_error(f"--{min(weights)} has no meaning here (--residual-loss mse).", "Leave it out.")
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
        views=len(base.model.members),
    )


def _lwkd(job: Job, options: DistillOptions) -> TrainResult:
    source = open_data(options)
    student = fresh(options.student, source, options, choose_channels(source, options), options.pretrained)
    return train_lwkd(job, options, source, student, lambda given: train_teacher(given, reporter=job.reporter))


def _ungated(network: Network, job: Job) -> Network:
    if isinstance(network.model, Staged) and network.model.gate is not None:
        job.reporter.note("Notice: the gate of the run does not fit another member; calibrate it again.")
        network.model.gate = None
        network.model_args = {key: value for key, value in network.model_args.items() if key != "gate"}
    return network


def _grow(options: DistillOptions, reporter: Reporter | None) -> TrainResult:
    """S0 and its res-students in one command: each a run of its own, below the folder of the last one."""
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
        given.update(alpha=None, temperature=None)
    return AddResStudentOptions(**{**given, "arch": (arch,)})


def _check_distill(options: DistillOptions) -> None:
    if options.method in TEACHERLESS and options.teacher is not None:
        raise usage_error(
            f"--method {options.method} takes no teacher.", "Leave TEACHER out, or choose kd, reskd or rkd-assistant."
        )
    if options.method not in (*TEACHERLESS, "lwkd") and options.teacher is None:
        raise usage_error(f"--method {options.method} needs a TEACHER.", "Give a run folder, '-', or a checkpoint.")
    if options.res_students and (options.method != "reskd" or not options.arch):
        raise usage_error("--res-students goes with --method reskd and --arch.", "Add them, or leave it out.")
    unused = [
        name
        for name, used in (
            ("alpha", options.method not in ("ce", "label-smoothing", "rkd-assistant")),
            ("temperature", options.method not in ("ce", "label-smoothing")),
            ("teacher_arch", options.teacher is not None),
        )
        if getattr(options, name) is not None and not used
    ]
    if options.method != "lwkd":
        unused += _changed(options, LightTeacherOptions)
    if options.method != "rkd-assistant":
        unused += _changed(options, AssistantOptions)
    elif options.undivided:
        unused += [name for name in _changed(options, AssistantOptions) if name in DIVIDED_ONLY]
    if not options.res_students:
        unused += [name for name in _changed(options, ResidualOptions) if name.startswith("residual")]
    if unused:
        raise usage_error(f"{flag(unused[0])} has no meaning here (--method {options.method}).", "Leave it out.")
    if options.arch and not options.res_students and options.teacher != "-":
        raise usage_error("--arch is for res-students, or for a TEACHER that is a checkpoint.", "Add --res-students N.")


def _changed(options: DistillOptions, kind: type[Options]) -> list[str]:
    """Options of one set that are not at their defaults."""
    defaults = vars(kind())
    return [name for name, value in defaults.items() if getattr(options, name) != value]


def _teacher_arch_first(options: DistillOptions) -> DistillOptions:
    """``--arch`` names the architecture of a checkpoint that is the teacher, as it does for the other commands."""
    path = Path(options.teacher or "")
    checkpoint = path.suffix in CHECKPOINT_SUFFIXES or path.is_file()
    if options.teacher_arch is None and options.arch and checkpoint:
        return dataclasses.replace(options, teacher_arch=options.arch[0], arch=options.arch[1:])
    return options


def _teacher_of(base: Network, options: AddResStudentOptions, job: Job) -> Teacher:
    known = base.record.get("teacher")
    if options.teacher is not None:
        return load_teacher(options.teacher, options.teacher_arch, job.reporter)
    if known is None:
        raise UserError(
            f"The run {base.reference} has no teacher on record.", "Give the one to learn from: --teacher REF."
        )
    check_trusted([known["reference"], known.get("arch")], f"The run {base.reference}")
    teacher = load_teacher(known["reference"], known.get("arch"), job.reporter)
    if teacher.entry["fingerprint"] != known["fingerprint"]:
        job.reporter.note(f"Notice: the teacher {known['reference']} has changed since this run was distilled.")
    return teacher


def _task(options: DistillOptions, student: Network, teacher: Teacher | None, prep: Preprocess) -> StudentTask:
    """The task of a method, with the method's own defaults."""
    own, smoothing = adapter(prep, student.prep), options.label_smoothing or 0.0
    if options.method == "label-smoothing":
        given = options.label_smoothing
        return SupervisedTask(student.model, own, LABEL_SMOOTHING if given is None else given)
    if options.method == "tf-kd":
        return TfKdTask(student.model, own, smoothing, **logit_weights(options))
    if teacher is None:
        return SupervisedTask(student.model, own, smoothing)
    frozen = teacher.freeze(adapter(prep, teacher.network.prep))
    return KdTask(student.model, frozen, own, smoothing, **logit_weights(options))
