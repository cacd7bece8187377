"""Architecture search for a pair: S0 and its res-student are chosen together, by what they reach at one budget.

That res-students are found by search is ResKD's idea (arXiv 2006.04719); to search for both members at once, and to
score them behind their gate, is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcompress.api.add_res_student import add_res_student
from kdcompress.api.cost import macs_of
from kdcompress.api.fitting import check_classes, open_data
from kdcompress.api.gate import gate_calibrate
from kdcompress.api.members import next_options, train_first
from kdcompress.api.reference import inherit
from kdcompress.api.short_training import Once, folder_name, shortened
from kdcompress.api.targets import shared_views
from kdcompress.api.teacher import as_teacher, load_teacher
from kdcompress.api.trials import Trials, rungs
from kdcompress.data import Data, choose_channels, choose_size
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import usage_error
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.models.candidates import Candidate, affordable, series_for
from kdcompress.options import DistillOptions, GateCalibrateOptions, SearchOptions
from kdcompress.ranking import level
from kdcompress.references import Reference
from kdcompress.results import TrainResult
from kdcompress.runs import WEIGHTS, RunFolder

MOST_FIRST = 0.8  # of the budget: a dearer S0 leaves too little for a res-student
LEAST_RUN = 0.15  # share of the images that a res-student must be able to run on within the budget


def choose_pair(
    options: DistillOptions, run: RunFolder, place: Place, reporter: Reporter
) -> tuple[DistillOptions, list[dict[str, Any]]]:
    """Find S0 and R1 for ``--target-macs``, the MACs of an image on average behind their gate.

    Args:
        run: Run folder of the whole command.

    Returns:
        Options that train this pair in full, and the trials, the best first.

    Raises:
        UserError: No pair is cheap enough; as for a search.
    """
    network = load_teacher(str(options.teacher), options.teacher_arch, options.weights_key, Silent())
    given = inherit(options, network.record)
    source = open_data(given, network, is_teacher=True)
    check_classes(network, source, "teacher")
    teacher = as_teacher(network, source, given, Silent())
    channels = choose_channels(source, given)
    data = Data(source, network.prep, given, place.device)

    size = choose_size(source, given, network.prep.size, fixed=False)
    shape: dict[str, Any] = {"num_classes": source.num_classes, "channels": channels, "size": size, "seed": 0}
    counted = functools.cache(lambda spec: macs_of(new_network(ModelSpec.parse(spec), **shape).model))
    assert options.target_macs is not None  # see check_cascade
    budget = options.target_macs * teacher.entry["macs"]
    space = pairs(affordable(series_for(size), counted, budget / LEAST_RUN), budget)
    if not space:
        least = 2 * min(counted(one.specs[0]) for one in series_for(size))
        ratio = math.ceil(1e4 * least / teacher.entry["macs"]) / 1e4
        problem = f"No pair is within --target-macs {options.target_macs:g} of the teacher's MACs."
        raise usage_error(problem, f"The cheapest needs about {ratio:g}.")
    views = shared_views(given, data, rungs(given.epochs)[-1], networks=3)
    chance = 100 / source.num_classes
    trials = Trials.of(
        run,
        given,
        lambda full, folder: PairTrainings(full, views, chance, folder, Once(reporter)),
        command="distill",
        space=space,
        limit=f"--target-macs {options.target_macs:g}",
        origin={"data": source.fingerprint, "teacher": teacher.entry["fingerprint"]},
        teacher_macs=teacher.entry["macs"],
        reporter=reporter,
    )
    first, second = members_of(trials.winner())
    alone = {**vars(SearchOptions()), "target_macs": None, "res_students": 1}
    return dataclasses.replace(options, student=first, arch=(second,), **alone), trials.rows()


def pairs(candidates: list[Candidate], budget: float) -> list[Candidate]:
    """All pairs of a cheaper and a dearer network that a budget of MACs, on average, allows.

    The family of a pair is that of S0, its depth S0 itself, and its width the MACs of the res-student: so a sampler can
    go from one res-student to the next larger one.
    """
    by_cost = sorted(candidates, key=lambda each: each.macs)
    return [
        Candidate(first.family, first.spec, f"{first.spec} + {second.spec}", first.macs + second.macs)
        for first in by_cost
        for second in by_cost
        if first.macs <= MOST_FIRST * budget and first.macs <= second.macs <= (budget - first.macs) / LEAST_RUN
    ]


def members_of(spec: str) -> tuple[str, str]:
    """S0 and R1 of a pair."""
    first, _, second = spec.partition(" + ")
    return first, second


@dataclass
class PairTrainings:
    """Short trainings of both members, and a gate for the budget.

    Attributes:
        options: Of the full training.
        views: Whose targets all of them share.
        chance: Top-1 of guessing, in percent.
        path: Folder of their runs.
        images: Of the calibration split, once known.
    """

    options: DistillOptions
    views: int
    chance: float
    path: Path
    reporter: Reporter
    images: int = field(default=0)

    def score(self, candidate: Candidate, epochs: int) -> dict[str, float]:
        """Train S0, unless another pair has trained it as long, and R1; then choose a gate for the budget."""
        first, second = members_of(candidate.spec)
        short = dataclasses.replace(self.options, student=first, **shortened(self.options, epochs, self.views))
        own = train_first(short, self.reporter, self.path / folder_name(first, epochs))
        step = next_options(
            dataclasses.replace(short, **vars(SearchOptions())),
            Reference(second),
            own,
            self.path / folder_name(candidate.spec, epochs),
        )
        both = add_res_student(step, reporter=self.reporter)
        assert isinstance(both, TrainResult)
        gate = gate_calibrate(
            GateCalibrateOptions(
                run=str(both.run),
                target_macs=self.options.target_macs,
                device=self.options.device,
                out=f"{both.run}-gated",
                resume=True,
            ),
            reporter=Silent(),
        )
        assert gate.gated_top1 is not None
        assert gate.expected_macs_ratio is not None
        self.images = gate.n
        return {"top1": gate.gated_top1, "expected_macs_ratio": gate.expected_macs_ratio}

    def level(self, score: dict[str, float]) -> int:
        """By how many standard errors a score is above guessing."""
        return level(score["top1"], self.chance, self.images)

    def drop(self, candidate: Candidate, epochs: int) -> None:
        """Remove the weights of a pair that is scored; S0 is kept for other pairs."""
        name = folder_name(candidate.spec, epochs)
        for run in (RunFolder(self.path / name), RunFolder(self.path / f"{name}-gated")):
            if (run.path / WEIGHTS).is_file():
                (run.path / WEIGHTS).unlink()
                run.accept()
