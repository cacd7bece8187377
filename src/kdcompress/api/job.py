"""A command that trains: from options and networks to a finished run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
import timm
import torch
from torch import nn

from kdcompress.api.claimed import claimed, discarding
from kdcompress.api.cost import facts, member_profiles, note_missed
from kdcompress.api.numerics import KEY, numerics_of
from kdcompress.api.recorded_split import keep_split
from kdcompress.api.reference import piped
from kdcompress.api.starting import file_digest
from kdcompress.api.targets import check_precision, with_cached_targets
from kdcompress.api.teacher import DIVIDED, SEEN, Teacher, knows_calibration
from kdcompress.api.teacher_score import TeacherScores, lost
from kdcompress.api.temperature import best_scale, scale_classifier
from kdcompress.data import Data, EvalBatches, TrainBatches
from kdcompress.data.source import DATA_DIR
from kdcompress.data.sources import is_named
from kdcompress.engine.compiling import check_compiler, compiled
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, check_same, from_main, start, summed
from kdcompress.engine.evaluate import Scores, collect, evaluate
from kdcompress.engine.fit import RECIPE, fit, phase_of
from kdcompress.engine.fp32_layers import in_fp32
from kdcompress.engine.gradient_check import Numerics
from kdcompress.engine.plan import Plan
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.restart import job_key, resuming
from kdcompress.engine.sync_bn import is_wanted, layers, synchronized
from kdcompress.engine.targets import CachedBatches, CachedEval, forward_batch
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.base import Frozen, StudentTask
from kdcompress.methods.losses import residual_energy
from kdcompress.models.build import classifiers
from kdcompress.models.loading import Network
from kdcompress.models.saving import model_config, save_network
from kdcompress.option_set import shown
from kdcompress.options import DataOptions, OutputOptions, TargetOptions, TrainingOptions
from kdcompress.options.methods import meaningless
from kdcompress.references import absolute
from kdcompress.results import R, TrainResult
from kdcompress.runs import CONFIG, RECORD, WEIGHTS, RunFolder, check_claim, file_hash
from kdcompress.schema import Malformed
from kdcompress.training_task import unwrapped

JobOptions = TypeVar("JobOptions", bound=TrainingOptions)

WORTH_COMPILING = 1000  # steps
ORIGINS = ("run", "teacher", "data")  # what a run is made from
SCALED = ("epochs", "warmup_epochs", "decay_epochs")  # in a recipe, to the length of a phase
INHERITED = ("data", "data_dir", "holdout", "skip_bad_images")  # filled in from the run that a command builds on


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes:
        task: Makes the task when the phase begins: it may choose which parts of a network are trained.
        epochs: None for ``--epochs``.
        name: Shown after the command in the progress.
    """

    task: Callable[[], StudentTask]
    epochs: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Prepared:
    """Plans and batches of a training, shared by its phases.

    Attributes:
        plans: One per phase.
        synced: Whether BatchNorm statistics are taken over all processes.
    """

    plans: list[Plan]
    batches: TrainBatches
    calibration: EvalBatches
    synced: bool


@dataclass(frozen=True)
class Trained:
    """A task after its last phase.

    Attributes:
        batches, calibration: It was trained and scored on them; with cached targets if there are any.
        numerics: Precision and memory format of the training.
        rows: Those of ``metrics.csv``.
    """

    task: StudentTask
    batches: TrainBatches | CachedBatches
    calibration: EvalBatches | CachedEval
    numerics: Numerics
    rows: list[dict[str, Any]]


