"""A whole cascade in one command: S0, and res-students until a limit is reached (ResKD).

The limits are our choice; that the energy of the residual is one of them is the paper's idea.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from kdcompress.api.add_res_student import add_res_student
from kdcompress.api.cost import macs_of
from kdcompress.api.evaluate import evaluate
from kdcompress.api.fitting import open_data
from kdcompress.api.job import finished
from kdcompress.api.members import next_options, train_first
from kdcompress.api.nested import adopt, nested
from kdcompress.api.pair_search import choose_pair
from kdcompress.api.recipes.prepare import fresh
from kdcompress.api.recipes.residual import member_of
from kdcompress.api.reference import inherit
from kdcompress.api.search import check_alone, nothing_affordable
from kdcompress.api.starting import started
from kdcompress.api.teacher import as_teacher, load_teacher
from kdcompress.data import choose_channels
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.progress import NoticesOnce, Reporter, Silent
from kdcompress.engine.restart import resuming
from kdcompress.errors import usage_error
from kdcompress.models.assemble import as_cascade, new_member
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.candidates import cheapest, series_for
from kdcompress.models.loading import Network, load_network
from kdcompress.models.starting import single
from kdcompress.options import (
    DistillOptions,
    EvalOptions,
)
from kdcompress.options.methods import PAIR, limited_by_energy
from kdcompress.references import Reference, paired
from kdcompress.results import TrainResult
from kdcompress.runs import RunFolder

MOST = 16  # res-students
ROUNDING = 1e-6  # tolerance of accuracies in percent, which are ratios of counts
REASONS = {
    "target": "the target is met",
    "macs": "another res-student would exceed --target-macs",
    "energy": "the next res-student lowered the residual's energy too little, and is left out",
    "count": f"--grow adds no more than {MOST} res-students",
}


Costs = Callable[[], tuple[int, Network]]


@dataclass(frozen=True)
class Limits:
    """When a cascade has enough members.

    Attributes:
        count: Most res-students.
        top1: Accuracy on the calibration split, in percent, that is enough.
        macs: Most MACs of all members together.
        energy_drop: Least share by which a res-student must lower the residual's energy.
    """

    count: int = MOST
    top1: float = math.inf
    macs: float = math.inf
    energy_drop: float = -math.inf

    @classmethod
    def of(cls, options: DistillOptions, costs: Costs) -> Limits:
        """The limits that the user set, relative to the teacher.

        Args:
            costs: Gives the teacher's MACs and an S0; called only if needed.

        Raises:
            UserError: S0 alone exceeds them.
        """
        if not options.grow:
            return cls(1 if options.student == PAIR else options.res_students)
        limits = cls(energy_drop=options.min_energy_drop) if limited_by_energy(options) else cls()
        if options.target_macs is not None:
            teacher, student = costs()
            own = macs_of(student.model)
            if own > options.target_macs * teacher:
                problem = f"--student {options.student} alone has {own / teacher:.4f} of the teacher's MACs."
                raise usage_error(problem, "Give a larger --target-macs, or a smaller student.")
            limits = replace(limits, macs=options.target_macs * teacher)
        if options.max_drop is not None:
            names = {field.name for field in fields(EvalOptions)} & {field.name for field in fields(options)}
            # as in training, the teacher keeps its own input size
            given = {name: getattr(options, name) for name in names - {"arch", "batch_size", "input_size"}}
            scored = EvalOptions(
                run=options.teacher or "-", arch=options.teacher_arch, split="calibration", score_teacher=False, **given
            )
            limits = replace(limits, top1=evaluate(scored).top1 - options.max_drop)
        return limits

    def met_by(self, result: TrainResult) -> bool:
        """Whether a cascade is accurate enough."""
        return result.top1 >= self.top1 - ROUNDING

    def reached(self, result: TrainResult, arch: Reference | None) -> str | None:
        """The limit that keeps ``arch`` (None: whatever a search finds) from being added; None if it may be."""
        if self.met_by(result):
            return "target"
        if len(result.members or ()) > self.count:
            return "count"
        if self.macs < math.inf and result.macs + _cheapest_member(load_network(str(result.run)), arch)[1] > self.macs:
            return "macs"
        return None


def grow(options: DistillOptions, reporter: Reporter | None) -> TrainResult:
    """Train S0 and its res-students, each as a run of its own inside the folder of the whole.

    Raises:
        UserError: As for ``distill``; S0 alone exceeds ``--target-macs``.
    """
    began = time.perf_counter()
    place = start(options.device, options.precision, options.patience)
    reporter = (reporter if place.is_main else None) or Silent()
    options = resuming(options, "distill", reporter.note)
    take_free_cores(place, reporter)
    if options.search:
        check_alone(place)
    for reference in paired(options.arch):
        _check_member(reference)
    if (done := finished(options, "distill", TrainResult, reporter)) is not None:
        return done
    costs = functools.cache(lambda: _costs(options))
    limits = Limits.of(options, costs)
    if options.max_drop is not None:
        known = load_network(str(options.teacher), options.teacher_arch, key=options.weights_key).record
        if "data_fingerprint" not in known:
            reporter.note(
                "Notice: the teacher may have been trained on the calibration images; --max-drop then counts from an "
                "accuracy that is higher than on new ones."
            )
    if options.max_macs is not None:
        _check_budget(options.max_macs, *costs())
    with nested(options, "distill", f"distill-reskd-{options.student}-grown", place, reporter) as run:
        full, rows = choose_pair(options, run, place, reporter) if options.student == PAIR else (options, None)
        try:
            result, reason = _grown(full, NoticesOnce(reporter), limits, run.path)
        finally:
            reporter.plan_over()
    if options.grow:
        reporter.note(f"The cascade has {len(result.members or ())} member(s): {REASONS[reason]}.")
    result = replace(
        result,
        command="distill",
        run=str(run.path),
        seconds=round(time.perf_counter() - began, 3),
        stopped_by=reason if options.grow else None,
        search=rows or result.search,
    )
    last = RunFolder(run.path / f"member-{len(result.members or ()) - 1}")
    from_main(lambda: adopt(run, last, "distill", options, result))
    return result


def _grown(options: DistillOptions, reporter: Reporter, limits: Limits, folder: Path) -> tuple[TrainResult, str]:
    """The result of the cascade, in the folder of its last member, and why no further member was added."""
    archs = paired(options.arch)
    known = len(archs) > 0 and not options.grow  # how many members there will be, and which
    result = train_first(options, reporter, folder / "member-0")
    number = 0
    while True:
        arch = _arch(archs, number) if archs else None
        number += 1
        if (reason := limits.reached(result, arch)) is not None:
            return result, reason
        if known:
            ahead = [_arch(archs, each) for each in range(number - 1, options.res_students)]
            reporter.plan(number + 1, options.res_students + 1, _seconds(ahead, result))
        step = next_options(options, arch, result, folder / f"member-{number}", left=limits.macs - result.macs)
        longer = add_res_student(step, reporter=reporter)
        assert isinstance(longer, TrainResult)
        if limits.met_by(longer):  # whatever its energy
            return longer, "target"
        assert longer.energies is not None
        before, after = longer.energies[-2:]
        if after > (1 - limits.energy_drop) * before:
            return result, "energy"
        result = longer


def _arch(archs: list[Reference], number: int) -> Reference:
    """Of res-student ``number`` (from 0): the last one is that of all that follow."""
    return archs[min(number, len(archs) - 1)]


def _seconds(ahead: list[Reference], result: TrainResult) -> float:
    """Estimated for the trainings of further members, by their MACs and the time of the last one."""
    network = load_network(str(result.run))
    last = result.members[-1]["macs"] if result.members else result.macs
    spent = sum(RunFolder(Path(str(result.run))).column("seconds"))
    return spent * sum(_cheapest_member(network, arch)[1] for arch in ahead) / last


def _check_member(reference: Reference) -> None:
    """Refuse a res-student that cannot be made, before S0 is trained for nothing.

    Raises:
        UserError: There is no such architecture, or no such weights.
    """
    if reference.has_weights:
        single(load_network(reference.text, reference.arch, arch_flag=f"--arch {reference.text} --arch"))
    elif not (spec := ModelSpec.parse(reference.text)).is_code:
        default_config(spec.name)


def _check_budget(max_macs: float, teacher: int, student: Network) -> None:
    """Refuse a search that cannot find anything, before S0 is trained.

    Raises:
        UserError: Even the cheapest architecture exceeds the budget.
    """
    spec, macs = _cheapest_member(student, None)
    if macs > max_macs * teacher:
        raise nothing_affordable(spec, macs, max_macs, teacher)


def _cheapest_member(network: Network, arch: Reference | None) -> tuple[str, int]:
    """Spec and MACs of the next member of a network: ``arch``, or the cheapest one that a search may find."""
    base = as_cascade(network)

    @functools.cache
    def counted(spec: str) -> int:
        return macs_of(new_member(ModelSpec.parse(spec), base, seed=0).model)

    if arch is not None:
        return arch.text, macs_of(member_of(arch, base, 0, lambda _: None).model)
    spec = cheapest(series_for(base.prep.size), counted)
    return spec, counted(spec)


def _costs(options: DistillOptions) -> tuple[int, Network]:
    """MACs of the teacher, and S0 before its training."""
    network = load_teacher(str(options.teacher), options.teacher_arch, options.weights_key, Silent())
    options = inherit(options, network.record)
    source, reference = open_data(options, network, is_teacher=True), options.learner
    channels = choose_channels(source, options)
    teacher = as_teacher(network, source, options, Silent())
    if reference.has_weights:
        return teacher.entry["macs"], started(reference, source, options, channels, lambda _: None)
    return teacher.entry["macs"], fresh(options.student, source, options, channels, pretrained=False)
