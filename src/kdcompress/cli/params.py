"""From option dataclasses to Typer parameters, so that the command line and Python never drift apart."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

from kdcompress.cli.completion import completer
from kdcompress.option_set import Options, field_type, flag
from kdcompress.options.training import CACHE, DATA, RUN, SHELL, TRAINING

NOT = "not_"
COMMON = (DATA, TRAINING, CACHE, RUN, SHELL)  # headings that many commands have
METAVARS = {int: "INTEGER", float: "NUMBER", str: "TEXT"}


def with_options(function: Callable[[dict[str, Any]], int], *option_sets: type[Options]) -> Callable[..., int]:
    """A function for Typer whose parameters are the fields of the option sets.

    Values reach ``function`` as the text that the user typed, None if nothing was: the option sets convert and check
    them, with the same messages as for the environment, the config file and Python.
    """

    def command(**values: Any) -> int:
        for name in [name for name in values if name.startswith(NOT)]:
            if values.pop(name):
                values[name.removeprefix(NOT)] = False
        return function(values)

    arguments: list[inspect.Parameter] = []
    options: list[inspect.Parameter] = []
    for option_set in option_sets:
        own = option_set.__annotations__
        for field in sorted(dataclasses.fields(option_set), key=lambda field: field.name not in own):
            kind = inspect.Parameter.KEYWORD_ONLY
            annotation = _annotation(option_set, field)
            parameter = inspect.Parameter(field.name, kind, default=None, annotation=annotation)
            (arguments if field.metadata["argument"] else options).append(parameter)
            if field_type(option_set, field.name) is bool and field.default is False:
                # overrides the environment and the config file; hidden, to keep the help short
                undo = typer.Option(f"--no-{field.name.replace('_', '-')}", hidden=True)
                options.append(
                    inspect.Parameter(NOT + field.name, kind, default=False, annotation=Annotated[bool, undo])
                )
    parameters = [*arguments, *sorted(options, key=_panel_last)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    return command


def _annotation(option_set: type[Options], field: dataclasses.Field[Any]) -> Any:
    kind, meta = field_type(option_set, field.name), field.metadata
    help_text = meta["help"]
    if meta["choices"]:
        help_text += f": {', '.join(meta['choices'])}"
    if not meta["argument"] and field.default not in (None, ()) and field.default is not False:
        help_text += f" (default: {'on' if field.default is True else field.default})"
    help_text = help_text.replace("[", r"\[")  # or Rich would take it for markup
    common: dict[str, Any] = {"help": help_text, "show_default": False, "autocompletion": completer(field)}
    if meta["argument"] and typing.get_origin(kind) is tuple:
        return Annotated[Optional[list[str]], typer.Argument(metavar=f"{field.name.upper()}...", **common)]  # noqa: UP045
    if meta["argument"]:
        return Annotated[Optional[str], typer.Argument(metavar=field.name.upper(), **common)]  # noqa: UP045
    shared = {**common, "rich_help_panel": meta["panel"] or "Options"}
    if kind is bool:
        no = f"/--no-{field.name.replace('_', '-')}" if field.default in (None, True) else ""
        names = flag(field.name) + no
        short = [meta["short"]] if meta["short"] else []
        return Annotated[Optional[bool], typer.Option(names, *short, **shared)]  # noqa: UP045
    if typing.get_origin(kind) is tuple:
        metavar = METAVARS[typing.get_args(kind)[0]]
        return Annotated[Optional[list[str]], typer.Option(flag(field.name), metavar=metavar, **shared)]  # noqa: UP045
    metavar = "CHOICE" if meta["choices"] else METAVARS[kind]
    return Annotated[Optional[str], typer.Option(flag(field.name), metavar=metavar, **shared)]  # noqa: UP045


def _panel_last(parameter: inspect.Parameter) -> int:
    """A command's own options first, then those of methods, then data, training, run and shell."""
    panel = typing.get_args(parameter.annotation)[1].rich_help_panel
    return COMMON.index(panel) + 2 if panel in COMMON else int(panel not in (None, "Options"))
