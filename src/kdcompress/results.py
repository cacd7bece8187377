"""Typed results of the commands; their fields are the keys of the JSON that the command line prints."""

from __future__ import annotations

import dataclasses
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from kdcompress import schema

R = TypeVar("R", bound="Result")


@dataclass(kw_only=True)
class Result:
    """Fields that all results have.

    Attributes:
        command: Name of the command.
        run: Absolute path of the run folder; None for a network that is not in one.
        seconds: Wall-clock seconds of the command.
    """

    command: str
    run: str | None
    seconds: float

    optional: ClassVar[frozenset[str]] = frozenset({"run"})

    @property
    def exit_status(self) -> int:
        """Exit status of the command line that prints it."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fields that do not apply are left out, and a number that is not finite is None."""
        values = dataclasses.asdict(self)
        return {key: schema.finite(value) for key, value in values.items() if value is not None or key in self.optional}

    def not_finite(self) -> list[str]:
        """Keys of numbers that are NaN or infinite, and so None in :meth:`to_dict`."""
        return [key for key, value in dataclasses.asdict(self).items() if not schema.is_finite(value)]

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """The result that :meth:`to_dict` wrote; unknown keys (of other versions) are ignored.

        Raises:
            Malformed: A value is missing, or has a wrong type.
        """
        hints = typing.get_type_hints(cls)
        # to_dict writes None for a number that is not finite
        lost = {key: math.nan for key, value in values.items() if value is None and hints.get(key) is float}
        return schema.check({**values, **lost}, cls)


@dataclass(kw_only=True)
class NetworkFacts:
    """Architecture and cost of a network. MACs are per image.

    Attributes:
        teacher_params, params_ratio: As ``teacher_macs`` and ``macs_ratio``.
        student_macs, assistant_macs, integration_macs: Of a student with an assistant; they sum to ``macs``.
        undivided_macs: Of the model that was divided into student and assistant.
        file: Absolute path of the file that was written or read: an export, or a report; None where there is none.
    """

    architecture: str
    num_classes: int
    input_size: tuple[int, int, int]
    params: int
    macs: int
    flops: int
    teacher: str | None = None
    teacher_macs: int | None = None
    macs_ratio: float | None = None
    teacher_params: int | None = None
    params_ratio: float | None = None
    members: list[dict[str, Any]] | None = None
    student_macs: int | None = None
    assistant_macs: int | None = None
    integration_macs: int | None = None
    undivided_macs: int | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.input_size
        self.input_size = (channels, height, width)  # JSON has lists only


@dataclass(kw_only=True)
class TeacherFacts:
    """How accurate the teacher is on the same split; None where there is no teacher, or it was not scored.

    Attributes:
        teacher_top1: Percent.
        points_lost: ``teacher_top1`` minus the top-1 of the result, in percentage points; of a gated cascade the gated
            one. None for a learned gate, which is scored on half of the split.
        agreement: True where the images have no labels, so that all accuracies are agreement with the teacher.
    """

    teacher_top1: float | None = None
    points_lost: float | None = None
    agreement: bool | None = None


@dataclass(kw_only=True)
class TrainResult(TeacherFacts, NetworkFacts, Result):
    """Of ``train-teacher``, ``distill`` and ``add-res-student``. Accuracies are on the calibration split.

    Attributes:
        energies: Residual energy (mean squared difference from the teacher's logits) after each member; the last two
            are before and after this training.
        stopped_by: Why growing stopped: ``target``, ``macs``, ``energy`` or ``count``.
        target_views: Number of augmented views with cached targets; None where every epoch had new views.
        calibration_seen: Whether the network started from weights that may have been trained on calibration images, on
            which it then looks better than on new ones.
        search: The trials of an architecture search, the best first: ``spec``, ``macs_ratio`` to the teacher,
            ``epochs`` trained, then of the gated sum ``top1`` and ``expected_macs_ratio`` (None where the training
            failed), and whether no other trial dominates it (``pareto``).
        matched_stages: Pairs of matched feature stages, the teacher's and the student's, each given by its reduction
            (side of the image divided by side of the map).
        logit_temperature: By which the logits were divided after the training, for a loss that leaves their scale open.
        unlabelled: Number of images without labels that it was trained on; None without ``--unlabelled``.
    """

    method: str
    data: str
    epochs: int
    seed: int
    device: str
    precision: str
    split: str
    n: int
    top1: float
    top5: float | None = None
    loss: float
    images_per_second: float | None = None
    energies: list[float] | None = None
    target_views: int | None = None
    calibration_seen: bool = False
    stopped_by: str | None = None
    search: list[dict[str, Any]] | None = None
    matched_stages: list[list[int]] | None = None
    logit_temperature: float | None = None
    unlabelled: int | None = None


