"""The command line: parse, call the Python API, print. Nothing here imports torch before a command runs."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import typer

from kdcompress import options as sets
from kdcompress import threads, trust
from kdcompress.cli import completion, typos
from kdcompress.cli.output import Unprinted, print_error, print_out, print_result
from kdcompress.cli.rows import print_rows
from kdcompress.engine.interrupt import StopRequest, interrupt, is_lost_worker, stop_signals
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.option_set import Options, variable
from kdcompress.streams import forget_output

TEACHER_HELP = """Train, or fine-tune, a network on labels.

Example: kdcompress train-teacher --model resnet32_cifar --data digits --epochs 15

Example: kdcompress train-teacher --model resnet50 --pretrained --data photos/ --epochs 10
"""
DISTILL_HELP = """Train a student, with a teacher or (see --method) without one.

Example: kdcompress distill runs/teacher --method kd --student resnet8_cifar,width=0.5

Example: kdcompress distill resnet56.safetensors --arch resnet56_cifar,shortcut=A --method reskd --data cifar10/

Example: kdcompress distill runs/teacher --method reskd --res-students 2 --arch resnet8_cifar,width=0.5

Example: kdcompress distill runs/teacher --method rkd-assistant --student resnet20_cifar

Example: kdcompress distill --method lwkd --student resnet20_cifar --data cifar10/
"""
ADD_HELP = """Freeze the members of RUN, and train one more on their residual to the teacher's logits (ResKD).

Example: kdcompress add-res-student runs/cascade --arch resnet8_cifar,width=0.5 --epochs 15

Example: kdcompress add-res-student runs/cascade --search --max-macs 0.1 --time-budget 30m

Example: kdcompress add-res-student runs/cascade --search --max-macs 0.1 --search-storage /shared/search.log
"""
CASCADE_HELP = """Make a cascade of networks that you have, without training; gate-calibrate then gives it a gate.

Each member gets the input size and normalisation that it was trained with, resized from the largest among them.

Example: kdcompress cascade runs/student runs/teacher | kdcompress gate-calibrate - --max-drop 0.5

Example: kdcompress cascade mobilenetv3_small_100 resnet50 --data imagenet/
"""
GATE_HELP = """Let a cascade stop early: choose the thresholds of all exits together, on the calibration split.

Example: kdcompress gate-calibrate runs/cascade --max-drop 0.5

Example: kdcompress gate-calibrate runs/cascade --target-macs 0.15 --measure margin
"""
POLISH_HELP = """Fine-tune all members of a gated cascade together, each on the images that reach it.

The new weights are kept if the calibration accuracy improves, at the same expected MACs.

Example: kdcompress polish runs/gated --epochs 5
"""
PROFILE_HELP = """Parameters of any network, and MACs and FLOPs per image; counted by fvcore, attention included.

Example: kdcompress profile-flops runs/gated --by-module

Example: kdcompress profile-flops vit_small_patch16_224
"""
EVAL_HELP = """Accuracy, cost and speed on the test split; a gated cascade is scored gated and in full.

Example: kdcompress eval runs/gated

Example: kdcompress eval resnet56.safetensors --arch resnet56_cifar,shortcut=A --data cifar10/
"""
PREDICT_HELP = """Classify images: one line of JSON per image, or a table on a terminal, as soon as its batch is done.

Images that cannot be read are named on standard error; the others are classified, and the exit status is 1.

Example: kdcompress predict runs/gated photos/ new.jpg

Example: kdcompress predict runs/gated photos/ --top-k 3 --csv classes.csv

Example: find photos -name '*.jpg' -print0 | kdcompress predict runs/gated - -0
"""

EXPORT_HELP = """Write one ONNX file that runs a later member only on the images that need it.

The file is verified against PyTorch on calibration images, and kept only if both agree.

Example: kdcompress export runs/gated

Example: kdcompress export runs/gated --precision int8 --preprocess --out gated.onnx
"""

COMPRESS_HELP = """Compress a teacher to a budget of MACs, milliseconds or accuracy, by the commands below.

Students alone, gated pairs and a student that hands over to the teacher compete at the same cost: all are trained
briefly, the best in full. The winner is scored on the test split; every candidate's run stays in the folder.

Example: kdcompress compress runs/teacher --target-macs 0.25 --time-budget 1h

Example: kdcompress compress tf_efficientnet_lite0 --data photos/ --target-macs 0.5 --export onnx

