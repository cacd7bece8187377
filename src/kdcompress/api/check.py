"""Whether what ``distill`` was told makes sense, before anything is loaded."""

from __future__ import annotations

from kdcompress.api.targets import check_views
from kdcompress.errors import usage_error
from kdcompress.option_set import Options, flag
from kdcompress.options import (
    TEACHERLESS,
    AssistantOptions,
    DistillOptions,
    GrowOptions,
    LightTeacherOptions,
    ResidualOptions,
)

DIVIDED_ONLY = ("assistant_share", "scheme", "reuse_teacher_classifier", "freeze_classifier")


def check_distill(options: DistillOptions) -> None:
    """Refuse what contradicts itself, and options that the chosen method would not look at.

    Raises:
        UserError: Of the first such option.
    """
    check_views(options)
    if options.method in TEACHERLESS and options.teacher is not None:
        raise usage_error(
            f"--method {options.method} takes no teacher.", "Leave TEACHER out, or choose kd, reskd or rkd-assistant."
        )
    if options.method not in (*TEACHERLESS, "lwkd") and options.teacher is None:
        raise usage_error(f"--method {options.method} needs a TEACHER.", "Give a run folder, '-', or a checkpoint.")
    growing = "--grow" if options.grow else "--res-students" if options.res_students else None
    if growing and (options.method != "reskd" or not options.arch):
        raise usage_error(f"{growing} goes with --method reskd and --arch.", "Add them, or leave it out.")
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
    if rkd and options.freeze_classifier and not options.reuse_teacher_classifier:
        raise usage_error("--freeze-classifier would keep a random one.", "Add --reuse-teacher-classifier.")
    if not options.grow:
        unused += [name for name in _changed(options, GrowOptions) if name != "res_students"]
    if not growing:
        unused += [name for name in _changed(options, ResidualOptions) if name.startswith("residual")]
    if unused:
        raise usage_error(f"{flag(unused[0])} has no meaning here ({why}).", "Leave it out.")
    if options.arch and not growing and options.teacher != "-":
        raise usage_error("--arch is for res-students, or for a TEACHER that is a checkpoint.", "Add --res-students N.")


def _changed(options: DistillOptions, kind: type[Options]) -> list[str]:
    """Options of one set that are not at their defaults."""
    defaults = vars(kind())
    return [name for name, value in defaults.items() if getattr(options, name) != value]
