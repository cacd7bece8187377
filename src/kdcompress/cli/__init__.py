"""The command line: parse, call the Python API, print. Nothing here imports torch before a command runs."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer

from kdcompress import options as sets
from kdcompress import threads, trust
from kdcompress.cli import completion
from kdcompress.cli.output import Unprinted, print_error, print_result
from kdcompress.engine.interrupt import Asked, interrupt, stop_signals
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.option_set import Options, variable
from kdcompress.streams import forget_output

TEACHER_HELP = """Train, or fine-tune, a network on labels.

Example: kdcompress train-teacher --model resnet32_cifar --data digits --epochs 15

Example: kdcompress train-teacher --model resnet50 --pretrained --data photos/ --epochs 20 --lr 0.01
"""
DISTILL_HELP = """Train a student, by a teacher or (ce, label-smoothing, tf-kd, lwkd) without one.

Example: kdcompress distill runs/teacher --method kd --student resnet8_cifar,width=0.5

Example: kdcompress distill resnet56.safetensors --arch resnet56_cifar,shortcut=A --method reskd --data cifar10/

Example: kdcompress distill runs/teacher --method reskd --res-students 2 --arch resnet8_cifar,width=0.5

Example: kdcompress distill runs/teacher --method rkd-assistant --student resnet20_cifar

Example: kdcompress distill --method lwkd --student resnet20_cifar --data cifar10/
"""
ADD_HELP = """Freeze the members of RUN, and train one more on what they still miss of the teacher (ResKD).

Example: kdcompress add-res-student runs/cascade --arch resnet8_cifar,width=0.5 --epochs 15

Example: kdcompress add-res-student runs/cascade --search --max-macs 0.1 --time-budget 30m

Example: kdcompress add-res-student runs/cascade --search --max-macs 0.1 --search-storage /shared/search.log
"""
GATE_HELP = """Let a cascade stop early: choose the thresholds of all stages together, on the calibration split.

Example: kdcompress gate-calibrate runs/cascade --max-drop 0.5

Example: kdcompress gate-calibrate runs/cascade --target-macs 0.15 --measure margin
"""
POLISH_HELP = """Fine-tune all members of a gated cascade together, each from the images that reach it.

The weights are kept where the calibration accuracy improves, at the same expected MACs.

Example: kdcompress polish runs/gated --epochs 5
"""
PROFILE_HELP = """Parameters, MACs and FLOPs of any network, for one image; counted by fvcore, attention included.

Example: kdcompress profile-flops runs/gated --by-module

Example: kdcompress profile-flops vit_small_patch16_224
"""
EVAL_HELP = """Accuracy, cost and speed on the test split; a gated cascade is scored gated and in full.

Example: kdcompress eval runs/gated

Example: kdcompress eval resnet56.safetensors --arch resnet56_cifar,shortcut=A --data cifar10/
"""

DATA_HELP = """What a data set is: its classes, splits and sizes, and a contact sheet of its images.

Example: kdcompress data photos/ --preview sheet.png --augment auto

Example: kdcompress data synth-digits:100 --preview numbers.png
"""

CACHE_HELP = """What is kept for later runs: targets of frozen networks, and lightweight teachers.

Example: kdcompress cache

Example: kdcompress cache --clear
"""

VERIFY_HELP = """Whether a run is whole: its files are what was written. Exits with 1 where they are not.

Example: kdcompress verify runs/gated

