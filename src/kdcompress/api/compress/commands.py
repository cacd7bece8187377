"""The commands that ``compress`` runs for a person, each printed as it would be typed, in run folders of its own."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from kdcompress.api.add_res_student import add_res_student
from kdcompress.api.cascade import cascade
from kdcompress.api.compress.course import Course
from kdcompress.api.evaluate import evaluate
from kdcompress.api.gate import gate_calibrate
from kdcompress.api.train import distill, train_teacher
from kdcompress.engine.progress import Reporter
from kdcompress.option_set import Options
from kdcompress.options import (
    AddResStudentOptions,
    CacheOptions,
    CascadeOptions,
    CompressOptions,
    DataOptions,
    DeviceOptions,
    DistillOptions,
    EvalOptions,
    GateCalibrateOptions,
    TrainTeacherOptions,
)
from kdcompress.references import is_of_timm
from kdcompress.results import CascadeResult, EvalResult, GateResult, TrainResult
from kdcompress.runs import RunFolder, inner_runs

O = TypeVar("O", bound=Options)  # noqa: E741
# what every command takes as compress was given it; of an input size, each network has its own
SHARED = {each.name for base in (DataOptions, DeviceOptions, CacheOptions) for each in fields(base)} - {"input_size"}
SHARED |= {"seed", "unlabelled", "log", "tensorboard"}
KEPT = 0.9  # probability that a gate keeps a budget of MACs on new images
BEST_SINGLE, SUMMED = "standardized-kl", "mse"  # logit losses that were best in trials; a sum needs one with a scale


@dataclass
class Commands:
    """Runs commands with what the options of ``compress`` have in common with them.

    Attributes:
        options: Those of ``compress``.
        folder: Where the runs go; one that is finished already is not run again.
        classes: K.
        course: Is told which command begins.
        views: Of the images, for which all trainings share the teacher's outputs; 0: it runs in every step;
            None: it answers once for each input, as inputs are not augmented.
    """

    options: CompressOptions
    folder: Path
    reporter: Reporter
    classes: int
    course: Course
    views: int | None = 0

    def fine_tune(self, name: str, epochs: int, input_size: str) -> TrainResult:
        """The teacher, for the classes of the data, and for images of this size (``CxHxW``)."""
        given = self.options
        own = {"model": given.teacher, "arch": given.teacher_arch, "weights_key": given.weights_key, "epochs": epochs}
        own |= {"pretrained": is_of_timm(given.teacher), "input_size": input_size}
        return self._trained(name, "train-teacher", train_teacher, TrainTeacherOptions, own)

    def single(self, name: str, teacher: dict[str, Any], student: dict[str, Any], epochs: int) -> TrainResult:
        """A student that is to answer alone."""
        loss = BEST_SINGLE if self.classes > 2 else "kl"  # of two standardized logits only the order is left
        own = {**teacher, **student, "logit_loss": loss, "epochs": epochs}
        return self._trained(name, "distill", distill, DistillOptions, own)

    def first(self, name: str, teacher: dict[str, Any], student: dict[str, Any], epochs: int) -> TrainResult:
        """The first member of a cascade."""
        own = {**teacher, **student, "method": "reskd", "logit_loss": SUMMED, "epochs": epochs}
        return self._trained(name, "distill", distill, DistillOptions, own)

    def res_student(self, name: str, run: str, student: dict[str, Any], epochs: int) -> TrainResult:
        """One more member of the cascade ``run``."""
        own = {key: value for key, value in student.items() if key not in ("student", "input_size")}
        own |= {"run": run, "arch": (student["student"],), "logit_loss": SUMMED, "epochs": epochs}
        return self._trained(name, "add-res-student", add_res_student, AddResStudentOptions, own)

    def cascade(self, name: str, members: list[str], archs: list[str]) -> CascadeResult:
        """Networks that exist, each handing over to the next."""
        own = {"members": tuple(members), "arch": tuple(archs)}
        return self._run(name, "cascade", cascade, CascadeOptions, own, CascadeResult)

    def gate(self, name: str, run: str, limit: dict[str, Any]) -> GateResult:
        """A gate for the cascade ``run``."""
        own = {"run": run, "measure": "auto", **limit}
        if "engine" in own:
            own["precision"] = self.options.timed_precision
        if self.options.target_macs is not None:
            own["confidence_level"] = KEPT
        return self._run(name, "gate-calibrate", gate_calibrate, GateCalibrateOptions, own, GateResult)

    def score(self, run: str, split: str, **more: Any) -> EvalResult:
        """Accuracy of a run on a split."""
        options = self._options(EvalOptions, {"run": run, "split": split, **more})
        self._print("eval", options)
        return evaluate(options, reporter=self.reporter)

    def has_begun(self, name: str) -> bool:
        """Whether a run has a folder."""
        return (self.folder / name).exists()

    def spent(self, name: str) -> float:
        """Seconds that a run took so far, in all attempts; 0 if it has not begun."""
        return seconds_of(RunFolder(self.folder / name))

    def best(self) -> str | None:
        """The most accurate finished run that answers: a student alone, or a gated cascade."""
        runs = [run for run in inner_runs(self.folder) if run.is_finished]
        results = {run.path: run.record().get("result", {}) for run in runs}
        found = {path: result.get("gated_top1", result.get("top1")) for path, result in results.items()}
        known = {
            path: float(top1)
            for path, top1 in found.items()
            if top1 is not None and not path.name.endswith(("first", "pair", "handover", "teacher"))
        }
        if not known:
            return None
        path = max(known, key=known.__getitem__)
        return f"{path}, {known[path]:.2f} % on the calibration split"

    def seconds_of_epochs(self, name: str) -> list[float]:
        """Of a training that is finished, without those in which targets were cached."""
        rows = RunFolder(self.folder / name).metrics()
        return [row["seconds"] - row.get("target_seconds", 0.0) for row in rows if "seconds" in row]

    def _trained(
        self, name: str, command: str, run: Callable[..., Any], kind: type[Options], own: dict[str, Any]
    ) -> TrainResult:
        begun = RunFolder(self.folder / name).record().get("options", {})  # of a training that was interrupted
        own = {**own, "epochs": begun.get("epochs", own["epochs"])}
        if self.views is not None and command != "train-teacher":
            own["target_views"] = begun.get("target_views", str(self.views))
        result: TrainResult = self._run(name, command, run, kind, own, TrainResult)
        return result

    def _run(
        self,
        name: str,
        command: str,
        run: Callable[..., Any],
        kind: type[Options],
        own: dict[str, Any],
        made: type[Any],
    ) -> Any:
        out = self.folder / name
        options = self._options(kind, {**own, "out": str(out), "resume": RunFolder(out).path.exists()})
        if RunFolder(out).is_finished:
            self.course.pass_by(name)
        else:
            self.course.begin(name)
            self._print(command, options)
        result = run(options, reporter=self.reporter)
        assert isinstance(result, made)
        return result

    def _options(self, kind: type[O], own: dict[str, Any]) -> O:
        """Options of a command: its own, and what it shares with ``compress``."""
        given = self.options
        names = SHARED & {each.name for each in fields(kind)}
        return kind(**{**{name: getattr(given, name) for name in names}, **own})

    def _print(self, command: str, options: Options) -> None:
        quiet = {"resume": False} if hasattr(options, "resume") else {}
        words = dataclasses.replace(options, **quiet).typed()
        self.reporter.note(f"$ kdcompress {shlex.join([command, *words])}")


def spent_seconds(folder: Path) -> float:
    """What the runs in a folder took so far."""
    return sum(map(seconds_of, inner_runs(folder)))


def seconds_of(run: RunFolder) -> float:
    """What a run took so far, also where it was interrupted and gone on with."""
    result = run.record().get("result", {}) if run.path.exists() else {}
    return max(float(result.get("seconds", 0.0)), sum(run.column("seconds")))