Example: kdcompress compress runs/teacher --max-drop 1 --dry-run
"""

BENCHMARK_HELP = """Time networks beside each other: milliseconds, images per second, and what their MACs promise.

All run in one process, turn by turn on the same images; a gated run is also timed with every member run.

Example: kdcompress benchmark runs/teacher runs/single runs/gated

Example: kdcompress benchmark teacher.onnx gated.onnx --batch-size 1,16 --threads 1
"""

REPORT_HELP = """Write one file about a run: what it costs, what it loses and where, and how it was made.

A web page that needs no network and prints, or a model card. Further runs are shown beside the first.

Example: kdcompress report runs/gated runs/single --out report.html

Example: kdcompress report runs/gated --format md
"""

PUSH_HELP = """Upload a run to the Hugging Face hub: weights, configuration, and a model card.

timm loads it from there as hf-hub:ORG/NAME, and cascades after `import kdcompress`.

Example: kdcompress push runs/gated hf-hub:me/small --private
"""

DATA_HELP = """Describe a data set: classes, splits and sizes, and a contact sheet of its images.

Copies of training images in the test split, exact and near ones, are counted and named; --find-copies: also among
more than 5,000 images.

Example: kdcompress data photos/ --preview sheet.png --augment auto

Example: kdcompress data synth-digits:100 --preview numbers.png
"""

CACHE_HELP = """List what is cached for later runs: targets of frozen networks, and lightweight teachers.

Example: kdcompress cache

Example: kdcompress cache --clear
"""

VERIFY_HELP = """Check that the files of a run are the ones that were written. Exits with 1 if one is not.

Example: kdcompress verify runs/gated

Example: kdcompress verify runs/gated --accept
"""

WATCH_HELP = """Print each epoch of a run that another process trains, as it ends.

In the folder of a compress, or of a distill with --res-students, it follows all trainings. It ends with the run; the
exit status is 1 if that was interrupted.

Example: kdcompress watch runs/student

