"""``compress``: from a teacher and a budget to a network that meets it, by the commands that a person would run."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from kdcompress.api.compress.commands import Commands, spent_seconds
from kdcompress.api.compress.contest import Contest
from kdcompress.api.compress.course import Course
from kdcompress.api.compress.plan import RESERVE
from kdcompress.api.compress.prospect import Prospect
from kdcompress.api.compress.verdict import INT8, Verdict, judge, with_int8
from kdcompress.api.export import export_network
from kdcompress.api.job import changed_since, finished
from kdcompress.api.nested import adopt, nested
from kdcompress.api.reference import resolve
from kdcompress.api.report import write_report
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import from_main, start
from kdcompress.engine.precision import Process
from kdcompress.engine.progress import NoticesOnce, Reporter, Silent
from kdcompress.engine.restart import resuming
from kdcompress.errors import UserError, usage_error
from kdcompress.export.onnx_network import check_extra
from kdcompress.option_set import shown
from kdcompress.options import CompressOptions, ExportOptions, ReportOptions
from kdcompress.quantities import scaled
from kdcompress.references import absolute
from kdcompress.results import CompressResult, EvalResult, PlanResult
from kdcompress.runs import RunFolder

REPORT, PLAN = "report.html", "plan"


def compress(
    options: CompressOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> CompressResult | PlanResult:
    """Compress a teacher to a budget: candidates are trained briefly, the best ones in full, and the best is kept.

    A student alone, a gated pair (ResKD), and a student that hands over to the teacher compete at the same cost; a
    teacher of other classes is fine-tuned first. Everything is chosen on the calibration split. The runs of all
    candidates stay in the run folder.

    Args:
        options: All options at once; else give them by name (the fields of :class:`CompressOptions`).
        reporter: Receives progress and notices.

    Returns:
        What was chosen, scored on the test split; with ``dry_run`` the plan.

    Raises:
        UserError: No budget, or one that nothing can meet; a time budget too short for one epoch; as for
            :func:`distill`.
        Interrupted: Ctrl-C or SIGTERM; the finished runs stay.

    Example:
        >>> kdcompress.compress(teacher="runs/teacher", target_macs=0.25, time_budget="1h").top1
    """
    options = options or CompressOptions.resolve(given)
    options.check()
    if options.export != "none":
        check_extra("--export", "onnx", "onnxscript", "onnxruntime")
    place = start(options.device, options.precision, options.patience)
    if place.world > 1:
        raise usage_error("compress runs in one process.", "Start it without torchrun.")
    options, began = dataclasses.replace(options, teacher=absolute(resolve(options.teacher))), time.perf_counter()
    reporter = reporter or Silent()
    options = resuming(options, "compress", reporter.note)
    if options.resume and options.out is None:
        raise usage_error("--resume needs the run to go on with.", "Add its --out.")
    take_free_cores(place, reporter)
    if not options.dry_run and (done := finished(options, "compress", CompressResult, reporter)) is not None:
        return _with_files(done, options, reporter)
    prospect = Prospect.of(options, place, reporter, _planned(options))
    options = prospect.options
    for line in prospect.lines():
        reporter.note(line)
    if options.dry_run:
        return PlanResult(
            command="compress", run=None, seconds=round(time.perf_counter() - began, 3), **prospect.facts()
        )
    began += _ask(options, reporter)
    stem = f"compress-{prospect.teacher.network.architecture}"
    with nested(options, "compress", stem, place, reporter) as run:
        if not run.record().get(PLAN):
            run.write_record({**run.record(), "options": options.to_dict(), PLAN: prospect.known}, digests={})
        verdict, result = _carried_out(prospect, run, began, reporter)
        from_main(lambda: adopt(run, RunFolder(Path(verdict.chosen.run)), "compress", options, result))
    result = _with_files(result, options, reporter)
    if (params := prospect.teacher.entry["params"]) < result.params:
        reporter.note(
            f"Notice: it has more parameters than the teacher: {scaled(result.params)} instead of {scaled(params)}."
        )
    if not verdict.met:
        reporter.note("Notice: nothing is within the budget; the nearest was kept.")
    for line in _use(result):
        reporter.note(line)
    return result


def _with_files(result: CompressResult, options: CompressOptions, reporter: Reporter) -> CompressResult:
    """A finished result with the exported file and the report, made where they are asked for and not there.

    Raises:
        UserError: The network cannot be exported; the run is finished, and ``--resume`` tries again.
    """
    assert result.run is not None
    folder, began = Path(result.run), time.perf_counter()
    exported = report = None
    if options.report:
        report = _report(
            folder / REPORT, ReportOptions(runs=(result.run,), device=options.device, skip_bad_images=True), reporter
        )
    if options.export != "none":
        format, _, precision = options.export.partition("-")
        file = folder / f"model{'-' * bool(precision)}{precision}.{format}"
        exported = str(file)
        if not file.exists():
            reporter.note(f"The network is in {folder}; exporting it.")
            given = ExportOptions(run=result.run, format=format, precision=precision or "fp32", out=exported)
            export_network(given, reporter=reporter)
        if precision == INT8 and all(row["form"] != INT8 for row in result.contenders):
            result = dataclasses.replace(result, contenders=with_int8(result, file, options, reporter))
            run = RunFolder(folder)
            run.write_record({**run.record(), "result": result.to_dict()})
    seconds = round(result.seconds + time.perf_counter() - began, 3)
    return dataclasses.replace(result, exported=exported, report=report, seconds=seconds)


def _report(file: Path, options: ReportOptions, reporter: Reporter) -> str | None:
    """A web page about the result, with the other contenders beside it; without one the result is as good."""
    try:
        if not file.exists():
            write_report(options, reporter=reporter)
    except UserError as error:
        reporter.note(f"Notice: there is no report. {error.problem} {error.remedy}")
        return None
    reporter.note(f"Report: {file}")
    return str(file)


def _use(result: CompressResult) -> list[str]:
    """How to use what was made, in Python."""
    made = result.exported or result.run
    return [
        f"To use {made} in Python:",
        "  import kdcompress",
        f"  for row in kdcompress.predict({made!r}, ['photo.jpg']):",
        "      print(row.path, row.label, row.probability)",
    ]


def _planned(options: CompressOptions) -> dict[str, Any] | None:
    """What an interrupted attempt planned by, if this one resumes it.

    Raises:
        UserError: It was made with other options.
    """
    if options.dry_run or not (options.resume and options.out):
        return None
    record = RunFolder(Path(options.out).absolute()).record()
    known: dict[str, Any] | None = record.get(PLAN)
    if known is None:
        return None
    then = record.get("options", {})
    if changed := changed_since(options, then):
        detail = ", ".join(shown(name, then.get(name)) for name in changed[:3])
        raise usage_error(
            f"The run {options.out} began with {detail}.", "Resume with the same, or choose another --out."
        )
    return known


def _carried_out(
    prospect: Prospect, run: RunFolder, began: float, reporter: Reporter
) -> tuple[Verdict, CompressResult]:
    options = prospect.options
    done = spent_seconds(run.path)
    until = began - done + (1 - RESERVE / 2) * options.time_limit
    course = Course.of(reporter, prospect.plan, prospect.epochs, prospect.costs, until)
    views = None if prospect.source.is_raw else prospect.plan.views(prospect.epochs)
    commands = Commands(options, run.path, NoticesOnce(reporter), prospect.source.num_classes, course, views)
    try:
        ready = prospect.with_trained_teacher(commands)
        course.costs = ready.costs
        contest = Contest(
            commands, ready.students, ready.plan, ready.teacher_options, ready.epochs, ready.costs,
            options.time_limit, done + time.perf_counter() - began, ready.within, ready.limit,
        )  # fmt: skip
        verdict = judge(contest.run(), contest.dropped, commands, options, ready.teacher_row)
    except KeyboardInterrupt:
        if (best := commands.best()) is not None:
            reporter.note(f"The best so far: {best}")
        raise
    finally:
        reporter.plan_over()
    split = "test" if prospect.source.test is not None else "calibration"
    found = commands.score(verdict.chosen.run, split, skip_bad_images=True)  # all is trained; its notice names them
    seconds = round(done + time.perf_counter() - began, 3)
    return verdict, _result(found, verdict, run, seconds)


def _result(found: EvalResult, verdict: Verdict, run: RunFolder, seconds: float) -> CompressResult:
    known = {field.name for field in dataclasses.fields(CompressResult)}
    own = {key: value for key, value in vars(found).items() if key in known}
    gate = RunFolder(Path(verdict.chosen.run)).record().get("result", {})
    of_gate = {key: gate.get(key) for key in ("curve", "cost_bound", "timing")}
    more = {"command": "compress", "run": str(run.path), "seconds": seconds, **of_gate}
    chosen = next(row for row in verdict.rows if row.get("chosen"))
    return CompressResult(
        **{**own, **more},
        form=verdict.chosen.form,
        calibration_top1=chosen["top1"],
        met=verdict.met,
        contenders=verdict.rows,
    )


def _ask(options: CompressOptions, reporter: Reporter) -> float:
    """Ask a person at a terminal, who has seen the plan, whether to go on; returns the seconds that took.

    Raises:
        UserError: The answer is no.
    """
    is_there = sys.stdin and sys.stdin.isatty() and sys.stderr.isatty() and not isinstance(reporter, Silent)
    if options.yes or not Process.is_ours or not is_there:
        return 0.0
    began = time.perf_counter()
    sys.stderr.write("Go on? [Y/n] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
        raise UserError("Nothing was trained.", "Another budget or --time-budget gives another plan.")
    return time.perf_counter() - began
