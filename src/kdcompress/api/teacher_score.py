"""The accuracy of a run's teacher, and what the student has lost against it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcompress.api.fitting import check_classes
from kdcompress.api.inputs import recall_size
from kdcompress.cache import cache_dir
from kdcompress.data import Data, DataSource
from kdcompress.data.prepared import HOLDOUT
from kdcompress.engine.distributed import Place, alone, from_main
from kdcompress.engine.evaluate import evaluate
from kdcompress.engine.progress import Reporter
from kdcompress.engine.targets import forward_batch
from kdcompress.errors import UserError
from kdcompress.gating import LEARNED
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import DataOptions
from kdcompress.score_cache import recall, remember


def lost(top1: float, teacher_top1: float | None, source: DataSource) -> dict[str, Any]:
    """Keyword arguments of :class:`~kdcompress.results.TeacherFacts`: percent, and percentage points."""
    known = {"agreement": True if source.agreement else None}
    if teacher_top1 is None:
        return {"teacher_top1": None, "points_lost": None, **known}
    return {"teacher_top1": round(teacher_top1, 4), "points_lost": round(teacher_top1 - top1, 4) + 0.0, **known}


@dataclass(frozen=True)
class TeacherScores:
    """Where teachers are scored: a split, and the options and place of the command.

    Attributes:
        options: Also ``cache_dir``, where the command has it.
    """

    split: str
    source: DataSource
    options: DataOptions
    place: Place
    reporter: Reporter

    def top1(
        self, entry: Mapping[str, Any] | None, *, network: Network | None = None, wanted: bool | None = None
    ) -> float | None:
        """Top-1 of a teacher, percent: from its ``run.json``, else from the cache, else it is scored here.

        Args:
            entry: The ``teacher`` of the student's ``run.json``.
            network: The teacher, where it is loaded already.
            wanted: None: if it is on this disk. True: also if it must be downloaded. False: no.

        Returns:
            None where there is no teacher that knows these classes, or it is not scored; a notice then says why.

        Raises:
            UserError: It is ``wanted``, and cannot be scored.
        """
        if entry is None or "macs" not in entry or wanted is False:  # LW-KD's teacher learned from other images
            return None
        return from_main(lambda: self._found(entry, network, bool(wanted)))

    def remember(self, network: Network, facts: Mapping[str, Any], top1: float) -> None:
        """Keep the accuracy of a network that was scored anyway: it may be the teacher of the next one."""
        if self.place.is_main and not isinstance(network.model, Staged):
            own = {"architecture": facts["architecture"], "macs": facts["macs"], "input": network.prep.described()}
            remember(self._cache, self._key({"fingerprint": network.fingerprint(), **own}), top1)

    @property
    def _cache(self) -> Any:
        return cache_dir(getattr(self.options, "cache_dir", None))

    @property
    def _holdout(self) -> float:
        return self.options.holdout or HOLDOUT

    def _key(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The network, by its weights, cost and input; then the images, and the arithmetic."""
        own = {key: entry.get(key) for key in ("fingerprint", "architecture", "macs", "input")}
        images = {"data": self.source.fingerprint, "split": self.split, "skip_bad": self.options.skip_bad_images}
        holdout = self._holdout if self.split == "calibration" else None
        of_split = self.source.test if self.split == "test" and self.source.test is not None else self.source.train
        written = of_split.written.hex()  # files may have been mended in place
        return {**own, **images, "written": written, "holdout": holdout, "precision": self.place.precision}

    def _found(self, entry: Mapping[str, Any], network: Network | None, wanted: bool) -> float | None:
        key = self._key(entry)
        cached = recall(self._cache, key)
        if network is None and cached is not None:
            return cached
        reference = str(entry["reference"])
        local = os.path.exists(reference.removeprefix("local-dir:"))
        if network is None and not local and not wanted:
            self.reporter.note(f"Notice: the teacher {reference} is not on this disk; --score-teacher scores it, too.")
            return None
        try:
            if network is None:
                network = load_network(reference, entry.get("arch"))
                recall_size(network, entry.get("input_size"))
            if network.fingerprint() != entry.get("fingerprint"):
                problem = f"{reference} has changed since this run was distilled."
                raise UserError(problem, "Leave out --score-teacher, or put the teacher back as it was.")
            check_classes(network, self.source, "teacher")
            if (known := self._on_record(network.record)) is not None:
                return known
            if cached is not None:
                return cached
            top1 = self._score(network)
        except UserError as error:
            if wanted:
                raise
            self.reporter.note(f"Notice: the teacher is not scored: {error.problem}")
            return None
        if not isinstance(network.model, Staged):  # with and without its gate, a cascade has the same weights
            remember(self._cache, key, top1)
        return top1

    def _on_record(self, record: Mapping[str, Any]) -> float | None:
        """What the teacher's own run says, where it was scored on the same calibration images."""
        result, own = record.get("result") or {}, record.get("options", {}).get("holdout")
        same = record.get("data_fingerprint") == self.source.fingerprint and own == self._holdout
        if self.split != "calibration" or result.get("split") != "calibration" or not same:
            return None
        if result.get("measure") == LEARNED:  # it was scored on half of them
            return None
        top1 = result.get("gated_top1", result.get("top1"))
        return float(top1) if isinstance(top1, (int, float)) else None

    def _score(self, network: Network) -> float:
        self.reporter.note(f"Scoring the teacher {network.reference} on the {self.split} split")
        place = self.place
        data = Data(self.source, network.prep, self.options, place.device)
        model = for_inference(network.model, place.device)
        with alone():
            batches = data.evaluation(self.split, forward_batch(place, network.prep))
            return round(evaluate(model, batches, place).top1, 4)
