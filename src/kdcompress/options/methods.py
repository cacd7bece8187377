"""The table of methods, one row each: the teacher and options that it takes, its defaults, help and paper.

The help, the checks and ``docs/cli.md`` come from it. How a method is trained is in the table of
:mod:`kdcompress.api.recipes`, which imports torch; a test keeps the rows of the two the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdcompress.errors import UserError, usage_error
from kdcompress.option_set import flag

if TYPE_CHECKING:
    from kdcompress.options.commands import DistillOptions

REQUIRED, OPTIONAL, NONE = "required", "optional", "none"
# panels of the help; in Method.reads a panel stands for all of its options
ASSISTANT = "Residual KD with an assistant"
GROWING = "ResKD: a whole cascade at once"
LIGHT = "LW-KD: a lightweight teacher"
PAIR = "auto"  # in place of a student: it and a res-student are searched for
SEARCH = "Architecture search (extra: search)"
LOGITS = ("alpha", "temperature", "logit_loss")
DIVIDED = ("assistant_share", "scheme", "student_weight", "reuse_teacher_classifier", "freeze_classifier")
RESIDUAL = ("residual_loss", "sum_weight", "residual_warmup", "focus")


def _nothing(options: DistillOptions) -> None:
    """For methods whose options can all be combined."""


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    Attributes:
        help: What it does, in a few words.
        teacher: Whether it takes one: ``required``, ``optional`` or ``none``.
        teacher_knows_images: Whether its teacher classifies the student's images; if not, res-students cannot learn
            from that teacher.
        reads: The options that it reads besides those of every training, by name or by panel of the help.
        paper: Where it comes from.
        alpha, temperature: Its defaults; None: those of the logit loss.
        label_smoothing: Its default.
        check: Refuses options of the method that cannot be combined.
    """

    help: str
    teacher: str = REQUIRED
    teacher_knows_images: bool = True
    reads: tuple[str, ...] = ()
    paper: str = ""
    alpha: float | None = None
    temperature: float | None = None
    label_smoothing: float = 0.0
    check: Callable[[DistillOptions], None] = _nothing


@dataclass(frozen=True)
class LogitLoss:
    """A distance between a student's logits and its teacher's.

    Attributes:
        alpha, temperature: Default weight, beside ``1 - alpha`` of the cross-entropy, and tau; None: it has none.
        paper: Where they come from.
        has_scale: Whether it determines the scale of the logits, without which the residual's energy means nothing.
    """

    alpha: float
    temperature: float | None
    paper: str
    has_scale: bool = True


LOGIT_LOSSES = {
    "kl": LogitLoss(0.9, 4.0, "Hinton et al., arXiv 1503.02531; weights: Tian et al., arXiv 1910.10699"),
    "dkd": LogitLoss(0.5, 4.0, "Zhao et al., arXiv 2203.08679"),  # 1 to 1
    "dist": LogitLoss(0.67, 4.0, "Huang et al., arXiv 2205.10536", has_scale=False),  # 1 to 2
    "mse": LogitLoss(0.9, None, "Kim et al., arXiv 2105.08919"),  # the weight is our choice
    "standardized-kl": LogitLoss(0.99, 2.0, "Sun et al., arXiv 2403.01427", has_scale=False),  # 0.1 to 9
}


def has_temperature(logit_loss: str) -> bool:
    """Whether a logit loss softens the logits by one."""
    return LOGIT_LOSSES[logit_loss].temperature is not None


def meaningless(name: str, why: str, remedy: str = "Leave it out.") -> UserError:
    """The error for an option that would have no effect: ``why`` names the option or method that makes it so."""
    return usage_error(f"{flag(name)} has no effect here ({why}).", remedy)


def limited_by_energy(options: DistillOptions) -> bool:
    """Whether the residual's energy can stop ``--grow``: only if the loss determines the scale of the logits."""
    return options.residual_loss == "mse" or LOGIT_LOSSES[options.logit_loss].has_scale