@dataclass(kw_only=True)
class SearchResult(Result):
    """Of ``add-res-student --search-storage`` without ``--out``: of a process that only ran trials.

    Attributes:
        arch: The best architecture; the same command with ``--out`` trains it.
        search: As in :class:`TrainResult`.
    """

    arch: str
    search: list[dict[str, Any]]


@dataclass(kw_only=True)
class GateFacts:
    """A gate and its results on a split; ``None`` in ``thresholds``: no image stops after that member."""

    measure: str | None = None
    thresholds: list[float | None] | None = None
    exit_rates: list[float] | None = None
    expected_macs: float | None = None
    expected_macs_ratio: float | None = None
    full_top1: float | None = None
    gated_top1: float | None = None


@dataclass(kw_only=True)
class GateResult(GateFacts, TeacherFacts, NetworkFacts, Result):
    """Of ``gate-calibrate`` and ``polish``, measured on the calibration split.

    Attributes:
        calibration_seen: As in :class:`TrainResult`.
        former_top1: Of the best gate for the weights before polishing, at the same expected MACs.
        polished: Whether the new weights were kept, because they are better.
        curve: The Pareto front of other thresholds.
        promise: The guarantee that new images lose at most ``max_drop``, and its test (see
            :class:`~kdcompress.guarantee.GuaranteedGate`); None without ``--confidence-level``. Its ``p_value`` is None
            where no gate passed, so that every member runs.
        cost_bound: With ``--target-macs`` and ``--confidence-level``: ``confidence_level``, the upper bound
            ``macs_ratio`` of the expected MACs on new images, of the teacher's, and how many ``images`` it is from.
        timing: With ``--target-ms``: milliseconds of a batch with the gate (``mean_ms``, ``p50_ms``, ``p95_ms``), those
            of each member by itself (``member_ms``), and where they were measured.
    """

    data: str
    split: str
    n: int
    calibration_seen: bool = False
    promise: dict[str, Any] | None = None
    cost_bound: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    former_top1: float | None = None
    polished: bool | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class CascadeResult(TeacherFacts, NetworkFacts, Result):
    """Of ``cascade``. Accuracies are on the calibration split; None where no data are named.

    Attributes:
        top1: Of the last stage.
        stage_top1: After the first member, after the first two, and so on.
        calibration_seen: As in :class:`TrainResult`, of any member.
    """

    data: str | None = None
    split: str | None = None
    n: int | None = None
    top1: float | None = None
    stage_top1: list[float] | None = None
    calibration_seen: bool = False


@dataclass(kw_only=True)
class ProfileResult(NetworkFacts, Result):
    """Of ``profile-flops``.

    Attributes:
        macs_by_operator: ``macs`` in four parts: ``convolution``, ``matrix_product``, ``normalization``, ``other``.
        unsupported_ops: Operation to how often it ran uncounted.
    """

    expected_macs: float | None = None
    expected_macs_ratio: float | None = None
    exit_rates: list[float] | None = None
    by_module: list[dict[str, Any]] | None = None
    macs_by_operator: dict[str, int] = field(default_factory=dict)
    unsupported_ops: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class EvalResult(GateFacts, TeacherFacts, NetworkFacts, Result):
    """Of ``eval``. For a gated cascade ``top1`` is that of the gated one, and ``full_…`` is with every member run.

    Attributes:
        ece: Expected calibration error, percent.
        bytes: Size of the file of weights.
        latency_ms: Milliseconds for a batch of one image: ``p50`` and ``p95``.
        stage_top1: Of a cascade, accuracy with the first member alone, with the first two, and so on.
        speedup: Wall-clock time of the full cascade over that of the gated one; ``macs_speedup`` is the ratio of MACs.
    """

    data: str
    split: str
    n: int
    top1: float
    top5: float | None = None
    loss: float
    ece: float
    bytes: int | None = None
    latency_ms: dict[str, float] | None = None
    images_per_second: float
    full_images_per_second: float | None = None
    speedup: float | None = None
    stage_top1: list[float] | None = None
    macs_speedup: float | None = None
    hardware: str
    device: str
    precision: str


