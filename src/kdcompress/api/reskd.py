"""``add-res-student``, and a whole cascade in one command (ResKD)."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Protocol

from kdcompress.api.job import Job, finished
from kdcompress.api.prepare import logit_weights
from kdcompress.api.residual import Residual
from kdcompress.api.search import check_search, search
from kdcompress.api.targets import check_views
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.interrupt import Interrupted
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.option_set import flag
from kdcompress.options import (
    AddResStudentOptions,
    DistillOptions,
    ResidualOptions,
    SearchOptions,
)
from kdcompress.results import TrainResult
from kdcompress.runs import RECORD, claim


class Distill(Protocol):
    def __call__(self, options: DistillOptions, /, *, reporter: Reporter | None) -> TrainResult: ...


def add_res_student(
    options: AddResStudentOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult:
    """Freeze the members of a run and train one more on what they miss of the teacher.

    Its architecture is ``arch``, or is found by a ``search`` for one that costs at most ``max_macs``.

    Args:
        options: All options at once; else give them by name (the fields of :class:`AddResStudentOptions`).
        reporter: Told of the progress.

    Raises:
        UserError: As for :func:`distill`; a run whose teacher is not known; nothing to choose from in a search.

    Example:
        >>> kdcompress.add_res_student(run="runs/cascade", arch="resnet8_cifar,width=0.5").energies
    """
    options = options or AddResStudentOptions.resolve(given)
    check_search(options)
    if len(options.arch) != 1 and not options.search:
        remedy = "E.g. --arch resnet8_cifar,width=0.5; or let it be found: --search --max-macs 0.1."
        raise usage_error("add-res-student needs one --arch, or --search.", remedy)
    if options.residual_loss == "mse" and (weights := logit_weights(options)):
        raise usage_error(f"{flag(min(weights))} has no meaning here (--residual-loss mse).", "Leave it out.")
    check_views(options)
    job = Job.begin("add-res-student", "reskd", options, reporter)
    if (done := job.finished()) is not None:
        return done
    residual = Residual.of(job)
    return search(residual, job) if options.search else residual.train(job, options.arch[0])


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
    given = {name: getattr(options, name) for name in names - vars(SearchOptions()).keys()}
    if options.residual_loss == "mse":  # then they are those of S0 alone
        given.update(alpha=None, temperature=None, logit_loss="kl")
    return AddResStudentOptions(**{**given, "arch": (arch,)})