Example: kdcompress verify runs/gated --accept
"""

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
MAX_CONFIG = 2**20  # bytes

# command -> (function of kdcompress.api, its options in kdcompress.options, help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "train-teacher": ("train_teacher", "TrainTeacherOptions", TEACHER_HELP),
    "distill": ("distill", "DistillOptions", DISTILL_HELP),
    "add-res-student": ("add_res_student", "AddResStudentOptions", ADD_HELP),
    "gate-calibrate": ("gate_calibrate", "GateCalibrateOptions", GATE_HELP),
    "polish": ("polish", "PolishOptions", POLISH_HELP),
    "profile-flops": ("profile_flops", "ProfileFlopsOptions", PROFILE_HELP),
    "eval": ("evaluate", "EvalOptions", EVAL_HELP),
    "data": ("describe_data", "DescribeDataOptions", DATA_HELP),
    "verify": ("verify", "VerifyOptions", VERIFY_HELP),
    "cache": ("manage_cache", "CacheCommandOptions", CACHE_HELP),
}
# in the list of commands, where a line has no room for more
IN_SHORT = {
    "train-teacher": "Train, or fine-tune, a network on labels.",
    "distill": "Train a student, with or without a teacher.",
    "add-res-student": "Train one more network on what is still missed.",
    "gate-calibrate": "Choose when a cascade may stop early.",
    "polish": "Fine-tune the members of a gated cascade together.",
    "profile-flops": "Parameters, MACs and FLOPs of any network.",
    "eval": "Accuracy, cost and speed on the test split.",
    "data": "What a data set is, with a contact sheet.",
    "verify": "Whether a run is whole.",
    "cache": "What is kept for later runs.",
}


def _app(arguments: list[str]) -> typer.Typer:
    """All commands by name, and the options of the one that is asked for: the rest would only cost time."""
    arguments = arguments or completion.typed()
    app = typer.Typer(
        name="kdcompress",
        help="Compress a trained image classifier by knowledge distillation, and know exactly what the result costs.",
        epilog="Every command prints its result as one line of JSON into a pipe, and '-' reads it from one.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # plain help at the top: importing Rich would take it a third longer than it has
        rich_markup_mode="rich" if arguments[:1] and arguments[0] in COMMANDS else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_main)
    for name, (_, _, text) in COMMANDS.items():
        app.command(name, help=text, short_help=IN_SHORT[name])(
            _command(name) if name in arguments[:1] else lambda: None
        )
    return app


def _main(version: bool = typer.Option(False, "--version", help="Show the version and leave.")) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"kdcompress {installed('kdcompress')}")


def _command(name: str) -> Callable[..., int]:
    from kdcompress.cli.params import with_options

    function_name, option_set = COMMANDS[name][0], getattr(sets, COMMANDS[name][1])

    def call(values: dict[str, Any]) -> int:
        _check_environment()
        own = {field: values.pop(field) for field in sets.ShellOptions.__dataclass_fields__}
        path = sets.ShellOptions.resolve(own, environment=os.environ).config
        config = _read_config(path, name)
        of_shell = {key: config.pop(key) for key in list(config) if _name(key) in own}
        if of_shell.get("trust_code"):
            raise usage_error(f"--config {path} asks to trust code.", "Type --trust-code if you do.")
        shell = sets.ShellOptions.resolve(own, of_shell, os.environ)
        options = option_set.resolve(values, config, os.environ)
        if shell.trust_code:
            os.environ[trust.VARIABLE] = "1"
        if not shell.verbose:
            warnings.simplefilter("ignore")
            # a process that leaves is told in two lines, without the stack of PyTorch's C++
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        threads.spin_less(os.environ)
        # imported here: torch comes with it
        from kdcompress import api
        from kdcompress.engine.precision import Process
        from kdcompress.engine.progress import Silent, Terminal

        completion.remember_networks()
        Process.is_ours = True
        reporter = Silent() if shell.quiet else Terminal(shell.verbose)
        try:
            # what a library, or code of the user's own, prints is not the result
            with contextlib.redirect_stdout(sys.stderr):
                result = getattr(api, function_name)(options, reporter=reporter)
        except KeyboardInterrupt as interrupt:
            # told here: Typer makes an Abort of it that knows nothing of the run
            raise _interrupted(interrupt) from interrupt
        except BrokenPipeError as error:
            # Typer would leave without a word
            remedy = "A process that reads images may have been killed, for want of memory: try fewer --workers."
            raise UserError("A process that this one talks to has ended.", remedy) from error
        if int(os.environ.get("RANK", "0")) == 0:
            try:
                print_result(result, shell.json)
            except Unprinted as error:
                raise _not_printed(error, options, result.run) from error
        return int(result.exit_status)

    return with_options(call, option_set, sets.ShellOptions)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    Asked.once = False
    for number in stop_signals():
        signal.signal(number, interrupt)
    try:
        # standalone_mode off: what goes wrong comes here as an exception
        return int(_app(arguments)(arguments, standalone_mode=False) or 0)
    except UserError as error:
        if os.environ.get("KDCOMPRESS_DEBUG") == "1":
            traceback.print_exc()
        print_error(error.problem, error.remedy)
        status = error.exit_code
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        forget_output()  # of help: its reader has read enough
        status = 1
    except Exception as error:
        if os.environ.get("KDCOMPRESS_DEBUG") == "1":
            raise
        status = _report(error, arguments)
    return status


def _interrupted(interrupt: KeyboardInterrupt) -> UserError:
    return UserError("Interrupted.", getattr(interrupt, "remedy", ""), exit_code=130)


def _not_printed(error: Unprinted, options: Options, run: str | None) -> UserError:
    """Standard output was closed, full, or its reader has left: nothing is lost."""
    forget_output()
    if run is not None and isinstance(options, sets.OutputOptions):
        return UserError(f"Standard output failed ({error}); the run is finished, and its result is in {run}/run.json.")
    return UserError(f"Standard output failed ({error}), and with it the result.", "Run the same command again.")


def _report(error: Exception, arguments: list[str]) -> int:
    """Errors that are not ours: Typer's about usage, and those of the libraries below."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        return 2
    if hasattr(error, "format_message"):
        command = f"kdcompress {arguments[0]}" if arguments and arguments[0] in COMMANDS else "kdcompress"
        print_error(error.format_message(), f"See {command} --help.")
        return 2
    if type(error).__name__ == "Abort":
        return 130
    print_error(_nature(error), "KDCOMPRESS_DEBUG=1 shows where it happened.")
    return 1


