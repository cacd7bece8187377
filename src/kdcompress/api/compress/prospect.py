"""What ``compress`` knows before it trains anything: the teacher, the data, the plan and its cost."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdcompress.api.benchmark import benchmark
from kdcompress.api.compress.candidates import RESIZED, Student, Students
from kdcompress.api.compress.commands import SHARED, Commands
from kdcompress.api.compress.contest import Limit
from kdcompress.api.compress.plan import FOCUS_STEPS, FORWARD_SHARE, TEACHER, UNTIL_ENOUGH, Costs, Plan, least_share
from kdcompress.api.compress.probe import forward_seconds, training_seconds
from kdcompress.api.evaluate import PASSES
from kdcompress.api.fitting import check_channels, check_classes, has_other_classes, open_data
from kdcompress.api.inputs import is_fixed
from kdcompress.api.reference import inherit
from kdcompress.api.targets import VIEWS, gib
from kdcompress.api.teacher import Teacher, as_teacher, knows_calibration, load_teacher
from kdcompress.data import Data, DataSource, choose_channels, choose_size, unlabelled_images
from kdcompress.engine.distributed import Place
from kdcompress.engine.plan import Plan as Schedule
from kdcompress.engine.progress import Reporter
from kdcompress.errors import usage_error
from kdcompress.models.build import config_of
from kdcompress.models.loading import Network
from kdcompress.options import BenchmarkOptions, CompressOptions, DistillOptions, TargetOptions, TrainingOptions
from kdcompress.references import has_weights

TRAINING, FORWARD = 1.15, 1.1  # of what a probe measures: loading, optimiser, calibration
FINE_TUNING_EPOCHS = 10


@dataclass
class Prospect:
    """Everything that a plan is made of.

    Attributes:
        teacher_row: Of the verdict: ``networks``, ``top1`` on the calibration split, ``macs``.
        epochs: Of each member of a cascade.
        reading: Seconds per image of reading photos from the disk.
    """

    options: CompressOptions
    place: Place
    reporter: Reporter
    source: DataSource
    teacher: Teacher
    students: Students
    plan: Plan
    costs: Costs
    epochs: int
    teacher_row: dict[str, Any]
    reading: float = 0.0

    @classmethod
    def of(
        cls, options: CompressOptions, place: Place, reporter: Reporter, known: Mapping[str, Any] | None = None
    ) -> Prospect:
        """Load teacher and data, and make a plan.

        Args:
            known: What an interrupted attempt had measured and planned by, see :attr:`known`.

        Raises:
            UserError: As for :func:`~kdcompress.api.compress.compress`.
        """
        network = load_teacher(options.teacher, options.teacher_arch, options.weights_key, reporter)
        options = inherit(options, network.record)
        source = open_data(options, network, is_teacher=True)
        fine_tunes = has_other_classes(network, source)
        if not fine_tunes:
            check_classes(network, source, "teacher")
        elif not has_weights(options.teacher):  # timm's weights take the size of small images, as train-teacher does
            size = choose_size(source, options, network.prep.size, is_fixed(network))
            config_of(network.model)["input_size"] = (network.prep.channels, *size)
        channels = choose_channels(source, options)
        check_channels(network, channels, "teacher", source.size)
        teacher = as_teacher(network, source, options, reporter)
        more = None if options.unlabelled is None else unlabelled_images(options.unlabelled, source)
        data = Data(source, network.prep, options, place.device, note=reporter.note, unlabelled=more)
        seen = not (fine_tunes or source.agreement) and knows_calibration(network, source, data.holdout)
        name, value = options.budget
        if seen and name == "max_drop":
            problem = f"--max-drop needs images that the teacher {network.reference} has not seen, and it may have"
            remedy = "Give --target-macs, or a teacher that train-teacher made on these data."
            raise usage_error(f"{problem} been trained on the calibration images.", remedy)
        if seen:
            reporter.note(
                "Notice: the teacher may have been trained on the calibration images, where it would look better than "
                "it is: a student that hands over to it does not compete."
            )
        size = choose_size(source, options, network.prep.size, fixed=False)
        students = Students(teacher, source.num_classes, channels, size, reporter.note)
        share = value if name == "target_macs" else UNTIL_ENOUGH
        if name == "max_drop" and not students.within(share * students.macs):
            least = least_share(students)
            share = least if least <= 1 else share  # the teacher is small
        if name == "target_ms":
            share = known["share"] if known else _share_of_time(options, network, value)
        flag = f"--{name.replace('_', '-')}"

        def spelled(least: float) -> str:
            """The budget that would allow a share of the teacher's MACs, in the unit of the one that was given."""
            if name == "target_ms":
                return f"about {flag} {value * least / share:.3g}"
            return f"--target-macs {least:g}"

        steps = math.ceil(data.fit_size() / Schedule.of(TrainingOptions(), data.fit_size()).batch_size)
        plan = Plan.of(
            students,
            share * students.macs,
            handover=not seen,
            fine_tunes=fine_tunes,
            steps=steps,
            caches=_caches(data),
            focuses=steps >= FOCUS_STEPS and options.unlabelled is None,  # or none with labels may be left
            spelled=spelled,
        )
        row = {"networks": network.reference, "macs": students.macs}
        made = cls(options, place, reporter, source, teacher, students, plan, Costs({}, 0.0), options.epochs, row)
        made.reading = data.seconds_to_read()
        if known:
            made.costs, made.epochs = Costs(**known["costs"]), int(known["epochs"])
            # weights that could not be had then may be there now
            made._measure([each for each in plan.students() if each.key not in made.costs.training], data.fit_size())
            return made
        made.costs = made._probed(data.fit_size())
        if options.time_budget is not None:
            made.epochs = plan.epochs_within(options.time_limit, made.costs)
        return made

    @property
    def known(self) -> dict[str, Any]:
        """What a later attempt has to plan by: what a machine measures differs from minute to minute."""
        share = self.plan.most / self.students.macs
        return {"share": share, "epochs": self.epochs, "costs": dataclasses.asdict(self.costs)}

    def lines(self) -> list[str]:
        """The plan, for a person."""
        name, value = self.options.budget
        first = f"Plan for --{name.replace('_', '-')} {value:g} of {self.teacher.network.reference}"
        table = self.plan.lines(self.epochs, self.costs, self.students.macs)
        if self.plan.fine_tunes:
            told = (
                f"  the teacher is fine-tuned first: {FINE_TUNING_EPOCHS} epochs for {self.source.num_classes} classes"
            )
            table.insert(0, told)
        return [f"{first}: {self.plan.most / 1e6:.1f} M of {self.students.macs / 1e6:.1f} M MACs per image", *table]

    def facts(self) -> dict[str, Any]:
        """The plan, for :class:`~kdcompress.results.PlanResult`."""
        roles = self.plan.roles()
        rows = [{"role": role, "kind": each.kind, "network": each.name, "macs": each.macs} for role, each in roles]
        return {
            "networks": rows,
            "handover": self.plan.handover and self.plan.first is not None,
            "epochs": self.epochs,
            "estimated_seconds": round(self.plan.seconds(self.epochs, self.costs), 1),
            "teacher": self.teacher.network.reference,
            "teacher_macs": self.students.macs,
        }

    def with_trained_teacher(self, commands: Commands) -> Prospect:
        """The same with a teacher of the data's classes, and its accuracy on the calibration split."""
        ready = self
        if self.plan.fine_tunes:
            size = "x".join(map(str, self.teacher.network.input_size))
            tuned = commands.fine_tune(TEACHER, FINE_TUNING_EPOCHS, size)
            options = dataclasses.replace(self.options, teacher=str(tuned.run), teacher_arch=None, weights_key=None)
            ready = Prospect.of(options, self.place, self.reporter, self.known)
        if ready.source.agreement:
            ready.teacher_row["top1"] = 100.0  # with itself
            return ready
        given = {"arch": ready.options.teacher_arch, "weights_key": ready.options.weights_key}
        found = commands.score(ready.options.teacher, "calibration", score_teacher=False, **given)
        ready.teacher_row["top1"] = found.top1
        return ready

    @property
    def teacher_options(self) -> dict[str, Any]:
        """The teacher's reference, as options of ``distill``."""
        arch = self.teacher.network.arch  # with the key of its weights, if a file has several sets
        return {"teacher": self.options.teacher, **({"teacher_arch": arch} if arch else {})}

    @property
    def limit(self) -> Limit:
        """What gates of the result are for."""
        name, value = self.options.budget
        if name == "target_macs":
            return lambda top1: {name: value}
        if name == "target_ms":
            timed = {name: value, "engine": self.options.engine, "batch_size": self.options.batch_size}
            return lambda top1: timed
        needed = self.teacher_row["top1"] - value
        # accuracies have four digits: what that takes may be an image; below it, the cascade may be the nearest
        return lambda top1: {name: round(top1 - needed + 1e-4, 4) if top1 > needed else 0.0}

    @property
    def within(self) -> Limit:
        """What gates of the trials are for: cost, as accuracy comes with more epochs."""
        return lambda top1: {"target_macs": round(self.plan.most / self.students.macs, 6)}

    def _probed(self, images: int) -> Costs:
        place = self.place
        forward = forward_seconds(self.teacher.network.model, self.teacher.network.input_size, place)
        teacher = FORWARD * images * forward
        self.teacher.network.model.cpu()
        tuning = 0.0
        if self.plan.fine_tunes:
            model, size = copy.deepcopy(self.teacher.network.model), self.teacher.network.input_size
            known = self.teacher.network.num_classes
            step = self._step(model, size, known, {"student": self.options.teacher, "pretrained": True}, images)
            tuning = FINE_TUNING_EPOCHS * TRAINING * images * self._with_reading(step)
        self.costs = Costs({}, teacher, tuning)
        self._measure(list(self.plan.students()), images)
        return dataclasses.replace(self.costs, after=self._after(images))

    def _after(self, images: int) -> float:
        """Seconds after the trainings, when all test images are scored, and run once more for a report."""
        if self.source.test is None:
            return 0.0
        looks = 1 + self.options.report
        student = FORWARD_SHARE * max(self.costs.training.values(), default=0.0)
        return len(self.source.test.labels) / images * looks * (self.costs.teacher + PASSES * student)

    def _measure(self, students: list[Student], images: int) -> None:
        """Seconds of an epoch of students, into the costs."""
        for student in students:
            side = (student.side, student.side) if student.side else self.students.size
            resized = student.kind == RESIZED
            model = copy.deepcopy(self.teacher.network.model) if resized else self.students.new(student.spec).model
            known = int(getattr(model, "num_classes", None) or self.source.num_classes)  # a teacher's may be others
            seconds = self._step(model, (self.students.channels, *side), known, student.options, images)
            live = 0.0 if self.plan.caches else self.costs.teacher / images
            self.costs.training[student.key] = student.share * images * self._with_reading(TRAINING * seconds + live)

    def _step(
        self, model: nn.Module, size: tuple[int, int, int], classes: int, given: Mapping[str, Any], images: int
    ) -> float:
        """Seconds per image of a training step, in batches as ``distill`` with the given options takes them."""
        own = {name: value for name, value in given.items() if name in ("student", "student_arch", "pretrained")}
        batch = Schedule.of(DistillOptions(**own, epochs=FINE_TUNING_EPOCHS), images).batch_size
        may_choose = self.options.precision == "auto" and self.place.device.type == "cpu"
        return training_seconds(model, size, classes, self.place, batch, may_choose=may_choose)

    def _with_reading(self, step: float) -> float:
        """Seconds per image of a step, and of reading it: one waits for the other, unless both need the same cores."""
        return step + self.reading if self.place.device.type == "cpu" else max(step, self.reading)