@dataclass
class Job(Generic[JobOptions]):
    """One training command: its options, where it runs, and when it began.

    Attributes:
        options: Those of the command; inherited ones are filled in once the run that it builds on is loaded.
        began: ``time.perf_counter()`` at the start.
    """

    command: str
    method: str
    options: JobOptions
    reporter: Reporter
    place: Place
    began: float

    @classmethod
    def begin(cls, command: str, method: str, options: JobOptions, reporter: Reporter | None) -> Job[JobOptions]:
        """Set up device, processes and threads, and read standard input if it is asked for.

        Args:
            command: Name on the command line.
            method: Recorded in the run.
            reporter: Receives progress and notices; None for none.

        Raises:
            UserError: No such device, a standard input that cannot be used, or options of another schedule.
        """
        _check_schedule(options)
        place = start(options.device, options.precision, options.patience)
        # began after standard input was read: waiting for the command before does not count
        options, began = piped(options), time.perf_counter()
        reporter = (reporter if place.is_main else None) or Silent()
        options = resuming(options, command, reporter.note)
        take_free_cores(place, reporter)
        return cls(command, method, options, reporter, place, began)

    def finished(self) -> TrainResult | None:
        """As :func:`finished`."""
        return finished(self.options, self.command, TrainResult, self.reporter)

    def train(
        self,
        phases: Sequence[Phase],
        network: Network,
        data: Data,
        teacher: Teacher | None = None,
        *,
        assemble: Callable[[Network], Network] = lambda network: network,
        residual_of: Frozen | None = None,
        energies: Sequence[float] = (),
        parent: Network | None = None,
        view_shift: int = 0,
        chosen: Callable[[], np.ndarray] | None = None,
        search: list[dict[str, Any]] | None = None,
        matched_stages: list[list[int]] | None = None,
    ) -> TrainResult:
        """Fit, score on the calibration split, profile and save.

        Args:
            phases: Run one after the other on ``network``.
            assemble: Makes the network to save from the trained one.
            residual_of: The teacher whose residual's energy is measured when the training is over.
            energies: Those of the residual after each earlier member, to which that one is appended.
            parent: The run that this one builds on.
            view_shift: Added to the seed of the order, and of views that are not cached, so that a member does not see
                what the members before it saw.
            chosen: Chooses positions in the fit split of the images to train on; None for all. A resumed run takes
                those that it began with.
            search, matched_stages: As those of :class:`~kdcompress.results.TrainResult`.

        Raises:
            UserError: A batch that is too small, a compiler that does not work, a run that began with other inputs.
        """
        prepared = self._prepare(phases, network, data, view_shift)  # what is wrong is found before there is a folder
        stem = f"{self.command}-{self.method}-{network.architecture}-{Path(data.source.spec).name}"
        with claimed(self.options, stem, self.place, self.reporter) as run, discarding(run, self.place):
            self._keep_precision(run)
            if chosen is not None:
                prepared = self._prepare(phases, network, data, view_shift, self._chosen(run, chosen))
            provenance = self._provenance(data, teacher, parent)
            provenance[SEEN] = any(each.record.get(SEEN, False) for each in (network, parent) if each is not None)
            provenance["sync_bn"] = prepared.synced
            if chosen is not None:
                provenance["images"] = prepared.batches.digest()
            if network.start is not None:
                provenance["start"] = network.start
            trained = self._run(phases, prepared, data, run, provenance, network.architecture)
            temperature = self._fold_temperature(trained, data)
            scores = self._score(trained)
            if residual_of is not None:
                energies = [*energies, self.energy(trained.task.get_eval_model(), residual_of, data)]
            made = assemble(dataclasses.replace(network, model=network.model.cpu().eval()))
            profiles = member_profiles(made)
            note_missed(profiles, made.architecture, self.reporter)
            teacher_top1 = self._teacher_top1(data, teacher)
            known = teacher is not None and knows_calibration(teacher.network, data.source, data.holdout)
            if teacher_top1 is not None and known and not (provenance[SEEN] or data.source.agreement):
                self.reporter.note(
                    "Notice: the teacher may have been trained on the calibration images; it scores higher there than "
                    "on new ones, so the points lost are overstated."
                )
            views = self.options.chosen_views if isinstance(self.options, TargetOptions) else None
            result = TrainResult(
                command=self.command,
                run=str(run.path),
                seconds=round(time.perf_counter() - self.began, 3),
                method=self.method,
                data=data.source.spec,
                epochs=self.options.epochs,
                seed=self.options.seed,
                device=str(self.place.device),
                precision=trained.numerics.precision,
                split="calibration",
                **scores.rounded(),
                images_per_second=trained.rows[-1]["images_per_second"],
                energies=list(energies) if residual_of is not None else None,
                target_views=trained.batches.views or views or None,  # the last phase may have no frozen network
                calibration_seen=provenance[SEEN],
                search=search,
                matched_stages=matched_stages,
                logit_temperature=temperature,
                unlabelled=None if data.unlabelled is None else len(data.unlabelled.images.labels),
                **lost(scores.top1, teacher_top1, data.source),
                **facts(made, teacher.entry if teacher else None, profiles),
            )

            def save() -> None:
                config = model_config(made.model, made.architecture, made.model_args, data.source.class_names)
                if made.prep.crop_pct != data.prep.crop_pct:  # it was trained on images that were not cropped
                    config["pretrained_cfg"]["crop_pct"] = data.prep.crop_pct
                save_network(run, made.model, config)
                of_phases = {key: run.record().get(key, {}) for key in (KEY, RECIPE)}
                run.finish({**provenance, **of_phases, "result": result.to_dict()})

            from_main(save)  # the run can be loaded as soon as the result is returned
            return result

    def _keep_precision(self, run: RunFolder) -> None:
        """A run resumed under ``--precision auto`` keeps its precision, whatever a trial would choose now.

        Raises:
            UserError: This machine does not support it.
        """
        before = from_main(run.record).get("precision")
        if self.options.precision == "auto" and before is not None and before != self.place.precision:
            place = start(self.options.device, before, self.options.patience)
            self.place = dataclasses.replace(self.place, precision=place.precision)

    def _chosen(self, run: RunFolder, chosen: Callable[[], np.ndarray]) -> np.ndarray:
        """Positions of the images to train on; of a run that has begun those it began with, whatever they would be now:
        what is closest to the limit depends on precision and threads.
        """
        if from_main(lambda: run.has_checkpoint):
            return from_main(run.read_images)
        positions = chosen()
        from_main(lambda: run.write_images(positions))
        return positions

    def _prepare(
        self, phases: Sequence[Phase], network: Network, data: Data, view_shift: int, chosen: np.ndarray | None = None
    ) -> Prepared:
        """Plans and batches, the same in all processes.

        Args:
            chosen: Positions in the fit split of the images to train on; None for all.
        """
        options, place = self.options, self.place
        images = data.fit_size() if chosen is None else len(chosen)
        plans = [Plan.of(options, images, phase.epochs, network.model) for phase in phases]
        plan = plans[0]
        if plan.batch_size < 2 * place.world:
            remedy = f"Give {2 * place.world} or more: BatchNorm needs more than one image per process."
            raise usage_error(f"--batch-size {plan.batch_size} is too small for {place.world} process(es).", remedy)
        if options.compile:
            check_compiler()
        batches = data.training(
            plan.batch_size,
            options.seed + view_shift,
            options.augment,
            mild=options.is_short_transfer,
            chosen=chosen,
        )
        calibration = data.evaluation("calibration", forward_batch(place, data.prep))
        synced = is_wanted(options.sync_bn, plan.batch_size, place)
        if place.world > 1:  # processes that differ would hang, or each train on other data
            splits = {"the fit split": batches.digest(), "the calibration split": calibration.digest()}
            check_same(
                {**splits, **options.affecting_result(), **vars(plan), "precision": place.precision, "sync_bn": synced}
            )
        return Prepared(plans, batches, calibration, synced)

    def _run(
        self,
        phases: Sequence[Phase],
        prepared: Prepared,
        data: Data,
        run: RunFolder,
        provenance: dict[str, Any],
        architecture: str,
    ) -> Trained:
        """Run all phases, or those that are left of an interrupted run."""
        options, place = self.options, self.place

        def begin() -> int:
            if run.has_checkpoint:
                _check_origin(run, provenance)
            else:
                run.write_record({**provenance, "status": "unfinished"}, digests=keep_split(run, data.source))
            return phase_of(run)

        first = from_main(begin)
        rows: list[dict[str, Any]] = []
        note = functools.cache(self.reporter.note)  # phases and splits give the same notices
        for number in range(first, len(phases)):
            task, plan = phases[number].task(), prepared.plans[number]
            note(f"Training with {plan}, augmentation {prepared.batches.augment}")
            check_precision(task, prepared.batches, place, self.reporter)
            numerics = numerics_of(
                run, number, task, prepared.batches, place, note, may_choose=options.precision == "auto"
            )
            task.find_unused = numerics.find_unused
            known = _views_of(run, number)  # of a resumed training, whatever room the cache has now
            batches, calibration = with_cached_targets(
                task, prepared.batches, prepared.calibration, data, options, plan.epochs, place, note, known
            )
            images = {"augment": prepared.batches.augment, "views": batches.views or 0}
            recipe = {**vars(plan), **task.hyperparameters(), **images}
            student = _student(task)
            title = f"{self.command} {architecture} {phases[number].name}".rstrip()
            with contextlib.ExitStack() as modes:
                if prepared.synced and layers(student):
                    note(
                        f"BatchNorm statistics are taken over all {place.world} processes (--sync-bn {options.sync_bn})"
                    )
                    modes.enter_context(synchronized(student, place.device))
                modes.enter_context(in_fp32(student, numerics.fp32_layers))
                modes.enter_context(compiled(self._to_compile(task, plan.epochs * len(batches))))
                rows = fit(
                    task, batches, calibration, options, plan, self._computing(numerics), run, self.reporter,
                    title=title, num_classes=data.source.num_classes, phase=number, history=rows,
                    memory_format=numerics.memory_format, recipe=recipe,
                )  # fmt: skip
        return Trained(task, batches, calibration, numerics, rows)

    def _fold_temperature(self, trained: Trained, data: Data) -> float | None:
        """Give the logits the scale that the loss left open, by the calibration split; its temperature, if any."""
        student = _student(trained.task)
        layers = classifiers(student)
        if not trained.task.scale_is_open:
            return None
        trained.task.eval()

        def fitted() -> float:
            batches = data.alone().evaluation("calibration", forward_batch(self.place, data.prep))
            with in_fp32(student, trained.numerics.fp32_layers):
                return best_scale(*collect(trained.task.get_eval_model(), batches, self._computing(trained.numerics)))

        scale = from_main(fitted)
        return round(1 / scale, 6) if scale_classifier(layers, scale) else None

    def _score(self, trained: Trained) -> Scores:
        """Accuracy on the calibration split."""
        trained.task.eval()
        with in_fp32(_student(trained.task), trained.numerics.fp32_layers):
            final = trained.task.get_eval_model()
            return evaluate(final, trained.calibration, self._computing(trained.numerics))

    def _teacher_top1(self, data: Data, teacher: Teacher | None) -> float | None:
        """Of the teacher on the calibration split, in fp32 as ``eval`` does."""
        place = dataclasses.replace(self.place, precision="fp32")
        scores = TeacherScores("calibration", data.source, self.options, place, self.reporter)
        return scores.top1(teacher.entry, network=teacher.network) if teacher else None

    def _computing(self, numerics: Numerics) -> Place:
        return dataclasses.replace(self.place, precision=numerics.precision)

    def _to_compile(self, task: StudentTask, steps: int) -> list[nn.Module]:
        """The student and the frozen networks of a task, if it is to be compiled."""
        if not self.options.compile:
            return []
        if steps < WORTH_COMPILING:
            self.reporter.note(f"Notice: --compile may take longer than it saves in only {steps} steps.")
        return [_student(task), *(module.model for module in task.modules() if isinstance(module, Frozen))]

    def energy(self, network: nn.Module, teacher: nn.Module, data: Data) -> float:
        """Energy of the residual between ``teacher`` and ``network``, on the whole calibration split, in fp32."""
        place = dataclasses.replace(self.place, precision="fp32")
        of_teacher, of_network = teacher.to(place.device), network.to(place.device)
        sums = torch.zeros(2, dtype=place.sum_dtype, device=place.device)
        with torch.inference_mode(), place.autocast():
            for x, _ in data.evaluation("calibration", forward_batch(place, data.prep)):
                energy = residual_energy(of_teacher(x).float(), of_network(x).float())
                sums += torch.stack([energy * len(x), torch.full_like(energy, len(x))]).to(sums)
        total, count = summed(sums).tolist()
        return round(total / count, 6)

    def _provenance(self, data: Data, teacher: Teacher | None, parent: Network | None) -> dict[str, Any]:
        return {
            "command": self.command,
            "method": self.method,
            "options": recorded(self.options, data),
            "data_fingerprint": data.source.fingerprint,
            DIVIDED: data.source.division,
            "unlabelled_fingerprint": data.unlabelled.fingerprint if data.unlabelled is not None else None,
            "teacher": teacher.entry if teacher else None,
            "parents": [parent.reference] if parent is not None else [],
            "parent_fingerprint": file_hash(parent.path) if parent is not None else None,
            "seed": self.options.seed,
            "hardware": self.place.describe(),
            "threads": torch.get_num_threads(),
            "precision": self.place.precision,
            "versions": versions(),
            **job_key(),
        }


