"""A whole cascade in one command: S0, and res-students until there are enough (ResKD).

When there are enough is our choice; that the energy of the residual decides is the paper's idea.
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
from kdcompress.api.job import INHERITED, Job, finished
from kdcompress.api.nested import nested
from kdcompress.api.recipes import RECIPES
from kdcompress.api.recipes.prepare import fresh
from kdcompress.api.reference import inherit
from kdcompress.api.search import check_alone
from kdcompress.api.teacher import load_teacher
from kdcompress.api.trials import nothing_affordable
from kdcompress.data import choose_channels
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.restart import resuming
from kdcompress.errors import usage_error
from kdcompress.models.assemble import as_cascade, new_member
from kdcompress.models.build import ModelSpec, default_config
from kdcompress.models.candidates import cheapest, series_for
from kdcompress.models.loading import Network, load_network
from kdcompress.options import (
    AddResStudentOptions,
    DistillOptions,
    EvalOptions,
    GrowOptions,
    LogitOptions,
    ResidualOptions,
    SearchOptions,
)
from kdcompress.options.methods import limited_by_energy
from kdcompress.results import TrainResult
from kdcompress.runs import CONFIG, METRICS, WEIGHTS, RunFolder, atomic_file

MOST = 16  # res-students
ROUNDING = 1e-6  # of accuracies in percent, which are counts
REASONS = {
    "target": "the target is met",
    "macs": "another res-student would cost more than --target-macs",
    "energy": "the last res-student lowered the energy too little, and is left out",
    "count": f"--grow adds no more than {MOST} res-students",
}


Costs = Callable[[], tuple[int, Network]]


@dataclass(frozen=True)
class Limits:
    """When a cascade has enough members.

    Attributes:
        count: Of res-students.
        top1: On the calibration split, percent.
        macs: Of all members together.
        energy_drop: Share of the residual's energy that a res-student has to take away.
    """

    count: int = MOST
    top1: float = math.inf
    macs: float = math.inf
    energy_drop: float = -math.inf

    @classmethod
    def of(cls, options: DistillOptions, costs: Costs) -> Limits:
        """Those that the user set, in terms of the teacher.

        Args:
            costs: Asked for the teacher's MACs and an S0, where they matter.

        Raises:
            UserError: S0 alone costs more.
        """
        if not options.grow:
            return cls(options.res_students)
        limits = cls(energy_drop=options.min_energy_drop) if limited_by_energy(options) else cls()
        if options.target_macs is not None:
            teacher, student = costs()
            own = macs_of(student.model)
            if own > options.target_macs * teacher:
                problem = f"--student {options.student} alone costs {own / teacher:.4f} of the teacher's MACs."
                raise usage_error(problem, "Give a larger --target-macs, or a smaller student.")
            limits = replace(limits, macs=options.target_macs * teacher)
        if options.max_drop is not None:
            names = {field.name for field in fields(EvalOptions)} & {field.name for field in fields(options)}
            # in training, too, the teacher has the size that it was made for
            given = {name: getattr(options, name) for name in names - {"arch", "batch_size", "input_size"}}
            scored = EvalOptions(run=options.teacher or "-", arch=options.teacher_arch, split="calibration", **given)
            limits = replace(limits, top1=evaluate(scored).top1 - options.max_drop)
        return limits

    def met_by(self, result: TrainResult) -> bool:
        """Whether a cascade is accurate enough."""
        return result.top1 >= self.top1 - ROUNDING

    def reached(self, result: TrainResult, arch: str | None) -> str | None:
        """Why ``arch`` (None: whatever a search finds) is not added to a cascade; None where it is."""
        if self.met_by(result):
            return "target"
        if len(result.members or ()) > self.count:
            return "count"
        if self.macs < math.inf and result.macs + _least(load_network(str(result.run)), arch)[1] > self.macs:
            return "macs"
        return None


def grow(options: DistillOptions, reporter: Reporter | None) -> TrainResult:
    """Train S0 and its res-students, each a run of its own below the folder of the whole.

    Raises:
        UserError: As for ``distill``; S0 alone costs more than the target allows.
    """
    began = time.perf_counter()
    place = start(options.device, options.precision, options.patience)
    reporter = (reporter if place.is_main else None) or Silent()
    options = resuming(options, "distill", reporter.note)
    take_free_cores(place, reporter)
    if options.search:
        check_alone(place)
    for spec in map(ModelSpec.parse, options.arch):
        if not spec.is_code:
            default_config(spec.name)  # before S0 is trained for nothing
    if (done := finished(options, "distill", TrainResult, reporter)) is not None:
        return done
    costs = functools.cache(lambda: _costs(options))
    limits = Limits.of(options, costs)
    if options.max_drop is not None:
        known = load_network(str(options.teacher), options.teacher_arch).record
        if "data_fingerprint" not in known:
            reporter.note(
                "Notice: the teacher may have learned from the calibration images; --max-drop then counts from more "
                "than its accuracy on new ones."
            )
    if options.max_macs is not None:
        _check_budget(options.max_macs, *costs())
    with nested(options, "distill", f"distill-reskd-{options.student}-grown", "member-0", place, reporter) as run:
        result, reason = _grown(options, reporter, limits, run.path)
    if options.grow:
        reporter.note(f"The cascade has {len(result.members or ())} member(s): {REASONS[reason]}.")
    result = replace(
        result,
        command="distill",
        run=str(run.path),
        seconds=round(time.perf_counter() - began, 3),
        stopped_by=reason if options.grow else None,
    )
    from_main(lambda: _take(run, len(result.members or ()) - 1, options, result))
    return result


def _grown(options: DistillOptions, reporter: Reporter | None, limits: Limits, folder: Path) -> tuple[TrainResult, str]:
    """The cascade, in the folder of its last member, and why no other was added."""
    result = _first(options, reporter, folder)
    number = 0
    while True:
        arch = options.arch[min(number, len(options.arch) - 1)] if options.arch else None
        number += 1
        if (reason := limits.reached(result, arch)) is not None:
            return result, reason
        step = _step(options, arch, limits.macs - result.macs, result)
        step = replace(step, run=str(result.run), out=str(folder / f"member-{number}"), resume=True)
        longer = add_res_student(step, reporter=reporter)
        assert isinstance(longer, TrainResult)
        if limits.met_by(longer):  # whatever its energy says
            return longer, "target"
        assert longer.energies is not None
        before, after = longer.energies[-2:]
        if after > (1 - limits.energy_drop) * before:
            return result, "energy"
        result = longer


def _first(options: DistillOptions, reporter: Reporter | None, folder: Path) -> TrainResult:
    """Train S0."""
    defaults = {**vars(GrowOptions()), **vars(SearchOptions()), **vars(ResidualOptions())}
    own = {name: value for name, value in defaults.items() if name not in vars(LogitOptions())}
    first = replace(options, out=str(folder / "member-0"), resume=True, **own)
    job = Job.begin("distill", options.method, first, reporter)
    return job.finished() or RECIPES[options.method](job)


def _step(options: DistillOptions, arch: str | None, left: float, result: TrainResult) -> AddResStudentOptions:
    """What ``add-res-student`` is told, as far as ``distill`` was told the same.

    Args:
        arch: None: it is searched for.
        left: MACs that the next member may have.
        result: Of the cascade so far.
    """
    own = {"run", "teacher", "teacher_arch", "search_storage"}
    names = {field.name for field in fields(AddResStudentOptions)} - own
    given = {name: getattr(options, name) for name in names}
    if arch is None:
        assert result.teacher_macs is not None
        given["max_macs"] = min(options.max_macs or 1.0, left / result.teacher_macs, 1.0)
    if options.residual_loss == "mse":  # then they are those of S0 alone
        given.update(alpha=None, temperature=None, logit_loss="kl")
    return AddResStudentOptions(**{**given, "arch": () if arch is None else (arch,)})


def _check_budget(max_macs: float, teacher: int, student: Network) -> None:
    """Refuse a search that will find nothing, before S0 is trained for nothing.

    Raises:
        UserError: The cheapest architecture is too dear.
    """
    spec, macs = _least(student, None)
    if macs > max_macs * teacher:
        raise nothing_affordable(spec, macs, max_macs, teacher)


def _least(network: Network, arch: str | None) -> tuple[str, int]:
    """A member of that architecture, or the cheapest one that a search may find, for a network, and its MACs."""
    base = as_cascade(network)

    @functools.cache
    def counted(spec: str) -> int:
        return macs_of(new_member(ModelSpec.parse(spec), base, seed=0).model)

    spec = arch if arch is not None else cheapest(series_for(base.prep.size), counted)
    return spec, counted(spec)


def _costs(options: DistillOptions) -> tuple[int, Network]:
    """MACs of the teacher, and an S0."""
    teacher = load_teacher(str(options.teacher), options.teacher_arch, Silent())
    options = inherit(options, teacher.network.record)
    source = open_data(options)
    student = fresh(options.student, source, options, choose_channels(source, options), pretrained=False)
    return teacher.entry["macs"], student


def _take(run: RunFolder, number: int, options: DistillOptions, result: TrainResult) -> None:
    """Let the run be what its last member's run is."""
    member = RunFolder(run.path / f"member-{number}")
    record = member.record()
    for name in (CONFIG, METRICS, WEIGHTS):
        with atomic_file(run.path / name) as file:
            file.write((member.path / name).read_bytes())
    made = {key: record["options"][key] for key in INHERITED if key in record["options"]}
    run.finish({**record, "command": "distill", "options": {**options.to_dict(), **made}, "result": result.to_dict()})
