"""Options that some methods read, in groups: logits, ResKD, Residual KD with an assistant, LW-KD."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdcompress.errors import usage_error
from kdcompress.option_set import Options, option
from kdcompress.options.methods import ASSISTANT, GROWING, LIGHT, LOGIT_LOSSES, SEARCH, defaults_text
from kdcompress.options.training import DATA, SECONDS, in_seconds


def time_limit(text: str | None) -> float:
    """Seconds of ``--time-budget``; infinity where there is no limit.

    Raises:
        UserError: Not a duration, or zero.
    """
    if text is None:
        return math.inf
    seconds = in_seconds(text)
    if seconds is None or text.strip()[-1] not in SECONDS:
        problem = f"--time-budget {text!r} is not a duration."
        raise usage_error(problem, "Write seconds, minutes or hours: 90s, 30m or 2h.")
    if not 0 < seconds < math.inf:
        raise usage_error(f"--time-budget {text!r} leaves no time to search.", "Give more, e.g. 30m.")
    return seconds


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
        None, f"temperature that softens the logits (default: {defaults_text('temperature')})", above=0, high=1e6
    )
    logit_loss: str = option(
        "kl",
        "distance to the teacher's logits: KL divergence, decoupled KD, DIST (correlations), squared error, KL of "
        "standardized logits",
        choices=tuple(LOGIT_LOSSES),
    )


@dataclass(kw_only=True)
class TeacherOptions(Options):
    """How to load the teacher."""

    teacher_arch: str | None = option(None, "model spec of a teacher that is a checkpoint file")
    weights_key: str | None = option(
        None, "which of several sets of weights in the teacher's checkpoint file, e.g. ema or student.state_dict"
    )


@dataclass(kw_only=True)
class UnlabelledOptions(Options):
    """Images besides those of the data set."""

    unlabelled: str | None = option(
        None,
        "folder of images without labels, in any subfolders: on them the student learns from the teacher's logits "
        "alone",
        panel=DATA,
        file=True,
    )


@dataclass(kw_only=True)
class StartOptions(Options):
    """What a student starts from."""

    from_teacher: bool = option(
        False,
        "start from the teacher's weights in all layers that fit: for a shallower network of its family and width",
    )


@dataclass(kw_only=True)
class ResidualOptions(LogitOptions):
    """How a res-student learns (ResKD)."""

    residual_loss: str = option(
        "kl",
        "res-students learn from labels and teacher through the summed logits (kl), or regress the residual (mse)",
        choices=("kl", "mse"),
    )
    sum_weight: float | None = option(
        None,
        "weight of the earlier members' logits in the sum with a res-student's; 1: plain sum (default: the earlier "
        "members' share of the MACs)",
        low=0,
        high=1,
    )
    residual_warmup: float = option(
        0.5,
        "share of the training over which a res-student's target moves from the teacher's full logits to the residual",
        low=0,
        high=1,
    )
    focus: float | None = option(
        None,
        "train a res-student on this share of the images only, those that the members before it are least sure of, and "
        "on a tenth of the others, e.g. 0.5 (default: on all images)",
        above=0,
        high=1,
    )
    arch: tuple[str, ...] = option(
        (), "model spec of the res-student, or trained weights (after a checkpoint file, --arch again for its spec)"
    )


@dataclass(kw_only=True)
class AssistantOptions(Options):
    """Residual KD with an assistant (not Relational KD)."""

    assistant_share: float = option(
        0.1, "rkd-assistant: the assistant's share of the MACs of --student", above=0, below=1, panel=ASSISTANT
    )
    scheme: str = option(
        "end-to-end",
        "train student, then assistant, then classifier (80, 15 and 5 % of the epochs, each at least one), or all at "
        "once",
        choices=("progressive", "end-to-end"),
        panel=ASSISTANT,
    )
    transfer: str = option(
        "at", "feature-map loss: on attention maps, or L2", choices=("at", "fitnets"), panel=ASSISTANT
    )
    transfer_weight: float = option(
        1.0, "weight of the feature-map loss relative to the cross-entropy", low=0, panel=ASSISTANT
    )
    logit_weight: float = option(0.0, "weight of the logit loss relative to the cross-entropy", low=0, panel=ASSISTANT)
    student_weight: float = option(
        0.2,
        "end-to-end: share of the cross-entropy on the student's own logits, which are the first exit of a gated pair",
        low=0,
        high=1,
        panel=ASSISTANT,
    )
    undivided: bool = option(
        False,
        "train --student itself with the same feature-map loss: plain FitNets or AT, as a control",
        panel=ASSISTANT,
    )
    reuse_teacher_classifier: bool = option(False, "start from the teacher's classifier", panel=ASSISTANT)
    freeze_classifier: bool = option(
        False, "freeze the classifier that --reuse-teacher-classifier copies", panel=ASSISTANT
    )


@dataclass(kw_only=True)
class LightTeacherOptions(Options):
    """LW-KD."""

    teacher_top1: float = option(
        97.0,
        "lwkd: accuracy in percent at which the lightweight teacher stops training: a perfect one would teach no more "
        "than the label",
        above=0,
        high=100,
        panel=LIGHT,
    )
    bank_size: int | None = option(
        None,
        "images per class in the bank of soft targets (default: up to 128, in 512 MiB)",
        low=1,
        high=10**9,
        panel=LIGHT,
    )
    adversarial_weight: float = option(
        0.0,
        "weight of the adversarial loss (discriminator) relative to the other losses, e.g. 0.1; 0 by default, "
        "because on photographs it gained nothing",
        low=0,
        panel=LIGHT,
    )
    adversarial_warmup: float = option(
        0.1, "share of the training over which --adversarial-weight ramps up", low=0, high=1, panel=LIGHT
    )
    class_map: str = option(
        "identity",
        "the lightweight teacher's class for each class: the same index, a random one, or one that is confused alike "
        "(after a warm-up epoch)",
        choices=("identity", "random", "similar"),
        panel=LIGHT,
    )


@dataclass(kw_only=True)
class GrowOptions(Options):
    """ResKD in one command."""

    res_students: int = option(
        0, "how many res-students to add (with --arch or --search)", low=0, high=1000, panel=GROWING
    )
    grow: bool = option(
        False, "add res-students (with --arch or --search) until one of the limits below is reached", panel=GROWING
    )
    target_macs: float | None = option(
        None,
        "--grow: MACs that all members together may have, as a share of the teacher's; --student auto: of an image on "
        "average, behind the gate",
        above=0,
        panel=GROWING,
    )
    max_drop: float | None = option(
        None,
        "--grow: stop at a top-1 within this many points of the teacher's, on the calibration split",
        low=0,
        high=100,
        panel=GROWING,
    )
    min_energy_drop: float = option(
        0.02,
        "--grow: stop at a res-student that lowers the residual's energy by less than this share, and leave it out",
        low=0,
        high=1,
        panel=GROWING,
    )


@dataclass(kw_only=True)
class SearchOptions(Options):
    """Architecture search for a res-student: the best of many short trainings."""

    search: bool = option(False, "find the architecture of each res-student, in place of --arch", panel=SEARCH)
    max_macs: float | None = option(
        None,
        "MACs that a res-student may have, as a share of the teacher's (default for distill --grow: what --target-macs "
        "leaves)",
        above=0,
        high=1,
        panel=SEARCH,
    )
    trials: int | None = option(None, "architectures to try (default: 20)", low=1, high=100_000, panel=SEARCH)
    time_budget: str | None = option(
        None,
        "start no more trials after this time per res-student, e.g. 90s, 30m or 2h; the best is then trained in full "
        "(default: no limit)",
        panel=SEARCH,
        affects_result=False,
    )

    @property
    def time_limit(self) -> float:
        """As :func:`time_limit`."""
        return time_limit(self.time_budget)