def _views_of(run: RunFolder, phase: int) -> int | None:
    """Number of views that a phase was begun with; None where that is not recorded."""
    views = from_main(lambda: run.record().get(RECIPE, {}).get(str(phase), {}).get("views"))
    return None if views is None else int(views)


def _check_schedule(options: TrainingOptions) -> None:
    """Raises:
    UserError: Options of the step schedule for another one.
    """
    for name in ("decay_epochs", "decay_rate"):
        if options.sched != "step" and name in options.changed() and not options.resume:
            raise meaningless(name, f"--sched {options.sched}", "Add --sched step, or leave it out.")


def _student(task: StudentTask) -> nn.Module:
    """The trainable module of a task, without the wrapper of several processes."""
    return unwrapped(task.get_trainable_module())


def recorded(options: DataOptions, data: Data) -> dict[str, Any]:
    """Options as ``run.json`` keeps them, with data that are found from any working directory."""
    values = {**options.to_dict(), "data": data.source.spec, "holdout": data.holdout}
    if values.get("data_dir") or is_named(data.source.spec):
        values["data_dir"] = str(Path(values.get("data_dir") or DATA_DIR).absolute())
    return values


def _check_origin(run: RunFolder, now: dict[str, Any]) -> None:
    """Refuse to resume a run with other data, teacher or base than it began with.

    Raises:
        UserError: One of them has changed.
    """

    def origin(record: dict[str, Any]) -> dict[str, Any]:
        teacher, start = record.get("teacher") or {}, record.get("start") or {}
        return {
            "data": record.get("data_fingerprint"),
            "teacher": teacher.get("fingerprint"),
            "base": record.get("parent_fingerprint"),
            "starting weights": start.get("fingerprint"),
            "unlabelled images": record.get("unlabelled_fingerprint"),
            "chosen images": record.get("images"),
            "rule of division": record.get(DIVIDED),
        }

    then = origin(run.record())
    for name, value in origin(now).items():
        if then[name] != value:
            remedy = f"Resume with the same {name}, or start a new run without --resume."
            another = "other" if name.endswith("s") else "another"
            raise UserError(f"The run {run.path} was started with {another} {name}.", remedy)