def _nature(error: Exception) -> str:
    """One line on an error that nobody has foreseen."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in first:
        return f"Memory ran out: {first or 'no more could be had'}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"Something unforeseen went wrong ({type(error).__name__}: {first})"


def _option_names() -> dict[str, set[str]]:
    return {name: set(getattr(sets, entry[1]).__dataclass_fields__) for name, entry in COMMANDS.items()}


def _check_environment() -> None:
    """A variable of ours that no command knows is a slip of the pen; said, for it may be another version's.

    Raises:
        UserError: What a launcher of several processes sets is no number.
    """
    for name in LAUNCHER:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise usage_error(f"The environment variable {name} is {value!r}, no number.", "Unset it, or use torchrun.")
    names = set().union(sets.ShellOptions.__dataclass_fields__, *_option_names().values())
    known = {"KDCOMPRESS_DEBUG", *map(variable, names)}
    for name in sorted(os.environ):
        if name.startswith("KDCOMPRESS_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            print(f"Notice: {name} is no option{f'; did you mean {near[0]}?' if near else '.'}", file=sys.stderr)


def _read_config(path: str | None, command: str) -> dict[str, Any]:
    """Options of a config file: those at the top level that are no command's section, and this command's section."""
    if path is None:
        return {}
    import yaml

    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG + 1).decode("utf-8")
        if len(text) >= MAX_CONFIG:
            raise ValueError("it is too large for options")
        content = yaml.safe_load(text) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # of YAML's errors the first line says the least
        what = str(error) if isinstance(error, yaml.YAMLError) else first_line(error)
        raise usage_error(f"--config {path} cannot be read: {what}", "Give a YAML or JSON file of options.") from error
    if not isinstance(content, dict):
        raise usage_error(f"--config {path} holds no options.", "Write lines like 'epochs: 30'.")
    # one file serves a whole pipeline: at its top may be what only other commands know
    fields = _option_names()
    others = set().union(*fields.values()) - fields[command]
    # data is a command and an option: its section holds options, the option is text
    sections = {key for key, value in content.items() if key in COMMANDS and (key != "data" or _is_section(value))}
    section = content[command] if command in sections else {}
    if not _is_section(section):
        raise usage_error(f"--config {path}: {command} holds no options.", "Write lines like '  epochs: 30' below it.")
    common = {key: value for key, value in content.items() if key not in sections and _name(key) not in others}
    return {**common, **(section or {})}


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _name(key: Any) -> str:
    return str(key).replace("-", "_")
