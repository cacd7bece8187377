"""``add-res-student``: one more member, whose architecture is given or searched for (ResKD)."""

from __future__ import annotations

from typing import Any

from kdcompress.api.check import check_logit_loss, check_search, check_teacher, check_unlabelled, meaningless
from kdcompress.api.job import Job
from kdcompress.api.recipes.prepare import logit_weights
from kdcompress.api.recipes.residual import Residual
from kdcompress.api.search import search
from kdcompress.api.starting import check_single_start
from kdcompress.api.targets import check_views
from kdcompress.engine.progress import Reporter
from kdcompress.errors import usage_error
from kdcompress.options import AddResStudentOptions
from kdcompress.references import paired
from kdcompress.results import SearchResult, TrainResult


def add_res_student(
    options: AddResStudentOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> TrainResult | SearchResult:
    """Freeze the members of a run and train one more on their residual to the teacher's logits.

    ``arch`` is its architecture, or names trained weights to start from; ``search`` finds an architecture among those
    within ``max_macs``. Processes with the same ``search_storage`` share the trials; one without ``out`` returns only
    the trials.

    Args:
        options: All options at once; else give them by name (the fields of :class:`AddResStudentOptions`).
        reporter: Receives progress and notices.

    Raises:
        UserError: As for :func:`distill`; a run whose teacher is not known; nothing to choose from in a search.

    Example:
        >>> kdcompress.add_res_student(run="runs/cascade", arch="resnet8_cifar,width=0.5").energies
    """
    options = options or AddResStudentOptions.resolve(given)
    check_search(options)
    members = paired(options.arch)
    if len(members) != 1 and not options.search:
        remedy = "E.g. --arch resnet8_cifar,width=0.5, or search for one: --search --max-macs 0.1."
        raise usage_error("add-res-student needs one --arch, or --search.", remedy)
    if options.residual_loss == "mse" and (weights := logit_weights(options)):
        raise meaningless(min(weights), "--residual-loss mse")
    if options.residual_loss == "mse" and options.label_smoothing is not None and not options.resume:
        raise meaningless("label_smoothing", "--residual-loss mse")
    check_teacher(options, "no --teacher")
    if members:
        check_single_start(members[0], options, "--arch")
    if options.pretrained and options.from_teacher:
        problem = "A member can start from the weights of one network only."
        raise usage_error(problem, "Leave out --pretrained or --from-teacher.")
    check_logit_loss(options)
    check_views(options)
    check_unlabelled(options)
    job = Job.begin("add-res-student", "reskd", options, reporter)
    if (done := job.finished()) is not None:
        return done
    residual = Residual.of(job)
    return search(residual, job) if options.search else residual.train(job, members[0])