def finished(options: OutputOptions, command: str, kind: type[R], reporter: Reporter) -> R | None:
    """The result of the run that ``--resume`` finds complete.

    Raises:
        UserError: ``--out`` exists and is not to be resumed, or it is a run of another command, finished or not, or was
            made with other options.
    """
    if not options.out:
        return None
    result = from_main(lambda: _finished(options, command, kind))
    if result is None:
        return None
    reporter.note(f"{result['run']} is already finished.")
    return kind.from_dict(result)


def _finished(options: OutputOptions, command: str, kind: type[R]) -> dict[str, Any] | None:
    """The same for the main process alone: other processes may see the disk at another moment."""
    assert options.out is not None
    check_claim(options.out, resume=options.resume)
    if not options.resume:
        return None
    run = RunFolder(Path(options.out).absolute())
    record = run.record()
    if record.get("command", command) != command:
        raise usage_error(
            f"--out {shlex.quote(str(run.path))} is a run of {record['command']}.", "Choose another folder."
        )
    if not run.is_finished:
        return None
    run.check(CONFIG, WEIGHTS)
    then, now = record.get("options", {}), options.to_dict()
    # networks as they were typed may be relative to another folder
    places = {
        "run": next(iter(record.get("parents") or []), None),
        "teacher": (record.get("teacher") or {}).get("reference"),
    }
    for key in ORIGINS:
        known = {absolute(str(each)) for each in (then.get(key), places.get(key)) if each}
        if now.get(key, "-") != "-" and key in then and absolute(now[key]) not in known:
            remedy = "Choose another folder, or leave out --resume and --out."
            raise usage_error(f"The run {run.path} is finished, but its {key} is {then[key]}.", remedy)
    parent = Path(absolute(now["run"])) if now.get("run", "-") != "-" else None
    if parent is not None and record.get("parent_fingerprint") not in (None, file_hash(parent)):
        remedy = "Choose another folder, or remove this one to run it again."
        raise usage_error(f"The run {run.path} is finished, but {now['run']} has changed since.", remedy)
    start = record.get("start") or {}
    if start.get("file") is not None and file_digest(start["reference"]) not in (None, start["file"]):
        remedy = "Choose another folder, or remove this one to make it anew."
        raise usage_error(f"The run {run.path} is finished, but {start['reference']} has changed since.", remedy)
    if changed := changed_since(options, then, record.get(RECIPE, {})):
        detail = ", ".join(shown(key, then.get(key)) for key in changed[:3])
        remedy = "Give the same options to take its result, or choose another folder."
        raise usage_error(f"The run {run.path} is finished, but was made with {detail}.", remedy)
    result = {**record.get("result", {}), "run": str(run.path)}
    try:
        kind.from_dict(result)
    except Malformed as error:
        problem = f"{run.path / RECORD} has no valid result of {command}: {error}."
        raise UserError(problem, "The folder is damaged; choose another.") from error
    return result


def changed_since(
    options: OutputOptions, then: dict[str, Any], recipe: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> list[str]:
    """Options that affect the result, and differ from those that a run recorded.

    Args:
        recipe: The values used for options that were left open, by phase; giving one of them is no change.
    """
    now, usual = options.to_dict(), type(options)().to_dict()
    first, *others = recipe.values() or [{}]
    used = {key: value for key, value in first.items() if all(each.get(key) == value for each in others)}
    if others:
        used = {key: value for key, value in used.items() if key not in SCALED}
    left_open = {key for key in used if then.get(key) in (None, "auto")}
    then = {**then, **{key: used[key] for key in left_open if now.get(key) == used[key]}}
    inherited = {key for key in INHERITED if now.get(key) == usual.get(key)}  # filled in later
    return [key for key in sorted(options.differing(then, now)) if key not in options.changeable() | inherited]


def versions() -> dict[str, str]:
    """Versions of the packages that affect the result."""
    installed = {
        "kdcompress": version("kdcompress"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }
    for extra in ("torch-pruning", "optuna"):
        with contextlib.suppress(PackageNotFoundError):
            installed[extra] = version(extra)
    return installed
