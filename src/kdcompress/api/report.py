"""``report``: one file about a run, for people: what it costs, what it loses and where, and how it was made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kdcompress.api.cost import facts as network_facts
from kdcompress.api.reference import resolved
from kdcompress.api.reporting.classes import loss_interval
from kdcompress.api.reporting.file import check_out, file_of, format_of
from kdcompress.api.reporting.gathered import Gathered, Row, gather
from kdcompress.api.reporting.page_facts import page_facts
from kdcompress.api.teacher_score import lost
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import usage_error
from kdcompress.export.onnx_network import is_onnx
from kdcompress.models.loading import load_network
from kdcompress.options import ReportOptions
from kdcompress.references import STDIN, needs_arch
from kdcompress.report.card import card
from kdcompress.report.facts import TEACHER
from kdcompress.report.page import page
from kdcompress.results import ReportResult
from kdcompress.runs import RECORD, RunFolder, atomic_file


def write_report(
    options: ReportOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> ReportResult:
    """Write a report about a run: a web page in one file, or a model card.

    Networks are run on the test split, if the data have one; thresholds and networks were chosen on the calibration
    split.

    Args:
        options: All options at once; else give them by name (the fields of :class:`ReportOptions`).
        reporter: Receives notices, and what is being done.

    Raises:
        UserError: Nothing to load, data that do not fit, or a file that exists and is not a report of this run.

    Example:
        >>> kdcompress.write_report(runs=["runs/gated", "runs/single"]).file
        '…/runs/gated/report.html'
    """
    options = options or ReportOptions.resolve(given)
    check_out(options)
    place = start(options.device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    if place.world > 1:
        raise usage_error("report runs in one process.", "Start it without torchrun.")
    reporter = reporter or Silent()
    references = _with_contenders(resolved(options.runs or (STDIN,), options.arch))
    began, specs = time.perf_counter(), iter(options.arch)
    for each in references:
        if is_onnx(each):
            raise usage_error(f"{each} is an exported file.", "Give the run that it was exported from.")
    take_free_cores(place, reporter)
    networks = [
        load_network(each, next(specs) if needs_arch(each) else None, note=reporter.note) for each in references
    ]
    file = file_of(options, networks[0].path)
    gathered = gather(networks, options, place, reporter)
    result = _result(gathered, options, file)
    found = page_facts(gathered, result, options)
    result.seconds = round(time.perf_counter() - began, 3)
    text = page(found) if result.format == "html" else card(found)
    remedy = "Free some space, then run the same command again."
    with atomic_file(file, elsewhere="Choose another place with --out.", when_full=remedy) as output:
        output.write(text.encode(errors="backslashreplace"))  # of names that are not UTF-8
    return result


def _with_contenders(references: list[str]) -> list[str]:
    """A run of ``compress`` alone is shown beside what it won against."""
    folder = Path(references[0])
    if len(references) > 1 or not (folder / RECORD).is_file():
        return references
    record = RunFolder(folder.absolute()).record()
    rows = record.get("result", {}).get("contenders") or [] if record.get("command") == "compress" else []
    names = [row.get("run") for row in rows if not row.get("chosen") and not row.get("dropped")]
    known = [folder / Path(name).name for name in names if isinstance(name, str)]
    return [*references, *(str(path) for path in known if RunFolder(path.absolute()).is_finished)]


def _result(gathered: Gathered, options: ReportOptions, file: Path) -> ReportResult:
    """The numbers of the first network, and a row for each."""
    subject, teacher = gathered.subject.measured, gathered.teacher
    network = subject.network
    entry = network.record.get("teacher")
    top1, top5 = subject.top1, subject.top5
    oracle = subject.oracle()[-1] if len(subject.macs) > 1 else None
    return ReportResult(
        command="report",
        run=str(network.path) if network.path else None,
        seconds=0.0,
        format=format_of(options),
        data=gathered.source.spec,
        split=gathered.split,
        n=len(subject.labels),
        top1=round(top1, 4),
        top5=None if top5 is None else round(top5, 4),
        ece=round(subject.ece, 4),
        teacher_ece=round(teacher.measured.ece, 4) if teacher else None,
        points_lost_interval=loss_interval(subject, teacher.measured) if teacher else None,
        stage_top1=[round(value, 4) for value in subject.stage_top1] if len(subject.macs) > 1 else None,
        oracle_top1=round(oracle[1], 4) if oracle else None,
        oracle_macs=round(oracle[0], 1) if oracle else None,
        ms=gathered.subject.ms,
        hardware=gathered.place.describe() if gathered.subject.ms is not None else None,
        networks=[_row(row, gathered) for row in gathered.rows],
        **subject.gate_facts(entry),
        **lost(top1, round(teacher.measured.top1, 4) if teacher else None, gathered.source),
        **{**network_facts(network, entry, subject.profiles), "file": str(file)},
    )


def _row(row: Row, gathered: Gathered) -> dict[str, Any]:
    teacher = gathered.teacher
    whole = sum(teacher.measured.macs) if teacher else (gathered.teacher_entry or {}).get("macs")
    values = {
        "network": row.name,
        "role": row.role,
        "top1": round(row.measured.top1, 4),
        "macs": round(row.measured.cost, 1),
        "macs_ratio": round(row.measured.cost / whole, 6) if whole else None,
        "ece": round(row.measured.ece, 4),
        "ms": row.ms,
    }
    if row.role == TEACHER:
        values["macs_ratio"] = 1.0
    return values