def _caches(data: Data) -> bool:
    """Whether the teacher's outputs for many trainings are worth caching: images on disk would be read once more."""
    size = gib(VIEWS + 1, data.fit_size(), 3 * data.source.num_classes)  # of the teacher, and of two members
    return not data.source.is_raw and not data.streams and size <= TargetOptions().cache_size


def _share_of_time(options: CompressOptions, teacher: Network, wanted: float) -> float:
    """The share of the teacher's MACs that ``--target-ms`` would allow if time went with MACs.

    Raises:
        UserError: The teacher itself is within the budget.
    """
    shared = {name: getattr(options, name) for name in SHARED if name in BenchmarkOptions.__dataclass_fields__}
    given = BenchmarkOptions(
        **{**shared, "precision": options.timed_precision},
        networks=(options.teacher,),
        arch=(teacher.arch,) if teacher.arch else (),
        input_size="x".join(map(str, teacher.input_size)),
        batch_size=str(options.batch_size),
        engine=options.engine,
        images=max(32, 4 * options.batch_size),
        split="calibration",
    )
    ms = benchmark(given).networks[0]["mean_ms"]
    if ms <= wanted:
        raise usage_error(f"--target-ms {wanted:g} is no less than the teacher's {ms:.3g} ms.", "Give fewer.")
    return min(wanted / ms, 0.95)
