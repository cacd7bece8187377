"""Checks of the options of ``distill`` and ``add-res-student``, before anything is loaded."""

from __future__ import annotations

from dataclasses import fields
from importlib.util import find_spec

from kdcompress.api.targets import check_views
from kdcompress.errors import UserError, usage_error
from kdcompress.export.onnx_network import check_extra
from kdcompress.options import (
    METHODS,
    AddResStudentOptions,
    BenchmarkOptions,
    DistillOptions,
    EvalOptions,
    GateCalibrateOptions,
    LogitOptions,
    PolishOptions,
    PredictOptions,
    SearchOptions,
)
from kdcompress.options.methods import NONE, PAIR, REQUIRED, SEARCH, Method, has_temperature, meaningless, taking


def check_distill(options: DistillOptions) -> None:
    """Refuse contradictory options, and options that the chosen method does not use.

    Raises:
        UserError: For the first such option.
    """
    name, method = options.method, METHODS[options.method]
    check_views(options)
    check_unlabelled(options)
    check_logit_loss(options)
    if method.teacher == NONE and options.teacher is not None:
        raise usage_error(
            f"--method {name} takes no teacher.", f"Leave TEACHER out, or choose one of {', '.join(taking(REQUIRED))}."
        )
    if method.teacher == REQUIRED and options.teacher is None:
        raise usage_error(f"--method {name} needs a TEACHER.", "Give a run folder, '-', or a checkpoint.")
    check_teacher(options, "no TEACHER")
    _check_read(options)
    if options.from_teacher and options.fine_tunes:
        other = "--pretrained" if options.pretrained else f"--student {options.student}"
        problem = "A student can start from the weights of one network only."
        raise usage_error(problem, f"Leave out {other} or --from-teacher.")
    if options.student == PAIR and SEARCH not in method.reads:
        problem = f"--student {PAIR} searches for the members of a cascade."
        raise usage_error(problem, "Name a student, or add --method reskd --search --target-macs RATIO.")
    check_search(options)
    method.check(options)
    if options.arch and not (options.grow or options.res_students) and options.teacher != "-":
        raise usage_error("--arch is for res-students, or for a TEACHER that is a checkpoint.", "Add --res-students N.")


def check_unlabelled(options: DistillOptions | AddResStudentOptions) -> None:
    """Refuse to mix images without labels with others.

    Raises:
        UserError: Mixup or cutmix is on.
    """
    if options.unlabelled is not None and (options.mixup or options.cutmix):
        problem = "--unlabelled cannot be combined with --mixup or --cutmix, which mix labels, too."
        raise usage_error(problem, "Leave one of the two out.")


def check_teacher(options: DistillOptions | AddResStudentOptions | PolishOptions, without: str) -> None:
    """Refuse options that describe a teacher where none is given.

    Args:
        without: What is missing, in the words of the command.

    Raises:
        UserError: For the first such option.
    """
    for name in ("teacher_arch", "weights_key"):
        if options.teacher is None and getattr(options, name) is not None:
            raise meaningless(name, without)


def check_exported(options: EvalOptions | PredictOptions, *unused: str) -> None:
    """Refuse options that have no effect on an exported file.

    Args:
        unused: Their names.

    Raises:
        UserError: For the first such option, for a device that is not the CPU, and for a precision of training.
    """
    for name in unused:
        if getattr(options, name) is not None:
            raise meaningless(name, "an exported file")
    check_on_cpu(options.device, "an exported file runs on the CPU")
    if options.precision not in ("auto", "fp32"):
        problem = f"--precision {options.precision}: an exported file keeps the precision of its export."
        raise usage_error(problem, "Leave it out.")


def check_on_cpu(device: str, why: str, remedy: str = "Leave it out.") -> None:
    """Raises:
    UserError: Another device was asked for.
    """
    if device not in ("auto", "cpu"):
        raise usage_error(f"--device {device}: {why}.", remedy)


def check_engine(options: BenchmarkOptions | GateCalibrateOptions) -> None:
    """Refuse ONNX Runtime where it is not installed, or on another device or in another precision than it runs in.

    Raises:
        UserError: It cannot run.
    """
    if options.engine == "onnxruntime":
        check_extra("--engine onnxruntime", "onnx", "onnxscript", "onnxruntime")
        check_on_cpu(options.device, "ONNX Runtime runs on the CPU here")
        if options.precision not in ("auto", "fp32"):
            problem = f"--precision {options.precision}: what ONNX Runtime gets is exported in fp32."
            raise usage_error(problem, "Leave it out.")


def _check_read(options: DistillOptions) -> None:
    """Refuse options that only other methods use."""
    readers = {name: read_by(method) for name, method in METHODS.items()}
    for option in options.changed():
        others = [name for name, read in readers.items() if option in read]
        if others and options.method not in others:
            remedy = f"Leave it out, or choose --method {' or '.join(others)}."
            raise meaningless(option, f"--method {options.method}", remedy)


def read_by(method: Method) -> set[str]:
    """Names of the options that a method uses besides those of every training."""
    return {
        field.name
        for field in fields(DistillOptions)
        if field.name in method.reads or field.metadata["panel"] in method.reads
    }


def check_logit_loss(options: LogitOptions) -> None:
    """Refuse options that the chosen logit loss ignores.

    Raises:
        UserError: A temperature, where it has none.
    """
    if options.temperature is not None and not has_temperature(options.logit_loss):
        raise meaningless("temperature", f"--logit-loss {options.logit_loss}")


def check_enough_classes(options: LogitOptions, num_classes: int) -> None:
    """Refuse a loss that would be constant for so few classes.

    Raises:
        UserError: ``standardized-kl`` with two classes: of two standardized logits only the order is left.
    """
    if options.logit_loss == "standardized-kl" and num_classes < 3:
        raise usage_error("--logit-loss standardized-kl needs three classes or more.", "Use --logit-loss kl.")


def check_search(options: AddResStudentOptions | DistillOptions) -> None:
    """Refuse options with which no search can run.

    Raises:
        UserError: Options that cannot be combined, no time, or Optuna is not installed.
    """
    if not options.search:
        for name in (*vars(SearchOptions()), "search_storage"):
            if getattr(options, name, None) not in (None, False):
                raise meaningless(name, "no --search", "Leave it out, or add --search.")
        return
    if options.arch:
        raise usage_error("--search and --arch both choose the architecture.", "Leave one of the two out.")
    if options.max_macs is None and getattr(options, "target_macs", None) is None:
        remedy = "Give the largest share of the teacher's MACs for the res-student: --max-macs 0.1."
        if getattr(options, "student", None) == PAIR:
            remedy = "Give the share of the teacher's MACs that an image may cost on average: --target-macs 0.25."
        raise usage_error("--search needs a budget.", remedy)
    _ = options.time_limit
    if find_spec("optuna") is None:
        raise UserError("--search needs Optuna.", "pip install 'kdcompress[search]'", exit_code=2)
