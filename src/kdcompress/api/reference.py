"""References between commands: run folders, ``-`` for standard input, and options inherited from a run."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from kdcompress import schema
from kdcompress.engine.distributed import from_main, restarted
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.options import DataOptions
from kdcompress.references import STDIN, absolute, has_weights, needs_arch

D = TypeVar("D", bound=DataOptions)

STARTS = ("model", "student")  # options that name what a training starts from
MAX_STDIN = 16 * 2**20  # bytes: a result has a few kB, but a log may precede it


def resolve(reference: str) -> str:
    """The reference itself, or for ``-`` the run that standard input names."""
    return from_main(_from_stdin) if reference == STDIN else reference


def resolved(networks: Sequence[str], arch: Sequence[str]) -> list[str]:
    """As :func:`resolve`, for the networks of a command that takes several.

    Args:
        arch: Specs of those that are checkpoint files.

    Raises:
        UserError: Standard input is named twice, or there is another number of specs than of checkpoint files.
    """
    if list(networks).count(STDIN) > 1:
        raise usage_error("'-' can be given once: standard input is read once.", "Name the other networks.")
    references = [resolve(name) for name in networks]
    if len(arch) != (checkpoints := sum(map(needs_arch, references))):
        problem = f"{len(arch)} --arch for {checkpoints} checkpoint file(s)."
        raise usage_error(problem, "Give one for each, in their order: --arch resnet56_cifar,shortcut=A")
    return references


def piped(options: D) -> D:
    """Options with ``-`` replaced by the run that standard input names, and files to start from as absolute paths.

    Raises:
        UserError: Two options ask for it.
    """
    names = [name for name in ("run", "teacher", *STARTS) if getattr(options, name, None) == STDIN]
    if len(names) > 1:
        raise usage_error(f"Both {names[0]} and {names[1]} are '-'.", "Standard input names one run; give the other.")
    references: dict[str, Any] = {name: resolve(STDIN) for name in names}
    for name in STARTS:
        value = references.get(name, getattr(options, name, None))
        if value is not None and has_weights(value):
            references[name] = absolute(value)
    if (folder := getattr(options, "unlabelled", None)) is not None:
        references["unlabelled"] = os.path.abspath(folder)
    return dataclasses.replace(options, **references) if references else options


def inherit(options: D, record: dict[str, Any]) -> D:
    """Fill in the data options that the user left open with those of the run that this one builds on.

    Raises:
        UserError: Another holdout on the same data: images that were trained on would become calibration images.
    """
    past = record.get("options", {})
    own: dict[str, Any] = {
        name: past[name] for name in ("data", "data_dir", "holdout") if getattr(options, name) is None and name in past
    }
    if past.get("skip_bad_images"):
        own["skip_bad_images"] = True
    same_data = options.data is None or absolute(options.data) == past.get("data")
    if same_data and "holdout" in past and options.holdout not in (None, past["holdout"]):
        raise usage_error(
            f"--holdout {options.holdout} differs from the {past['holdout']} of the run that this one builds on.",
            "Leave it out: images that a network was trained on cannot calibrate it.",
        )
    return dataclasses.replace(options, **own)


def _from_stdin() -> str:
    if restarted():
        remedy = "Give the run folder itself in place of '-' where torchrun may restart processes (--max-restarts)."
        raise UserError("Standard input has been read before torchrun restarted the job.", remedy)
    if sys.stdin is None or sys.stdin.isatty():
        raise usage_error("'-' reads a run from standard input, but nothing is piped in.", "Give a run folder instead.")
    remedy = "Pipe in the output of a kdcompress command, or the path of a run."
    try:
        content = getattr(sys.stdin, "buffer", sys.stdin).read(MAX_STDIN + 1)
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise usage_error("Standard input is not UTF-8 text.", remedy) from error
    except (OSError, ValueError) as error:  # a folder, or one that was closed
        raise usage_error(f"Standard input cannot be read: {first_line(error)}", remedy) from error
    if len(content) > MAX_STDIN:
        raise usage_error(f"Standard input holds more than {MAX_STDIN / 2**20:g} MiB, more than any result.", remedy)
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    if not lines:
        remedy = "The command before it printed nothing; look at its error above."
        raise usage_error("Standard input is empty.", remedy)
    # the last line may follow those of a log; an indented JSON object is all the lines
    last = " ".join(lines) if lines[0] == "{" else lines[-1]
    if last.startswith("{"):
        try:
            found = schema.read_object(last.encode(), schema.Piped)
            # of an export, the next command runs what was made; a report is no network
            run = (found.get("command") != "report" and found.get("file")) or found.get("run")
        except ValueError as error:
            problem = f"Standard input is not valid JSON: {first_line(error)}"
            if isinstance(error, schema.Malformed):
                problem = f"The JSON on standard input names no run that can be used: {error}."
            raise usage_error(problem, "Pipe in the output of a command.") from error
        if not run:
            raise usage_error(
                "The JSON on standard input names no run.", "Pipe in the output of a command that made one."
            )
        return str(run)
    if not os.path.exists(last):  # unlike Path.exists, it takes any text
        raise usage_error(f"Standard input holds neither JSON nor a path: {last[:60]!r}.", remedy)
    return last
