"""The contenders at equal cost, in one table, and which of them is shipped (our choice)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.api.benchmark import benchmark
from kdcompress.api.compress.commands import Commands
from kdcompress.api.compress.contest import Contender
from kdcompress.api.exported_file import evaluate_file
from kdcompress.api.teacher import SEEN
from kdcompress.engine.progress import Reporter
from kdcompress.models.loading import load_network
from kdcompress.options import BenchmarkOptions, CompressOptions, EvalOptions
from kdcompress.results import CompressResult
from kdcompress.runs import RunFolder

INT8 = "int8"  # form of the row of an exported file
NOISE = 2.0  # points between two rows that are taken for a difference
TOLERANCE = 1.05  # of --target-ms: two measurements of one network differ by as much


@dataclass(frozen=True)
class Verdict:
    """What came of the contest.

    Attributes:
        rows: For each contender ``form``, ``networks``, ``run`` (name of its folder), ``epochs``, ``top1`` of ``n``
            images, ``macs`` (expected, per image), ``macs_ratio``, ``ms`` with ``--target-ms``, ``points_lost``,
            whether its weights may know the images (``calibration_seen``), and whether it is ``within`` the budget and
            ``chosen``; all on the calibration split. The first is the teacher, the last are those that were
            ``dropped`` after their trials.
        chosen: The contender that is shipped.
        met: Whether it is within the budget; if not, it is the nearest.
    """

    rows: list[dict[str, Any]]
    chosen: Contender
    met: bool


def judge(
    contenders: list[Contender],
    dropped: list[Contender],
    commands: Commands,
    options: CompressOptions,
    teacher: dict[str, Any],
) -> Verdict:
    """Score all contenders on the calibration split, and choose.

    Args:
        dropped: After short trainings. They are usually behind, but what is best is best.
        teacher: Row of the teacher: ``networks``, ``top1``, ``macs``.
    """
    everyone = [*contenders, *dropped]
    rows = [_row(each, commands, teacher) for each in everyone]
    if options.target_ms is not None:
        timed = _milliseconds([each.run for each in everyone], options, commands.reporter)
        for row, ms in zip(rows, timed, strict=True):
            row["ms"] = ms
    name, value = options.budget
    over = [_over(row, name, value) for row in rows]
    for row, excess in zip(rows, over, strict=True):
        row["within"] = excess <= 0
    within = [number for number, row in enumerate(rows) if row["within"]]
    if not within:
        number = min(range(len(rows)), key=lambda number: over[number])
    elif name == "max_drop":
        number = min(within, key=lambda number: (rows[number]["macs"], -rows[number]["top1"]))
    else:
        number = max(within, key=lambda number: (rows[number]["top1"], -rows[number]["macs"]))
    for other, row in enumerate(rows):
        row["chosen"] = other == number
    if len({row["calibration_seen"] for row in rows}) > 1:
        commands.reporter.note(
            "Notice: some started from weights that may know the calibration images, on which they then look better "
            "than the others. Compare them on the test split."
        )
    _note_noise(rows[number], commands.reporter)
    first = {"form": "teacher", **teacher, "macs_ratio": 1.0, "chosen": False}
    for row in rows[len(contenders) :]:
        if not row["chosen"]:
            row["networks"] += f" (dropped after {row['epochs']} epoch{'s' * (row['epochs'] != 1)})"
            row["dropped"] = True
    return Verdict([first, *rows], everyone[number], bool(within))


def with_int8(result: CompressResult, file: Path, options: CompressOptions, reporter: Reporter) -> list[dict[str, Any]]:
    """The contenders of a result with one more row after the chosen one: the same network in int8, as exported."""
    own, teacher = next(row for row in result.contenders if row.get("chosen")), result.contenders[0]
    found = evaluate_file(EvalOptions(run=str(file), split="calibration"), reporter, load_network(str(result.run)))
    macs = found.macs if found.expected_macs is None else found.expected_macs
    row = {
        **own,
        "form": INT8,
        "networks": f"the {own['form']} in int8",
        "run": file.name,
        "top1": found.top1,
        "points_lost": round(teacher["top1"] - found.top1, 4),
        "macs": round(macs, 1),
        "macs_ratio": round(macs / teacher["macs"], 6),
        "chosen": False,
    }
    if options.target_ms is not None:
        on_cpu = dataclasses.replace(options, device="cpu", precision="auto")  # where exported files run
        _, row["ms"] = _milliseconds([str(result.run), str(file)], on_cpu, reporter)
    row["within"] = _over(row, *options.budget) <= 0
    if row["within"] != own["within"]:
        reporter.note(f"Notice: {file.name} is {'within' if row['within'] else 'over'} the budget, the run is not.")
    at = 1 + result.contenders.index(own)
    return [*result.contenders[:at], row, *result.contenders[at:]]


def _row(each: Contender, commands: Commands, teacher: dict[str, Any]) -> dict[str, Any]:
    found = commands.score(each.run, "calibration", score_teacher=False)
    macs = found.macs if found.expected_macs is None else found.expected_macs
    return {
        "form": each.form,
        "networks": each.networks,
        "run": Path(each.run).name,
        "epochs": each.epochs,
        "top1": found.top1,
        "n": found.n,
        "points_lost": round(teacher["top1"] - found.top1, 4),
        "macs": round(macs, 1),
        "macs_ratio": round(macs / teacher["macs"], 6),
        "calibration_seen": bool(RunFolder(Path(each.run)).record().get(SEEN)),
    }


def _note_noise(row: dict[str, Any], reporter: Reporter) -> None:
    """Say so where the calibration split is too small to tell contenders apart."""
    share = row["top1"] / 100
    if (spread := 200 * math.sqrt(share * (1 - share) / row["n"])) > NOISE:  # two standard errors
        reporter.note(
            f"Notice: the contenders were compared on {row['n']:,} calibration images: differences of up to "
            f"{spread:.0f} points may be chance. A larger --holdout tells more."
        )


def _milliseconds(networks: list[str], options: CompressOptions, reporter: Reporter) -> list[float]:
    """Of a batch, on average; all measured in one process."""
    given = BenchmarkOptions(
        networks=tuple(networks),
        batch_size=str(options.batch_size),
        engine=options.engine,
        split="calibration",
        device=options.device,
        precision=options.timed_precision,
    )
    timed = benchmark(given, reporter=reporter).networks
    own = [row for row in timed if row["gated"] is not False]  # without those of gated runs with every member
    return [row["mean_ms"] for row in own]


def _over(row: dict[str, Any], name: str, value: float) -> float:
    """By how much a row exceeds the budget; 0 or less if it does not."""
    if name == "target_macs":
        return float(row["macs_ratio"] / value - 1.000001)
    if name == "target_ms":
        return float(row["ms"] / value - TOLERANCE)
    return float(row["points_lost"] - value)