Example: kdcompress watch runs/small | jq .top1
"""

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
MAX_CONFIG = 2**20  # bytes

# command -> (function of kdcompress.api, its options in kdcompress.options, help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "compress": ("compress", "CompressOptions", COMPRESS_HELP),
    "train-teacher": ("train_teacher", "TrainTeacherOptions", TEACHER_HELP),
    "distill": ("distill", "DistillOptions", DISTILL_HELP),
    "add-res-student": ("add_res_student", "AddResStudentOptions", ADD_HELP),
    "cascade": ("cascade", "CascadeOptions", CASCADE_HELP),
    "gate-calibrate": ("gate_calibrate", "GateCalibrateOptions", GATE_HELP),
    "polish": ("polish", "PolishOptions", POLISH_HELP),
    "profile-flops": ("profile_flops", "ProfileFlopsOptions", PROFILE_HELP),
    "eval": ("evaluate", "EvalOptions", EVAL_HELP),
    "predict": ("predict", "PredictOptions", PREDICT_HELP),
    "export": ("export_network", "ExportOptions", EXPORT_HELP),
    "benchmark": ("benchmark", "BenchmarkOptions", BENCHMARK_HELP),
    "report": ("write_report", "ReportOptions", REPORT_HELP),
    "push": ("push", "PushOptions", PUSH_HELP),
    "data": ("describe_data", "DescribeDataOptions", DATA_HELP),
    "watch": ("watch", "WatchOptions", WATCH_HELP),
    "verify": ("verify", "VerifyOptions", VERIFY_HELP),
    "cache": ("manage_cache", "CacheCommandOptions", CACHE_HELP),
}
# function -> that which gives its rows as they come
STREAMED = {"predict": "predictions", "watch": "epochs_of"}
# shorter texts for the list of commands
IN_SHORT = {
    "compress": "From a teacher and a budget to a network that meets it.",
    "train-teacher": "Train, or fine-tune, a network on labels.",
    "distill": "Train a student, with or without a teacher.",
    "add-res-student": "Train one more network on the residual.",
    "cascade": "Make a cascade of trained networks.",
    "gate-calibrate": "Choose when a cascade may stop early.",
    "polish": "Fine-tune the members of a gated cascade together.",
    "profile-flops": "Parameters, MACs and FLOPs of any network.",
    "eval": "Accuracy, cost and speed on the test split.",
    "predict": "Classify images.",
    "export": "Write one ONNX file whose gate skips members.",
    "benchmark": "Milliseconds of networks beside each other.",
    "report": "One page about a run, or its model card.",
    "push": "Upload a run to the Hugging Face hub.",
    "data": "Describe a data set, with a contact sheet.",
    "watch": "Follow a run that is being trained.",
    "verify": "Check that the files of a run are intact.",
    "cache": "List or remove what is cached for later runs.",
}


def _app(arguments: list[str]) -> typer.Typer:
    """All commands, but only the options of the one in ``arguments``: building the rest would cost time."""
    arguments = arguments or completion.typed()
    app = typer.Typer(
        name="kdcompress",
        help="Compress a trained image classifier by knowledge distillation, and know exactly what the result costs.",
        epilog="Every command prints its result as one line of JSON into a pipe, and '-' reads it from one.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # plain help at the top: importing Rich would exceed the 0.2 s that it may take
        rich_markup_mode="rich" if arguments[:1] and arguments[0] in COMMANDS else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_main)
    for name, (_, _, text) in COMMANDS.items():
        app.command(name, help=text, short_help=IN_SHORT[name])(
            _command(name) if name in arguments[:1] else lambda: None
        )
    return app


def _main(version: bool = typer.Option(False, "--version", help="Show the version and exit.")) -> None:
    if version:
        from importlib.metadata import version as installed

        try:
            print_out(f"kdcompress {installed('kdcompress')}")
        except Unprinted as error:
            forget_output()
            raise UserError(f"Standard output failed ({error}).") from error


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
            raise usage_error(
                f"--config {shlex.quote(str(path))} sets trust_code, which a file may not.",
                "Give --trust-code on the command line if you trust the code.",
            )
        shell = sets.ShellOptions.resolve(own, of_shell, os.environ)
        options = option_set.resolve(values, config, os.environ)
        if shell.trust_code:
            os.environ[trust.VARIABLE] = "1"
        if not shell.verbose:
            warnings.simplefilter("ignore")
            # a process that ends is reported in two lines, without the C++ stack of PyTorch
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        threads.spin_less(os.environ)
        # imported here, since they import torch
        with _without("wandb"):  # which timm imports for its own training script, and takes longer than timm
            from kdcompress import api
        from kdcompress.engine.precision import Process
        from kdcompress.engine.progress import Silent, Terminal
        from kdcompress.results import Rows

        completion.remember_networks()
        Process.is_ours = True
        reporter = Silent() if shell.quiet else Terminal(shell.verbose)
        output, failure = sys.stdout, None
        try:
            # standard output is for the result, not for what libraries or the user's code print
            with contextlib.redirect_stdout(sys.stderr):
                result = getattr(api, STREAMED.get(function_name, function_name))(options, reporter=reporter)
                if isinstance(result, Rows):
                    failure = print_rows(result, output, shell.json, show_progress=not shell.quiet)
        except KeyboardInterrupt as interrupt:
            # converted here: Typer would turn it into an Abort, which does not name the run
            raise _interrupted(interrupt) from interrupt
        except Exception as error:
            if StopRequest.pending and is_lost_worker(error):  # the signal has ended the workers, too
                raise _interrupted(error) from error
            if not isinstance(error, BrokenPipeError):
                raise
            # Typer would exit without a message
            remedy = "A process that reads images may have been killed when memory ran out: try fewer --workers."
            raise UserError("A process that this one depends on has ended.", remedy) from error
        if isinstance(failure, BrokenPipeError):  # its reader has seen enough
            forget_output()
            return 1
        if failure is not None:
            raise _not_printed(Unprinted(failure.strerror), options, result.run) from failure
        if not isinstance(result, Rows) and int(os.environ.get("RANK", "0")) == 0:
            try:
                print_result(result, shell.json, shell.verbose, COMMANDS)
            except Unprinted as error:
                raise _not_printed(error, options, result.run) from error
        return int(result.exit_status)

    return with_options(call, option_set, sets.ShellOptions)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let what is imported inside go on as if a package were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    StopRequest.pending = False
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    for number in stop_signals():
        signal.signal(number, interrupt)
    try:
        # standalone_mode off, so that errors arrive here as exceptions
        return int(_app(arguments)(arguments, standalone_mode=False) or 0)
    except UserError as error:
        if os.environ.get("KDCOMPRESS_DEBUG") == "1":
            traceback.print_exc()
        print_error(error.problem, error.remedy)
        status = error.exit_code
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        forget_output()  # the reader of the help has closed the pipe
        status = 1
    except Exception as error:
        if os.environ.get("KDCOMPRESS_DEBUG") == "1":
            _tell_peers(1)
            raise
        status = _report(error, arguments)
    _tell_peers(status)
    return status


def _tell_peers(status: int) -> None:
    """Let this process end at once, if it is one of several."""
    if (distributed := sys.modules.get("kdcompress.engine.distributed")) is not None:
        distributed.failed(status)


def _interrupted(cause: BaseException) -> UserError:
    return UserError("Interrupted.", getattr(cause, "remedy", ""), exit_code=130)


def _not_printed(error: Unprinted, options: Options, run: str | None) -> UserError:
    """The error of a standard output that was closed or is full; the run itself is saved."""
    forget_output()
    if run is not None and isinstance(options, sets.OutputOptions):
        return UserError(f"Standard output failed ({error}); the run is finished, and its result is in {run}/run.json.")
    return UserError(f"Standard output failed ({error}), and with it the result.", "Run the same command again.")


def _report(error: Exception, arguments: list[str]) -> int:
    """Print an error that is not a UserError: Typer's about usage, or a library's. Returns the exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        return 2
    if (
        hasattr(error, "format_message")
        and (mistyped := typos.explained(error, arguments, COMMANDS, _fields)) is not None
    ):
        print_error(*mistyped)
        return 2
    if hasattr(error, "format_message"):
        command = f"kdcompress {arguments[0]}" if arguments and arguments[0] in COMMANDS else "kdcompress"
        print_error(error.format_message(), f"See {command} --help.")
        return 2
    if type(error).__name__ == "Abort":
        return 130
    print_error(_one_line(error), "KDCOMPRESS_DEBUG=1 shows where it happened.")
    return 1


