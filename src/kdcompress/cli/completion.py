"""Shell completion of option values: choices, and names of networks. Nothing here imports torch.

Listing timm's networks takes seconds. So the first command that needs timm anyway writes their names to the cache;
until then our own are offered.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcompress.option_set import variable

ASKED = "_KDCOMPRESS_COMPLETE"  # set by the completion script that Typer installs in the shell
OURS = (
    *(f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *(f"wrn_{shape}_cifar" for shape in ("16_1", "16_2", "16_4", "28_10", "40_1", "40_2", "40_4")),
    "lenet5",
)
SPECS = ("model", "student", "arch", "teacher_arch", "student_arch")  # options that name a network
FILE = "networks.txt"  # timm's version, then one name per line
UNUSABLE = (
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)  # no home folder, no permission, or other content


def typed() -> list[str]:
    """Words of the command line to complete, without the program's name; empty if no shell asks."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "") if ASKED in os.environ else ""
    return line.split()[1:]


def completer(field: dataclasses.Field[Any]) -> Callable[[str], list[str]] | None:
    """A function from the beginning of an option's value to its completions; None for files and free text."""
    choices = field.metadata["choices"]
    if not choices and field.name not in SPECS:
        return None
    return lambda incomplete: [each for each in choices or networks() if each.startswith(incomplete)]


def networks() -> list[str]:
    """Names of networks that are known without importing timm."""
    with contextlib.suppress(*UNUSABLE):
        if (file := _file()).is_file():  # reading a named pipe would block
            return file.read_text(encoding="utf-8").splitlines()[1:]
    return list(OURS)


def remember_networks() -> None:
    """Write the names for :func:`networks` once timm is loaded; a cache that cannot be written is ignored."""
    timm = sys.modules["timm"]
    head = f"timm {timm.__version__}"
    with contextlib.suppress(*UNUSABLE):
        file = _file()
        if file.is_file() and file.read_text(encoding="utf-8").startswith(f"{head}\n"):
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{FILE}.{os.getpid()}.tmp")
        temporary.write_text("\n".join([head, *timm.list_models()]) + "\n", encoding="utf-8")
        temporary.replace(file)


def _file() -> Path:
    from kdcompress.cache import cache_dir  # it imports NumPy

    return cache_dir(os.environ.get(variable("cache_dir"))) / FILE
