"""Options that some methods read, in groups: logits, ResKD, Residual KD with an assistant, LW-KD."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdcompress.errors import usage_error
from kdcompress.option_set import Options, option
from kdcompress.options.methods import ASSISTANT, GROWING, LIGHT, LOGIT_LOSSES, SEARCH, defaults_text
from kdcompress.options.training import SECONDS, in_seconds


@dataclass(kw_only=True)
class LogitOptions(Options):
    """The loss shared by the methods that learn from logits."""

    alpha: float | None = option(
        None,
        f"weight of the distillation loss (default: {defaults_text('alpha')})",
        low=0,
        high=1,
    )
    temperature: float | None = option(
        None, f"softens the logits (default: {defaults_text('temperature')})", above=0, high=1e6
    )
    logit_loss: str = option(
        "kl",
        "how far logits are from the teacher's: KL divergence, decoupled KD, DIST (correlations), squared error, KL of "
        "standardized logits",
        choices=tuple(LOGIT_LOSSES),
    )


@dataclass(kw_only=True)
class TeacherOptions(Options):
    teacher_arch: str | None = option(None, "model spec of a teacher that is a checkpoint file")


@dataclass(kw_only=True)
class StartOptions(Options):
    from_teacher: bool = option(
        False, "start from the teacher's weights, where layers fit: of a shallower network of its family and width"
    )


@dataclass(kw_only=True)
class ResidualOptions(LogitOptions):
    residual_loss: str = option(
        "kl",
        "res-students learn from labels and teacher through the sum (kl), or fit the residual itself (mse)",
        choices=("kl", "mse"),
    )
    sum_weight: float | None = option(
        None,
        "of the logits so far beside those of a res-student; 1 sums them in full (default: the share of the MACs that "
        "the members so far have)",
        low=0,
        high=1,
    )
    residual_warmup: float = option(
        0.5,
        "share of the training in which a res-student turns from learning all that the teacher says to what the others "
        "leave of it",
        low=0,
        high=1,
    )
    arch: tuple[str, ...] = option((), "model spec of the res-student")


@dataclass(kw_only=True)
class AssistantOptions(Options):
    """Residual KD with an assistant (not Relational KD)."""

    assistant_share: float = option(
        0.1, "rkd-assistant: the assistant's part of --student's MACs", above=0, below=1, panel=ASSISTANT
    )
    scheme: str = option(
        "end-to-end",
        "student, then assistant, then classifier (60, 30 and 10 % of the epochs); or all at once",
        choices=("progressive", "end-to-end"),
        panel=ASSISTANT,
    )
    transfer: str = option(
        "at", "distance between feature maps: of attention maps, or L2", choices=("at", "fitnets"), panel=ASSISTANT
    )
    transfer_weight: float = option(1.0, "of the feature maps beside the cross-entropy", low=0, panel=ASSISTANT)
    logit_weight: float = option(0.0, "of the teacher's logits beside the cross-entropy", low=0, panel=ASSISTANT)
    student_weight: float = option(
        0.2,
        "share of the cross-entropy that is the student's alone, if all learn at once: behind a gate it answers first",
        low=0,
        high=1,
        panel=ASSISTANT,
    )
    undivided: bool = option(
        False, "train --student itself with the same transfer: the control, and plain FitNets or AT", panel=ASSISTANT
    )
    reuse_teacher_classifier: bool = option(False, "start from the teacher's classifier", panel=ASSISTANT)
    freeze_classifier: bool = option(
        False, "keep the classifier that --reuse-teacher-classifier takes as it is", panel=ASSISTANT
    )


@dataclass(kw_only=True)
class LightTeacherOptions(Options):
    """LW-KD."""

    teacher_top1: float = option(
        97.0,
        "lwkd: accuracy at which the lightweight teacher stops learning, for a perfect one has nothing to tell but "
        "the label",
        above=0,
        high=100,
        panel=LIGHT,
    )
    bank_size: int | None = option(
        None,
        "images of each class whose soft targets are kept (default: up to 128, in 512 MiB)",
        low=1,
        high=10**9,
        panel=LIGHT,
    )
    adversarial_weight: float = option(
        0.1, "of the discriminator's verdict beside the other losses; 0 for none", low=0, panel=LIGHT
    )
    adversarial_warmup: float = option(
        0.1, "share of the training in which that weight grows to its value", low=0, high=1, panel=LIGHT
    )
    class_map: str = option(
        "identity",
        "which number stands for a class: its own, a random one, or one that is confused as the class is (after an "
        "epoch's warm-up)",
        choices=("identity", "random", "similar"),
        panel=LIGHT,
    )


@dataclass(kw_only=True)
class GrowOptions(Options):
    """ResKD in one command."""

    res_students: int = option(
        0, "how many res-students to add (with --arch or --search)", low=0, high=1000, panel=GROWING
    )
    grow: bool = option(False, "add res-students (with --arch or --search) until there are enough", panel=GROWING)
    target_macs: float | None = option(
        None, "enough: what all members together may cost, as a share of the teacher's MACs", above=0, panel=GROWING
    )
    max_drop: float | None = option(
        None,
        "enough: top-1 within so many points of the teacher's, on the calibration split",
        low=0,
        high=100,
        panel=GROWING,
    )
    min_energy_drop: float = option(
        0.02,
        "a res-student that takes less than this share of the residual's energy away is left out, and ends it",
        low=0,
        high=1,
        panel=GROWING,
    )


@dataclass(kw_only=True)
class SearchOptions(Options):
    """Which res-student: the best of many that were trained for a short while."""

    search: bool = option(False, "find the architecture of each res-student, in place of --arch", panel=SEARCH)
    max_macs: float | None = option(
        None,
        "what a res-student may cost at most, as a share of the teacher's MACs (distill --grow: by default what "
        "--target-macs leaves)",
        above=0,
        high=1,
        panel=SEARCH,
    )
    trials: int | None = option(
        None, "how many architectures are tried (default: 20)", low=1, high=100_000, panel=SEARCH
    )
    time_budget: str | None = option(
        None,
        "no trial begins after so long, e.g. 90s, 30m or 2h, in the search for a res-student; then the best is trained "
        "in full (default: no limit)",
        panel=SEARCH,
        affects_result=False,
    )

    @property
    def time_limit(self) -> float:
        """Seconds; infinity where there is no limit.

        Raises:
            UserError: ``time_budget`` is no length of time, or none at all.
        """
        if self.time_budget is None:
            return math.inf
        seconds = in_seconds(self.time_budget)
        if seconds is None or self.time_budget.strip()[-1] not in SECONDS:
            problem = f"--time-budget {self.time_budget} is no length of time."
            raise usage_error(problem, "Write seconds, minutes or hours: 90s, 30m or 2h.")
        if not 0 < seconds < math.inf:
            raise usage_error(f"--time-budget {self.time_budget} leaves no time to search.", "Give more, e.g. 30m.")
        return seconds
