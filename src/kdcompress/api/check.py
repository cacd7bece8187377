"""Whether what ``distill`` and ``add-res-student`` were told makes sense, before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from kdcompress.api.targets import check_views
from kdcompress.errors import UserError, usage_error
from kdcompress.methods.losses import SCALE_FREE
from kdcompress.option_set import Options, flag
from kdcompress.options import (
    TEACHERLESS,
    AddResStudentOptions,
    AssistantOptions,
    DistillOptions,
    GrowOptions,
    LightTeacherOptions,
    LogitOptions,
    ResidualOptions,
    SearchOptions,
)

DIVIDED_ONLY = ("assistant_share", "scheme", "student_weight", "reuse_teacher_classifier", "freeze_classifier")


def check_distill(options: DistillOptions) -> None:
    """Refuse what contradicts itself, and options that the chosen method would not look at.

    Raises:
        UserError: Of the first such option.
    """
    check_views(options)
    check_logit_loss(options)
    if options.method in TEACHERLESS and options.teacher is not None:
        raise usage_error(
            f"--method {options.method} takes no teacher.", "Leave TEACHER out, or choose kd, reskd or rkd-assistant."
        )
    if options.from_teacher and options.method not in ("kd", "reskd"):
        raise meaningless("from_teacher", f"--method {options.method}")
    if options.from_teacher and options.pretrained:
        raise usage_error("A student starts from one network's weights.", "Leave out --pretrained or --from-teacher.")
    if options.method not in (*TEACHERLESS, "lwkd") and options.teacher is None:
        raise usage_error(f"--method {options.method} needs a TEACHER.", "Give a run folder, '-', or a checkpoint.")
    growing = "--grow" if options.grow else "--res-students" if options.res_students else None
    if growing and (options.method != "reskd" or not (options.arch or options.search)):
        raise usage_error(f"{growing} goes with --method reskd, and --arch or --search.", "Add them, or leave it out.")
    check_search(options)
    if options.search and not growing:
        raise usage_error("--search finds res-students.", "Add --method reskd, and --grow or --res-students N.")
    if options.grow and options.res_students:
        raise usage_error("--grow finds out how many res-students it needs.", "Leave out --res-students.")
    if options.grow and options.target_macs is None and options.max_drop is None:
        raise usage_error(
            "--grow needs to know when it is enough.", "Give --target-macs RATIO, --max-drop POINTS or both."
        )
    rkd = options.method == "rkd-assistant"
    unused = [
        name
        for name, used in (
            ("alpha", options.method not in ("ce", "label-smoothing", "rkd-assistant")),
            (
                "temperature",
                options.method not in ("ce", "label-smoothing") and (not rkd or bool(options.logit_weight)),
            ),
            ("teacher_arch", options.teacher is not None),
        )
        if getattr(options, name) is not None and not used
    ]
    if options.logit_loss != "kl" and (options.method in TEACHERLESS or (rkd and not options.logit_weight)):
        unused.append("logit_loss")
    if options.method in (*TEACHERLESS, "lwkd") and options.chosen_views:
        unused.append("target_views")
    if options.method != "lwkd":
        unused += _changed(options, LightTeacherOptions)
    why = "--undivided" if rkd and options.undivided else f"--method {options.method}"
    if not rkd:
        unused += _changed(options, AssistantOptions)
    elif options.undivided:
        unused += [name for name in _changed(options, AssistantOptions) if name in DIVIDED_ONLY]
    elif options.scheme == "progressive" and "student_weight" in _changed(options, AssistantOptions):
        raise meaningless("student_weight", "--scheme progressive")
    if rkd and options.freeze_classifier and not options.reuse_teacher_classifier:
        raise usage_error("--freeze-classifier would keep a random one.", "Add --reuse-teacher-classifier.")
    if not options.grow:
        unused += [name for name in _changed(options, GrowOptions) if name != "res_students"]
    if not limited_by_energy(options) and "min_energy_drop" in _changed(options, GrowOptions):
        raise meaningless("min_energy_drop", f"--logit-loss {options.logit_loss}")
    if not growing:
        own = vars(ResidualOptions()).keys() - vars(LogitOptions()).keys() - {"arch"}
        unused += [name for name in _changed(options, ResidualOptions) if name in own]
    if unused:
        raise meaningless(unused[0], why)
    if options.arch and not growing and options.teacher != "-":
        raise usage_error("--arch is for res-students, or for a TEACHER that is a checkpoint.", "Add --res-students N.")


def meaningless(name: str, why: str, remedy: str = "Leave it out.") -> UserError:
    """The error of an option that would change nothing: ``why`` names the one that makes it so."""
    return usage_error(f"{flag(name)} has no meaning here ({why}).", remedy)


def limited_by_energy(options: DistillOptions) -> bool:
    """Whether the residual's energy tells when a cascade has grown enough: not where a loss leaves its scale open."""
    return options.residual_loss == "mse" or options.logit_loss not in SCALE_FREE


def check_logit_loss(options: LogitOptions) -> None:
    """Refuse what the chosen logit loss would not look at.

    Raises:
        UserError: A temperature for ``mse``.
    """
    if options.logit_loss == "mse" and options.temperature is not None:
        raise meaningless("temperature", "--logit-loss mse")


def check_enough_classes(options: LogitOptions, num_classes: int) -> None:
    """Refuse a loss that would be the same whatever the student says.

    Raises:
        UserError: ``standardized-kl`` of two logits, of which only the order is left.
    """
    if options.logit_loss == "standardized-kl" and num_classes < 3:
        raise usage_error("--logit-loss standardized-kl needs three classes or more.", "Use --logit-loss kl.")


def check_search(options: AddResStudentOptions | DistillOptions) -> None:
    """Refuse what no search can do.

    Raises:
        UserError: Options that do not go together, no time, or no Optuna.
    """
    if not options.search:
        for name in (*vars(SearchOptions()), "search_storage"):
            if getattr(options, name, None) not in (None, False):
                raise meaningless(name, "no --search", "Leave it out, or add --search.")
        return
    if options.arch:
        raise usage_error("--search finds the architecture that --arch names.", "Leave one of the two out.")
    if options.max_macs is None and getattr(options, "target_macs", None) is None:
        remedy = "Say what the res-student may cost of the teacher's MACs: --max-macs 0.1."
        raise usage_error("--search needs a budget.", remedy)
    _ = options.time_limit
    if find_spec("optuna") is None:
        raise UserError("--search needs Optuna.", "pip install 'kdcompress[search]'", exit_code=2)


def _changed(options: DistillOptions, kind: type[Options]) -> list[str]:
    """Options of one set that are not at their defaults."""
    defaults = vars(kind())
    return [name for name, value in defaults.items() if getattr(options, name) != value]
