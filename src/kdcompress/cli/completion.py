"""What a shell offers for the values of options: choices, and names of networks. Nothing here imports torch.

timm takes seconds to say which networks it has. So the first command that needs timm anyway leaves their names in the
cache; until then there are our own.
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

ASKED = "_KDCOMPRESS_COMPLETE"  # set by the shell's own script, that Typer writes
OURS = (
    *(f"resnet{depth}_cifar" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *(f"wrn_{shape}_cifar" for shape in ("16_1", "16_2", "16_4", "28_10", "40_1", "40_2", "40_4")),
    "lenet5",
)
SPECS = ("model", "student", "arch", "teacher_arch")  # options that name a network
FILE = "networks.txt"  # timm's version, then a name a line
UNUSABLE = (
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)  # a cache without a place, without permission, or with other text


def typed() -> list[str]:
    """The line that a shell wants to complete, without the program's name; empty where none does."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "") if ASKED in os.environ else ""
    return line.split()[1:]


def completer(field: dataclasses.Field[Any]) -> Callable[[str], list[str]] | None:
    """What Typer asks for the values of an option that begin so; None where only files fit, or anything."""
    choices = field.metadata["choices"]
    if not choices and field.name not in SPECS:
        return None
    return lambda incomplete: [each for each in choices or networks() if each.startswith(incomplete)]


def networks() -> list[str]:
    """All that are known without timm."""
    with contextlib.suppress(*UNUSABLE):
        if (file := _file()).is_file():  # a pipe of that name would keep us waiting
            return file.read_text(encoding="utf-8").splitlines()[1:]
    return list(OURS)


def remember_networks() -> None:
    """Leave the names for :func:`networks` once timm is loaded; a cache that cannot be written costs nothing."""
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
    from kdcompress.cache import cache_dir  # NumPy comes with it

    return cache_dir(os.environ.get(variable("cache_dir"))) / FILE
