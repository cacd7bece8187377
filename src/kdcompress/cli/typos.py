"""A command or option that does not exist, and which one was meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from kdcompress import suggest
from kdcompress.option_set import flag
from kdcompress.options import ShellOptions

Fields = Mapping[str, dataclasses.Field[Any]]


def explained(
    error: Exception, arguments: list[str], commands: Collection[str], fields: Callable[[str], Fields]
) -> tuple[str, str] | None:
    """Problem and remedy of a usage error of Typer's, if a name was mistyped.

    Args:
        arguments: Of the command line.
        fields: The options of a command.
    """
    typed = next((each for each in arguments if not each.startswith("-")), None)
    wrong = getattr(error, "option_name", None) if type(error).__name__ == "NoSuchOption" else None
    if wrong is None:
        if typed is None or typed in commands or "such command" not in str(error):
            return None
        meant = suggest.command(typed, commands)
        return (
            f"There is no command {typed!r}.",
            f"{_meant(f'kdcompress {meant}') if meant else ''}See kdcompress --help.",
        )
    if typed not in commands:
        return None
    assert typed is not None
    if len(wrong) == 2:  # Typer reads -lr as -l -r
        wrong = next((each for each in arguments if each.startswith(wrong)), wrong)
    known = {**fields(typed), **ShellOptions.__dataclass_fields__}
    meant = suggest.option(wrong, known)
    problem = f"There is no option {wrong} in kdcompress {typed}."
    if meant is None:
        return problem, f"See kdcompress {typed} --help."
    if known[meant].metadata["argument"]:
        return problem, f"Give {meant.upper()} without a flag: kdcompress {typed} {meant.upper()}."
    return problem, f"{_meant(flag(meant))}See kdcompress {typed} --help."


def _meant(name: str) -> str:
    return f"Did you mean {name}? "
