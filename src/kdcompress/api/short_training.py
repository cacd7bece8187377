"""How good a candidate for the next member is: a short training, and the best gate of the sum with it."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from kdcompress.api.cost import member_profiles
from kdcompress.api.job import Job
from kdcompress.api.residual import Residual
from kdcompress.api.targets import shared_views
from kdcompress.engine.evaluate import collect
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.models.candidates import Candidate
from kdcompress.models.loading import load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.options import AddResStudentOptions, SearchOptions
from kdcompress.ranking import gated
from kdcompress.runs import WEIGHTS, RunFolder

RUN_BY = 3  # the expected MACs are those of one image in three running the dearest candidate


@dataclasses.dataclass
class ShortTrainings:
    """The trainings by which candidates are compared.

    Attributes:
        options: Of a full training.
        budget: MACs that a candidate may cost.
        longest: Epochs of the longest of them.
        path: Folder of their runs.
    """

    residual: Residual
    job: Job
    options: AddResStudentOptions
    budget: float
    longest: int
    path: Path

    def score(self, candidate: Candidate, epochs: int) -> dict[str, float]:
        """Train a candidate for so long, and let the best gate run the sum with it."""
        folder = self._folder(candidate, epochs)
        if not RunFolder(folder).is_finished:
            options = self._options(candidate, epochs, folder)
            short = dataclasses.replace(self.job, options=options, reporter=self._quiet, began=time.perf_counter())
            self.residual.train(short, candidate.spec, energies=False)
        cascade = load_network(str(folder)).model
        assert isinstance(cascade, ResidualCascade)
        logits, labels = self._members
        own, _ = self._collected(cascade.members[-1])
        macs, teacher = self._member_macs, self.residual.teacher.entry["macs"]
        most = sum(macs) + self.budget / RUN_BY
        found = gated(torch.cat([logits, own[None]]), labels, [*macs, candidate.macs], most)
        return {"top1": round(found.top1, 4), "expected_macs_ratio": round(found.expected_macs / teacher, 6)}

    def drop(self, candidate: Candidate, epochs: int) -> None:
        """Remove the weights of one that is scored."""
        (self._folder(candidate, epochs) / WEIGHTS).unlink(missing_ok=True)

    def _options(self, candidate: Candidate, epochs: int, folder: Path) -> AddResStudentOptions:
        """Options of a training for so many epochs; its schedule is that of the full one, made shorter."""
        options, share = self.options, epochs / self.options.epochs
        lengths = {name: getattr(options, name) for name in ("warmup_epochs", "decay_epochs")}
        views = shared_views(options, self.residual.data, self.longest, networks=2)
        return dataclasses.replace(
            options,
            **{name: value and share * value for name, value in lengths.items()},
            **vars(SearchOptions()),
            arch=(candidate.spec,),
            epochs=epochs,
            target_views=str(views),
            out=str(folder),
            compile=False,
            tensorboard=False,
        )

    def _folder(self, candidate: Candidate, epochs: int) -> Path:
        return self.path / f"{re.sub(r'[^a-zA-Z0-9_.=-]+', '-', candidate.spec)}-{epochs}"

    @functools.cached_property
    def _quiet(self) -> Reporter:
        return Once(self.job.reporter)

    @functools.cached_property
    def _member_macs(self) -> list[int]:
        return [found.macs for found in member_profiles(self.residual.base)]

    @functools.cached_property
    def _members(self) -> tuple[Tensor, Tensor]:
        """What the members so far say on the calibration split [M, N, K], and its labels [N]."""
        base = self.residual.base.model
        assert isinstance(base, ResidualCascade)
        found = [self._collected(member) for member in base.members]
        return torch.stack([logits for logits, _ in found]), found[0][1]

    def _collected(self, network: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and labels [N], in fp32 as gates are calibrated."""
        place = dataclasses.replace(self.job.place, precision="fp32")
        data = dataclasses.replace(self.residual.data, prep=self.residual.base.prep)
        batches = data.evaluation("calibration", 128)
        found = collect(network.eval().to(place.device).to(memory_format=torch.channels_last), batches, place)
        network.cpu()
        return found


class Once(Silent):
    """Passes on what many trainings alike have to tell, once."""

    def __init__(self, reporter: Reporter) -> None:
        self.tell = functools.cache(reporter.note)

    def note(self, text: str) -> None:
        self.tell(text)
