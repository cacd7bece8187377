"""All networks of a report on the same images."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdcompress.api.fitting import check_classes, check_images, open_data, resize_input
from kdcompress.api.inputs import settle_input
from kdcompress.api.reference import inherit
from kdcompress.api.reporting.measured import Measured
from kdcompress.api.reporting.times import milliseconds
from kdcompress.api.teacher import recall_teacher
from kdcompress.data import Data, DataSource, EvalBatches, Preprocess
from kdcompress.data.images import ImageList
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter
from kdcompress.errors import UserError
from kdcompress.models.loading import Network
from kdcompress.options import ReportOptions
from kdcompress.report.facts import FULL, GATED, SINGLE, TEACHER

SUBJECT = "subject"


@dataclass
class Row:
    """A network of the report.

    Attributes:
        role: ``subject``, ``teacher``, or ``single`` for the others.
        ms: For one image, on average; ``full_ms`` with every member run, of a gated network.
    """

    name: str
    role: str
    measured: Measured
    ms: float | None = None
    full_ms: float | None = None

    @property
    def kind(self) -> str:
        """Which mark it has in the figures."""
        if self.role == SUBJECT:
            return GATED if self.measured.gate is not None else FULL
        return TEACHER if self.role == TEACHER else SINGLE


@dataclass
class Gathered:
    """What was measured.

    Attributes:
        images, ids: Of the split, in the order of the scores.
        rows: The subject first, then the teacher if it was run, then the others.
        missing: What could not be measured, and why.
    """

    source: DataSource
    split: str
    place: Place
    images: ImageList
    ids: np.ndarray
    rows: list[Row]
    missing: list[str] = field(default_factory=list)

    @property
    def subject(self) -> Row:
        """What the report is about."""
        return self.rows[0]

    @property
    def teacher(self) -> Row | None:
        """None where it was not run."""
        return next((row for row in self.rows if row.role == TEACHER), None)

    @property
    def teacher_entry(self) -> dict[str, Any] | None:
        """What the record of the subject says of its teacher."""
        return self.subject.measured.network.record.get("teacher")

    @property
    def class_names(self) -> list[str]:
        """In label order; numbers where names are not known."""
        network = self.subject.measured.network
        names = self.source.class_names or network.class_names
        return list(map(str, names or range(network.num_classes)))


def gather(networks: list[Network], options: ReportOptions, place: Place, reporter: Reporter) -> Gathered:
    """Run the networks and, if it can be, the teacher of the first one, and time them.

    Raises:
        UserError: Data that do not fit one of them.
    """
    subject = networks[0]
    options = inherit(options, subject.record)
    source = open_data(options, subject)
    split = options.split or ("test" if source.test is not None else "calibration")
    images = source.test if split == "test" and source.test is not None else source.train
    runner = _Runner(source, split, options, place, reporter)
    measured = runner.run(subject, "network", resize=True)
    gathered = Gathered(source, split, place, images, runner.ids, [Row(_name(subject), SUBJECT, measured)])
    others = networks[1:]
    if (teacher := _teacher(gathered, runner, options)) is not None:
        gathered.rows.append(teacher)
        known = _identity(teacher.measured.network)
        others = [network for network in others if _identity(network) != known]
    gathered.rows += [Row(_name(network), SINGLE, runner.run(network, "network", resize=True)) for network in others]
    if options.time is not False:
        timed = [row.measured.network for row in gathered.rows]
        times = milliseconds(timed, source, options, split, place, reporter)
        for row, (ms, full) in zip(gathered.rows, times, strict=True):
            row.ms, row.full_ms = ms, full
    return gathered


def _identity(network: Network) -> tuple[str, Any]:
    """What tells networks apart: weights, and a gate."""
    return network.fingerprint(), network.model_args.get("gate")


@dataclass
class _Runner:
    """Runs networks on a split."""

    source: DataSource
    split: str
    options: ReportOptions
    place: Place
    reporter: Reporter
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    made: dict[Preprocess, EvalBatches] = field(default_factory=dict)

    def run(self, network: Network, role: str, *, resize: bool) -> Measured:
        """Raises:
        UserError: The data do not fit the network, or not the same images can be read for it.
        """
        source, options = self.source, self.options
        if resize:
            resize_input(network, options)
        check_classes(network, source, role)
        settle_input(network, source, options, self.reporter.note, "--arch")
        check_images(network, source, options, self.split, role)
        self.reporter.note(f"Running {network.reference} on the {self.split} split of {source.spec}.")
        if network.prep not in self.made:
            data = Data(source, network.prep, options, self.place.device, note=self.reporter.note)
            self.made[network.prep] = data.evaluation(self.split, options.batch_size)
        batches = self.made[network.prep]
        ids = batches.images.ids
        if len(self.ids) and not np.array_equal(ids, self.ids):
            raise UserError(f"{network.reference} cannot be run on the same images as the others.")
        self.ids = ids
        return Measured.of(network, batches, self.place)


def _teacher(gathered: Gathered, runner: _Runner, options: ReportOptions) -> Row | None:
    """The teacher on the same images; None where it cannot be run, and the report says why."""
    entry = gathered.teacher_entry
    if entry is None:
        gathered.missing.append("Teacher: the record of this run names none, so nothing is compared with it.")
        return None
    if "macs" not in entry:  # LW-KD's learned from other images
        gathered.missing.append("Teacher: it was trained on other images, so it is not compared.")
        return None
    reference = str(entry["reference"])
    if options.score_teacher is False:
        gathered.missing.append("Teacher: left out, as was asked for (--no-score-teacher).")
        return None
    if options.score_teacher is None and not os.path.exists(reference.removeprefix("local-dir:")):
        gathered.missing.append(f"Teacher: {reference} is not on this disk (--score-teacher fetches and runs it).")
        return None
    try:
        network = recall_teacher(entry, runner.reporter)
        if network.fingerprint() != entry.get("fingerprint"):
            raise UserError(f"{reference} has changed since this run was distilled.")
        return Row(_name(network), TEACHER, runner.run(network, "teacher", resize=False))
    except UserError as error:
        if options.score_teacher:
            raise
        gathered.missing.append(f"Teacher: it was not run: {error.problem}")
        return None


def _name(network: Network) -> str:
    """The run's own name, else how the user names the network."""
    return network.path.name if network.path is not None else os.path.basename(network.reference) or network.reference
