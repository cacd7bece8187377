"""Architecture search for a pair: S0 and its res-student are chosen together, by what they reach at one budget.

That res-students are found by search is ResKD's idea (arXiv 2006.04719); to search for both members at once, and to
score them behind their gate, is our choice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.api.add_res_student import add_res_student
from kdcompress.api.cost import macs_of
from kdcompress.api.fitting import check_classes, open_data
from kdcompress.api.gate import gate_calibrate
from kdcompress.api.members import next_options, train_first
from kdcompress.api.reference import inherit
from kdcompress.api.short_training import Once, folder_name, shortened, without_weights
from kdcompress.api.targets import shared_views
from kdcompress.api.teacher import as_teacher, load_teacher
from kdcompress.api.trials import FOLDER, Trials, rungs
from kdcompress.data import Data, choose_channels, choose_size, unlabelled_images
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import usage_error
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.models.candidates import MOST_SECOND, Candidate, affordable, series_for
from kdcompress.options import DataOptions, DeviceOptions, DistillOptions, GateCalibrateOptions, SearchOptions
from kdcompress.references import Reference
from kdcompress.results import TrainResult
from kdcompress.runs import RunFolder, inner_runs

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
    more = None if given.unlabelled is None else unlabelled_images(given.unlabelled, source)
    data = Data(source, network.prep, given, place.device, unlabelled=more)
    size = choose_size(source, given, network.prep.size, fixed=False)
    if not source.is_raw:  # what is counted is what is trained, whatever size an architecture is usual at
        given = dataclasses.replace(given, input_size=f"{channels}x{size[0]}x{size[1]}")
    shape: dict[str, Any] = {"num_classes": source.num_classes, "channels": channels, "size": size, "seed": 0}
    counted = functools.cache(lambda spec: macs_of(new_network(ModelSpec.parse(spec), **shape).model))
    assert options.target_macs is not None  # see check_cascade
    macs = teacher.entry["macs"]
    budget = options.target_macs * macs
    firsts = affordable(series_for(size), counted, MOST_FIRST * budget)
    space = pairs(firsts, affordable(series_for(size), counted, min(budget / LEAST_RUN, MOST_SECOND * macs)), budget)
    if not space:
        least = min(counted(one.specs[0]) for one in series_for(size)) / MOST_FIRST
        ratio = math.ceil(1e4 * least / macs) / 1e4
        problem = f"No pair is within --target-macs {options.target_macs:g} of the teacher's MACs."
        raise usage_error(problem, f"The cheapest needs about {ratio:g}.")
    views = shared_views(given, data, rungs(given.epochs)[-1], networks=3)
    images, chance = data.usable("calibration"), 1 / source.num_classes
    trials = Trials.of(
        run,
        given,
        lambda full, folder: PairTrainings(full, views, images, chance, folder, Once(reporter)),
        command="distill",
        space=space,
        limit=f"--target-macs {options.target_macs:g}",
        data=data,
        teacher=teacher,
        reporter=reporter,
    )
    first, second = members_of(trials.winner())
    for each in inner_runs(run.path / FOLDER):
        without_weights(each)
    alone = {**vars(SearchOptions()), "target_macs": None, "res_students": 1, "input_size": given.input_size}
    return dataclasses.replace(options, student=first, arch=(second,), **alone), trials.rows()


def pairs(firsts: list[Candidate], seconds: list[Candidate], budget: float) -> list[Candidate]:
    """All pairs of a cheaper and a dearer network that a budget of MACs, on average, allows.

    The family of a pair is that of S0, its depth S0 itself, and its width the MACs of the res-student: so a sampler can
    go from one res-student to the next larger one.
    """
    return [
        Candidate(first.family, first.spec, f"{first.spec} + {second.spec}", first.macs + second.macs)
        for first in firsts
        for second in sorted(seconds, key=lambda each: each.macs)
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
        images: Of the calibration split.
        chance: Share that guessing has right.
        path: Folder of their runs.
    """

    options: DistillOptions
    views: int
    images: int
    chance: float
    path: Path
    reporter: Reporter

    def score(self, candidate: Candidate, epochs: int) -> dict[str, float]:
        """Train S0, unless another pair has trained it as long, and R1; then choose a gate for the budget."""
        first, second = members_of(candidate.spec)
        lengths = {**shortened(self.options, epochs, self.views), **vars(SearchOptions())}
        short = dataclasses.replace(self.options, student=first, **lengths)
        own = train_first(short, self.reporter, self.path / folder_name(first, epochs))
        step = next_options(short, Reference(second), own, self.path / folder_name(candidate.spec, epochs))
        both = add_res_student(step, reporter=self.reporter)
        assert isinstance(both, TrainResult)
        shared = {each.name for base in (DataOptions, DeviceOptions) for each in dataclasses.fields(base)}
        given: dict[str, Any] = {name: getattr(self.options, name) for name in shared - {"precision"}}
        given |= {"run": str(both.run), "target_macs": self.options.target_macs, "out": f"{both.run}-gated"}
        gate = gate_calibrate(GateCalibrateOptions(**given, resume=True), reporter=Silent())
        assert gate.gated_top1 is not None
        assert gate.expected_macs_ratio is not None
        return {"top1": gate.gated_top1, "expected_macs_ratio": gate.expected_macs_ratio}

    def level(self, score: dict[str, float]) -> int:
        """By how many standard errors a score is above guessing, each of the size that it has there: arcsines of the
        roots of two shares differ by multiples of it.
        """
        above = math.asin(math.sqrt(score["top1"] / 100)) - math.asin(math.sqrt(self.chance))
        return int(2 * math.sqrt(self.images) * above)

    def drop(self, candidate: Candidate, epochs: int) -> None:
        """Remove the weights of a pair that is scored; S0 is kept for other pairs."""
        name = folder_name(candidate.spec, epochs)
        for folder in (self.path / name, self.path / f"{name}-gated"):
            without_weights(RunFolder(folder))