def check_cascade(options: DistillOptions) -> None:
    """Refuse options of a growing cascade that cannot be combined.

    Raises:
        UserError: For the first of them.
    """
    if options.student == PAIR:
        _check_pair(options)
        return
    growing = "--grow" if options.grow else "--res-students" if options.res_students else None
    if growing and not (options.arch or options.search):
        raise usage_error(f"{growing} needs an architecture to add.", "Add --arch SPEC or --search.")
    if options.search and not growing:
        raise usage_error("--search is only for res-students.", "Add --grow or --res-students N.")
    if options.grow and options.res_students:
        raise usage_error("--grow decides how many res-students to add.", "Leave out --res-students.")
    if options.grow and options.target_macs is None and options.max_drop is None:
        raise usage_error("--grow needs a limit.", "Give --target-macs RATIO, --max-drop POINTS or both.")
    if not options.grow:
        refuse_changed(options, ("target_macs", "max_drop", "min_energy_drop"), "no --grow")
    if not limited_by_energy(options):
        refuse_changed(options, ("min_energy_drop",), f"--logit-loss {options.logit_loss}")
    if not growing:
        refuse_changed(options, RESIDUAL, "no res-students")


def _check_pair(options: DistillOptions) -> None:
    """Refuse options of a pair that is searched for.

    Raises:
        UserError: For the first of them.
    """
    if not options.search or options.target_macs is None:
        problem = f"--student {PAIR} searches for a student and its res-student at one budget."
        raise usage_error(problem, "Add --search --target-macs RATIO, or name a student.")
    unused = ("res_students", "grow", "max_drop", "min_energy_drop", "max_macs", "pretrained", "student_arch")
    refuse_changed(options, unused, f"--student {PAIR}")


def check_assistant(options: DistillOptions) -> None:
    """Refuse options of a student with an assistant that cannot be combined.

    Raises:
        UserError: For the first of them.
    """
    if options.undivided:
        refuse_changed(options, DIVIDED, "--undivided")
    if options.scheme == "progressive":
        refuse_changed(options, ("student_weight",), "--scheme progressive")
    if not options.logit_weight:
        refuse_changed(options, ("temperature", "logit_loss"), "no --logit-weight")
    if options.freeze_classifier and not options.reuse_teacher_classifier:
        raise usage_error(
            "--freeze-classifier would freeze a randomly initialised classifier.", "Add --reuse-teacher-classifier."
        )


def refuse_changed(options: DistillOptions, names: tuple[str, ...], why: str) -> None:
    """Refuse options that are not at their defaults.

    Raises:
        UserError: For the first of them.
    """
    if changed := next((name for name in names if name in options.changed()), None):
        raise meaningless(changed, why)


METHODS: dict[str, Method] = {
    "ce": Method("cross-entropy on the labels", teacher=NONE),
    "label-smoothing": Method(
        "cross-entropy on smoothed labels", teacher=NONE, paper="Szegedy et al., arXiv 1512.00567", label_smoothing=0.1
    ),
    "tf-kd": Method(
        "a hand-made distribution as the teacher",
        teacher=NONE,
        reads=("alpha", "temperature"),
        paper="Yuan et al., CVPR 2020, arXiv 1909.11723",
        alpha=0.1,
        temperature=20.0,
    ),
    "kd": Method(
        "the teacher's logits",
        reads=(*LOGITS, "target_views", "from_teacher", "unlabelled"),
        paper="Hinton, Vinyals, Dean, arXiv 1503.02531",
    ),
    "reskd": Method(
        "kd, as the first member of a cascade",
        reads=(*LOGITS, *RESIDUAL, "target_views", "from_teacher", "unlabelled", GROWING, SEARCH),
        paper="ResKD, arXiv 2006.04719",
        check=check_cascade,
    ),
    "rkd-assistant": Method(
        "feature maps, by a student and its assistant (Residual KD)",
        reads=("temperature", "logit_loss", "target_views", ASSISTANT),
        paper="Residual KD, arXiv 2002.09168",
        temperature=4.0,
        check=check_assistant,
    ),
    "lwkd": Method(
        "a lightweight teacher's logits (with --adversarial-weight also a discriminator)",
        teacher=OPTIONAL,
        teacher_knows_images=False,
        reads=(*LOGITS, LIGHT),
        paper="LW-KD, arXiv 2005.09163",
        alpha=0.5,
        temperature=1.0,
    ),
}


def taking(*teacher: str) -> list[str]:
    """Names of the methods by whether they take a teacher: ``required``, ``optional``, ``none``."""
    return [name for name, row in METHODS.items() if row.teacher in teacher]


def defaults_text(what: str) -> str:
    """Defaults of alpha or temperature, the most common one first: ``4; tf-kd 20; lwkd 1; standardized-kl 2``."""
    usual: float = getattr(LOGIT_LOSSES["kl"], what)
    own = {**METHODS, **LOGIT_LOSSES}
    others = {name: value for name, row in own.items() if (value := getattr(row, what)) not in (None, usual)}
    return "; ".join([f"{usual:g}", *(f"{name} {value:g}" for name, value in others.items())])