@dataclass(frozen=True)
class Candidate:
    """A class that an image may be of, and its softmax probability; ``label`` is None where names are not known."""

    label: str | None
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """Of ``predict``: one image.

    Attributes:
        path: As it was given, or found below the folder that was given.
        label, index, probability: The most probable class. With several members, the softmax is that of the summed
            logits at the exit taken.
        exit_stage: The last stage that ran, 0 for the first; None for a network without a gate.
        top5: The most probable classes, as many as ``top_k``.
    """

    path: str
    label: str | None
    index: int
    probability: float
    exit_stage: int | None
    top5: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite is None."""
        return schema.finite({**vars(self), "top5": [dict(vars(each)) for each in self.top5]})


@dataclass(frozen=True)
class Unreadable:
    """Of ``predict``: an input that gives no prediction, and why, in one line that names it."""

    path: str
    problem: str


@dataclass(frozen=True)
class EpochRow:
    """Of ``watch``: an epoch that has ended.

    Attributes:
        run: Name of the run folder.
        epoch, epochs: Number of the epoch, from 1, and how many there will be.
        loss: Mean training loss.
        top1: On the calibration split, in percent.
        images_per_second: In training.
        seconds_left: Estimated, of this training.
    """

    run: str
    epoch: int
    epochs: int | None
    loss: float | None
    top1: float | None
    images_per_second: float | None
    seconds_left: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


class Rows(ABC):
    """A result that comes in rows while it is being computed, and is not kept.

    Attributes:
        run: Absolute path of the run folder; None for a network that is in none.
        goes_on: Whether all rows are needed, also if nobody reads them: a file of them is being written.
    """

    run: str | None
    goes_on: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Sequence[Prediction | Unreadable | EpochRow]]:
        """The rows of each batch, as soon as it is done."""

    @property
    @abstractmethod
    def exit_status(self) -> int:
        """Of the command line that prints them; known when all of them have come."""


class PredictionRows(Rows):
    """Rows that are :class:`Prediction` or :class:`Unreadable`.

    Attributes:
        labels: Names of the classes, where known.
        gated: Whether rows have an ``exit_stage``.
    """

    labels: tuple[str, ...] | None
    gated: bool

    @abstractmethod
    def total(self) -> int | None:
        """How many rows there will be; None where that is not known."""


@dataclass(kw_only=True)
class ExportResult(GateFacts, NetworkFacts, Result):
    """Of ``export``, measured on the calibration split.

    Accuracies, exit rates and ``n`` are None if the file was verified on random images.

    Attributes:
        bytes: Size of the file.
        top1, pytorch_top1: Accuracy of the file, and of the network in PyTorch and fp32.
        top1_agreement: Percent of the images for which both predict the same class.
        largest_difference: Between logits of the file and of PyTorch, divided by the largest logit; images with another
            exit are left out. Of an int8 file: between it and its members run one by one.
        near_ties: Images that exit at another stage than in PyTorch, with a value within 1e-5 of a threshold.
        promise: Of an int8 file: as in :class:`GateResult`, for the thresholds of its logits.
        agreement: As in :class:`TeacherFacts`.
    """

    bytes: int
    format: str
    precision: str
    opset: int
    preprocess: bool
    data: str | None = None
    split: str | None = None
    n: int | None = None
    top1: float | None = None
    pytorch_top1: float | None = None
    top1_agreement: float
    largest_difference: float
    near_ties: int
    promise: dict[str, Any] | None = None
    agreement: bool | None = None


@dataclass(kw_only=True)
class BenchmarkResult(Result):
    """Of ``benchmark``.

    Attributes:
        networks: A row for each batch size and network: ``mean_ms``, ``p50_ms`` and ``p95_ms`` of a batch,
            ``images_per_second``, ``time_ratio`` and ``macs_ratio`` to the first network; ``macs`` and ``exit_rates``
            are those of these images. ``gated`` is None for a network without a gate, and false where every member ran
            on every image.
        threads: Of PyTorch and ONNX Runtime.
        data, split: None where images were random.
    """

    data: str | None = None
    split: str | None = None
    hardware: str
    device: str
    threads: int
    networks: list[dict[str, Any]]


@dataclass(kw_only=True)
class CompressResult(GateFacts, TeacherFacts, NetworkFacts, Result):
    """Of ``compress``: the network that was kept, as ``eval`` scores it, and what it won against.

    Attributes:
        form: ``single``, ``pair`` (of a student and its res-student) or ``handover`` (of a student to the teacher).
        met: Whether the budget is met; if not, the nearest was kept.
        calibration_top1: On the split by which it was chosen; the other accuracies are on ``split``.
        contenders: A row for the teacher, then for each contender, on the calibration split: ``form``, ``networks``,
            ``run`` (a folder inside this one), ``epochs``, ``top1``, ``points_lost``, ``macs`` (expected, per image),
            ``macs_ratio``, ``chosen``; ``ms`` with ``--target-ms`` and ``within`` the budget, or ``dropped`` early.
            With ``--export onnx-int8`` that file has a row, of the form ``int8``.
        exported, report: Absolute paths of the exported file and of the report.
        curve, cost_bound, timing: Of a gated cascade, as those of :class:`GateResult`.
    """

    data: str
    split: str
    n: int
    top1: float
    top5: float | None = None
    loss: float
    ece: float
    form: str
    met: bool
    calibration_top1: float
    contenders: list[dict[str, Any]]
    stage_top1: list[float] | None = None
    exported: str | None = None
    report: str | None = None
    curve: list[dict[str, Any]] | None = None
    cost_bound: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None

    @property
    def exit_status(self) -> int:
        """1 where nothing meets the budget."""
        return 0 if self.met else 1


@dataclass(kw_only=True)
class PlanResult(Result):
    """Of ``compress --dry-run``.

    Attributes:
        networks: That would be trained: ``role`` (``student``, ``first member``, ``res-student``), ``kind``,
            ``network``, ``macs``.
        handover: Whether the first member handing over to the teacher competes.
        epochs: Of each member, after the trials.
    """

    teacher: str
    teacher_macs: int
    networks: list[dict[str, Any]]
    handover: bool
    epochs: int
    estimated_seconds: float


@dataclass(kw_only=True)
class ReportResult(GateFacts, TeacherFacts, NetworkFacts, Result):
    """Of ``report``: the numbers of the first run, measured on ``split``; the file itself holds the same JSON.

    Attributes:
        file: Absolute path of the report.
        format: ``html`` or ``md``.
        points_lost_interval: Of ``points_lost``, its 95 % confidence interval; the same images for both networks.
        ece, teacher_ece: Expected calibration error, percent.
        stage_top1: Of a cascade, accuracy with the first member alone, with the first two, and so on.
        oracle_top1, oracle_macs: Of a gate that knew which member is the first to be right, and the average MACs of an
            image with it; images that no member gets right stop at the first one.
        networks: A row for each network in the report: ``network``, its ``role``, ``top1``, ``macs`` per image,
            ``macs_ratio`` to the teacher, ``ece``, and ``ms`` for one image, on average (None if it was not timed).
        ms: Milliseconds for one image, on average; None if they were not measured, and so is ``hardware``.
    """

    format: str
    data: str
    split: str
    n: int
    top1: float
    top5: float | None = None
    points_lost_interval: tuple[float, float] | None = None
    ece: float
    teacher_ece: float | None = None
    stage_top1: list[float] | None = None
    oracle_top1: float | None = None
    oracle_macs: float | None = None
    ms: float | None = None
    hardware: str | None = None
    networks: list[dict[str, Any]]


@dataclass(kw_only=True)
class PushResult(Result):
    """Of ``push``.

    Attributes:
        repository: ``ORG/NAME``.
        url: Where people find it.
    """

    repository: str
    url: str


@dataclass(kw_only=True)
class CacheResult(Result):
    """Of ``cache``.

    Attributes:
        folder: Absolute path.
        bytes: Of all entries.
        freed: Bytes that were freed; None unless the cache was cleared.
        entries: Targets (views of a data set by a network) and lightweight teachers.
    """

    folder: str
    bytes: int
    entries: list[dict[str, Any]]
    freed: int | None = None


@dataclass(kw_only=True)
class VerifyResult(Result):
    """Of ``verify``.

    Attributes:
        whole: Whether all files are as they were written.
        files: Of the run and of runs within it: ``file``, and its ``state``: ``whole``, ``altered``, ``missing``, or
            ``no digest`` for runs of older versions.
    """

    whole: bool
    files: list[dict[str, Any]]

    @property
    def exit_status(self) -> int:
        """1 where a file is not as it was written."""
        return 0 if self.whole else 1


@dataclass(kw_only=True)
class DataResult(Result):
    """Of ``data``.

    Attributes:
        input_size: (C, H, W) of the input of a new network.
        fit, calibration, test: Number of images in each split.
        unreadable: Images that ``--skip-bad-images`` left out, of all splits.
        preview: Absolute path of the contact sheet.
        test_copies: Number of test images that training has, too, exact and near copies; None: not looked for.
    """

    data: str
    num_classes: int
    class_names: list[str] | None
    input_size: tuple[int, int, int]
    fit: int
    calibration: int
    test: int | None
    fingerprint: str
    unreadable: list[str] = field(default_factory=list)
    preview: str | None = None
    test_copies: int | None = None
