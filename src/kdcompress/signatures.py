"""Signatures of the Python functions, made from the option dataclasses: every option a keyword with type and default.

Notebooks read them at run time; ``__init__.pyi``, which docs/make_stub.py writes, has the same for editors and type
checkers.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from kdcompress.option_set import Options, field_type

PathLike = os.PathLike[str]
OPTIONS = "options"  # the parameter that takes all of them at once
PATHS = ("data", "teacher")  # may be one, or a name
NUMBERS = ("input_size", "target_views")  # may be one, or text


def option_set_of(function: Callable[..., Any]) -> type[Options] | None:
    """The options that a function of the API takes; None of one that takes none."""
    hint = typing.get_type_hints(function).get(OPTIONS)
    kinds = typing.get_args(hint) or (hint,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Options)), None)


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """As the function's own, with a keyword for each option in place of ``**given``."""
    own, option_set = inspect.signature(function, eval_str=True), option_set_of(function)
    if option_set is None:
        return own
    fields = sorted(dataclasses.fields(option_set), key=lambda field: not field.metadata["argument"])
    fields = [field for field in fields if field.name not in own.parameters]
    kept = [parameter for parameter in own.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    return own.replace(parameters=[*kept, *(_parameter(option_set, field) for field in fields)])


def documented(function: Callable[..., Any]) -> str:
    """The docstring of a function, and a line for each option."""
    text, option_set = inspect.getdoc(function) or "", option_set_of(function)
    if option_set is None:
        return text
    lines = [f"    {field.name}: {_help(field)}" for field in dataclasses.fields(option_set)]
    return "\n".join([text, "", "Options:", *lines])


def _help(field: dataclasses.Field[Any]) -> str:
    choices = ", ".join(map(repr, field.metadata["choices"]))
    return field.metadata["help"] + (f": {choices}" if choices else "")


def _parameter(option_set: type[Options], field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=field.default, annotation=_annotation(option_set, field))


def _annotation(option_set: type[Options], field: dataclasses.Field[Any]) -> Any:
    """What a caller may give: also a path where the option is text, and one value where it takes several."""
    kind = field_type(option_set, field.name)
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return element | types.GenericAlias(Sequence, (element,))
    if field.metadata["choices"]:
        kind = Literal[tuple(field.metadata["choices"])]
    elif field.metadata["argument"] or field.metadata["file"] or field.name in PATHS:
        kind = str | PathLike
    elif field.name in NUMBERS:
        kind = str | int
    optional = typing.get_type_hints(option_set)[field.name]
    return kind | None if isinstance(optional, types.UnionType) else kind