def _one_line(error: Exception) -> str:
    """One line about an unexpected error."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in first:
        return f"Out of memory: {first or 'no more could be allocated'}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"Unexpected error ({type(error).__name__}: {first})"


def _option_names() -> dict[str, set[str]]:
    return {name: set(_fields(name)) for name in COMMANDS}


def _fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The options of a command."""
    return dict(getattr(sets, COMMANDS[name][1]).__dataclass_fields__)


def _check_environment() -> None:
    """Print a notice of KDCOMPRESS_ variables that are no option: misspelt, or of another version.

    Raises:
        UserError: A variable of a launcher (torchrun) is not a number.
    """
    for name in LAUNCHER:
        value = os.environ.get(name, "0")
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise usage_error(
                f"The environment variable {name} is {value!r}, not a number.", "Unset it, or use torchrun."
            )
    names = set().union(sets.ShellOptions.__dataclass_fields__, *_option_names().values())
    known = {"KDCOMPRESS_DEBUG", *map(variable, names)}
    for name in sorted(os.environ):
        if name.startswith("KDCOMPRESS_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            print(f"Notice: {name} is not an option{f'; did you mean {near[0]}?' if near else '.'}", file=sys.stderr)


def _read_config(path: str | None, command: str) -> dict[str, Any]:
    """Options of a config file for a command: those at the top level, and those of its own section."""
    if path is None:
        return {}
    import yaml

    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CONFIG + 1).decode("utf-8")
        if len(text) >= MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG // 2**20} MiB")
        content = yaml.safe_load(text) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # the first line of a YAML error says the least
        what = str(error) if isinstance(error, yaml.YAMLError) else first_line(error)
        raise usage_error(
            f"--config {shlex.quote(str(path))} cannot be read: {what}", "Give a YAML or JSON file of options."
        ) from error
    if not isinstance(content, dict):
        raise usage_error(f"--config {shlex.quote(str(path))} contains no options.", "Write lines like 'epochs: 30'.")
    # one file serves a whole pipeline: options at its top may be of other commands only
    fields = _option_names()
    others = set().union(*fields.values()) - fields[command]
    # data is a command and an option: its section holds options, the option is text
    sections = {key for key, value in content.items() if key in COMMANDS and (key != "data" or _is_section(value))}
    section = content[command] if command in sections else {}
    if not _is_section(section):
        raise usage_error(
            f"--config {shlex.quote(str(path))}: {command} contains no options.",
            "Write lines like '  epochs: 30' below it.",
        )
    common = {key: value for key, value in content.items() if key not in sections and _name(key) not in others}
    return {**common, **(section or {})}


def _is_section(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _name(key: Any) -> str:
    return str(key).replace("-", "_")
