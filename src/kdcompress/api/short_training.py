"""Scores of candidates for the next member: a short training, then the best gate of the cascade with it."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from pathlib import Path
from typing import Any

import torch

from kdcompress.api.gated import Calibration
from kdcompress.api.job import Job
from kdcompress.api.recipes.residual import Residual
from kdcompress.api.targets import shared_views
from kdcompress.data import Data, EvalBatches
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import collect
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.models.candidates import Candidate
from kdcompress.models.loading import load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.options import AddResStudentOptions, SearchOptions, TrainingOptions
from kdcompress.ranking import gated, level
from kdcompress.runs import WEIGHTS, RunFolder

RUN_BY = 3  # expected MACs are limited to those of one image in three running the largest candidate


@dataclasses.dataclass
class ShortTrainings:
    """The trainings by which candidates are compared.

    Attributes:
        options: Options of a full training.
        budget: MACs that a candidate may have.
        longest: Epochs of the longest short training.
        path: Folder of their runs.
    """

    residual: Residual
    job: Job[AddResStudentOptions]
    options: AddResStudentOptions
    budget: float
    longest: int
    path: Path

    def score(self, candidate: Candidate, epochs: int) -> dict[str, float]:
        """Train a candidate for ``epochs``, and score the cascade with it under its best gate."""
        folder = self._folder(candidate, epochs)
        if not RunFolder(folder).is_finished:
            options = self._options(candidate, epochs, folder)
            short = dataclasses.replace(self.job, options=options, reporter=self._quiet, began=time.perf_counter())
            self.residual.train(short, candidate.spec, energies=False)
        cascade = load_network(str(folder)).model
        assert isinstance(cascade, ResidualCascade)
        member = cascade.members[-1].eval().to(self._place.device).to(memory_format=torch.channels_last)
        own, labels = collect(member, self._batches, self._place)
        before, teacher = self._before, self.residual.teacher.entry["macs"]
        after = cascade.after(len(before.logits), before.logits[-1], own)
        logits, macs = torch.cat([before.logits, after[None]]), [*before.macs, candidate.macs]
        best = gated(logits, labels, macs, self._max_macs)
        return {"top1": round(best.top1, 4), "expected_macs_ratio": round(best.expected_macs / teacher, 6)}

    def level(self, score: dict[str, float]) -> int:
        """By how many standard errors a score is above that of the members so far under their best gate."""
        before = self._before
        alone = gated(before.logits, before.labels, before.macs, self._max_macs)
        return level(score["top1"], alone.top1, len(before.labels))

    def drop(self, candidate: Candidate, epochs: int) -> None:
        """Remove the weights of a candidate that is scored."""
        without_weights(RunFolder(self._folder(candidate, epochs)))

    def _options(self, candidate: Candidate, epochs: int, folder: Path) -> AddResStudentOptions:
        """Options of a training for ``epochs``."""
        views = shared_views(self.options, self.residual.data, self.longest, networks=2)
        own = {**vars(SearchOptions()), "search_storage": None, "arch": (candidate.spec,), "out": str(folder)}
        return dataclasses.replace(self.options, **{**shortened(self.options, epochs, views), **own})

    def _folder(self, candidate: Candidate, epochs: int) -> Path:
        return self.path / folder_name(candidate.spec, epochs)

    @property
    def _max_macs(self) -> float:
        """Limit of the expected MACs per image."""
        return sum(self._before.macs) + self.budget / RUN_BY

    @functools.cached_property
    def _quiet(self) -> Reporter:
        return Once(self.job.reporter)

    @functools.cached_property
    def _place(self) -> Place:
        """Gates are calibrated in fp32."""
        return dataclasses.replace(self.job.place, precision="fp32")

    @functools.cached_property
    def _data(self) -> Data:
        return dataclasses.replace(self.residual.data, prep=self.residual.base.prep)

    @functools.cached_property
    def _batches(self) -> EvalBatches:
        """Read once for all trials."""
        return self._data.evaluation("calibration", 128)

    @functools.cached_property
    def _before(self) -> Calibration:
        """The members so far, on the calibration split."""
        return Calibration.of(self.residual.base, self._data, self._batches, self._place)


def shortened(options: TrainingOptions, epochs: int, views: int) -> dict[str, Any]:
    """Options of a short training in place of those of a full one: its schedule is that of the full one, shortened.

    Args:
        views: Of the images, whose targets all short trainings share.
    """
    share = epochs / options.epochs
    lengths = {name: getattr(options, name) for name in ("warmup_epochs", "decay_epochs")}
    return {
        **{name: value and share * value for name, value in lengths.items()},
        "epochs": epochs,
        "target_views": str(views),
        "compile": False,
        "tensorboard": False,
        "log": None,
    }


def without_weights(run: RunFolder) -> None:
    """Remove the weights of a run."""
    if (run.path / WEIGHTS).is_file():
        (run.path / WEIGHTS).unlink()
        run.accept()


def folder_name(spec: str, epochs: int) -> str:
    """Of a short training."""
    return f"{re.sub(r'[^a-zA-Z0-9_.=-]+', '-', spec)}-{epochs}"


class Once(Silent):
    """Passes on each notice once, however many trainings repeat it."""

    def __init__(self, reporter: Reporter) -> None:
        self.note_once = functools.cache(reporter.note)

    def note(self, text: str) -> None:
        self.note_once(text)
