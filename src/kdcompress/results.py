"""What the commands return: typed results, whose fields are the keys of the JSON that the command line prints."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from kdcompress import schema

R = TypeVar("R", bound="Result")


@dataclass(kw_only=True)
class Result:
    """Common to all.

    Attributes:
        command: Which command it is the result of.
        run: Absolute path of the run folder; None for a network that is in none.
        seconds: Wall-clock seconds of the command.
    """

    command: str
    run: str | None
    seconds: float

    optional: ClassVar[frozenset[str]] = frozenset({"run"})

    @property
    def exit_status(self) -> int:
        """Of the command line that prints it."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what does not apply is left out, and a number that is not finite is None."""
        found = dataclasses.asdict(self)
        return {key: schema.finite(value) for key, value in found.items() if value is not None or key in self.optional}

    def not_finite(self) -> list[str]:
        """Keys of numbers that are NaN or infinite, and so None in :meth:`to_dict`."""
        return [key for key, value in dataclasses.asdict(self).items() if not schema.is_finite(value)]

    @classmethod
    def from_dict(cls: type[R], values: dict[str, Any]) -> R:
        """The result that :meth:`to_dict` wrote; keys of other versions are left out.

        Raises:
            Malformed: A value is missing, or is none of its kind.
        """
        hints = typing.get_type_hints(cls)
        # a number that was not finite
        lost = {key: math.nan for key, value in values.items() if value is None and hints.get(key) is float}
        return schema.check({**values, **lost}, cls)


@dataclass(kw_only=True)
class NetworkFacts:
    """What a network is and costs. MACs are of one image.

    Attributes:
        student_macs, assistant_macs, integration_macs: Of a student with an assistant; they sum to ``macs``.
        undivided_macs: Of the model that the two were made of.
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
    members: list[dict[str, Any]] | None = None
    student_macs: int | None = None
    assistant_macs: int | None = None
    integration_macs: int | None = None
    undivided_macs: int | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.input_size
        self.input_size = (channels, height, width)  # JSON has lists only


@dataclass(kw_only=True)
class TrainResult(NetworkFacts, Result):
    """Of ``train-teacher``, ``distill`` and ``add-res-student``. Accuracies are on the calibration split.

    Attributes:
        energies: Of the residual against the teacher after each member; the last two are before and after.
        stopped_by: Why a cascade that grew has no further member: ``target``, ``macs``, ``energy`` or ``count``.
        target_views: Views of the images whose targets were computed once; None where every epoch had its own.
        calibration_seen: Whether the network started from weights that may have learned from the calibration images,
            and so looks better on them than on new ones.
        search: The trials of an architecture search, the best first: ``spec``, ``macs_ratio`` to the teacher,
            ``epochs`` trained, then of the gated sum ``top1`` and ``expected_macs_ratio`` (None where the training
            failed), and whether no other trial is as good in both (``pareto``).
        matched_stages: Feature maps that were matched, by the side of the image over that of the map: the teacher's and
            the student's, a pair each.
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


@dataclass(kw_only=True)
class SearchResult(Result):
    """Of ``add-res-student --search-storage`` without ``--out``: of a process that has helped with the trials.

    Attributes:
        arch: The best architecture; it is trained where the same command is given ``--out``.
        search: As that of :class:`TrainResult`.
    """

    arch: str
    search: list[dict[str, Any]]


@dataclass(kw_only=True)
class GateFacts:
    """A gate and what it does on a split; ``None`` in ``thresholds``: nobody stops after that member."""

    measure: str | None = None
    thresholds: list[float | None] | None = None
    exit_rates: list[float] | None = None
    expected_macs: float | None = None
    expected_macs_ratio: float | None = None
    full_top1: float | None = None
    gated_top1: float | None = None


@dataclass(kw_only=True)
class GateResult(GateFacts, NetworkFacts, Result):
    """Of ``gate-calibrate`` and ``polish``, all of it measured on the calibration split.

    Attributes:
        calibration_seen: As that of :class:`TrainResult`.
        former_top1: Of the best gate for the weights before they were polished, at the same expected MACs.
        polished: Whether the new weights were kept, for being better.
        curve: The best trade-offs that other thresholds would give.
        promise: How it was tested that new images lose at most ``max_drop``; None where that was not asked for. In it
            ``p_value`` is None where no gate passed, and every member runs.
    """

    data: str
    split: str
    n: int
    calibration_seen: bool = False
    promise: dict[str, Any] | None = None
    former_top1: float | None = None
    polished: bool | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


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
class EvalResult(GateFacts, NetworkFacts, Result):
    """Of ``eval``. For a gated cascade ``top1`` is the gated one, and ``full_…`` is with every member run.

    Attributes:
        ece: Expected calibration error, percent.
        stage_top1: Where a network has several stages, accuracy with the first of them alone, with two, and so on.
        speedup: Wall-clock of the full cascade over that of the gated one; ``macs_speedup`` is what MACs promise.
    """

    data: str
    split: str
    n: int
    top1: float
    top5: float | None = None
    loss: float
    ece: float
    images_per_second: float
    full_images_per_second: float | None = None
    speedup: float | None = None
    stage_top1: list[float] | None = None
    macs_speedup: float | None = None
    hardware: str
    device: str
    precision: str


@dataclass(kw_only=True)
class CacheResult(Result):
    """Of ``cache``.

    Attributes:
        folder: Absolute path.
        bytes: Of all entries.
        freed: Bytes, where it was cleared.
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
        whole: Whether all files are what was written.
        files: Of the run and of runs within it: ``file``, and its ``state``: ``whole``, ``altered``, ``missing``, or
            ``no digest`` where the run is of a version that kept none.
    """

    whole: bool
    files: list[dict[str, Any]]

    @property
    def exit_status(self) -> int:
        return 0 if self.whole else 1


@dataclass(kw_only=True)
class DataResult(Result):
    """Of ``data``.

    Attributes:
        input_size: (C, H, W) that a new network would see.
        fit, calibration, test: Images of each split.
        preview: Absolute path of the contact sheet.
    """

    data: str
    num_classes: int
    class_names: list[str] | None
    input_size: tuple[int, int, int]
    fit: int
    calibration: int
    test: int | None
    fingerprint: str
    preview: str | None = None
