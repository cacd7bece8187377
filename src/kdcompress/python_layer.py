"""The functions that Python callers get: those of the API, with full signatures, and errors that name parameters.

Errors are written in the terms of the command line. Here, and only here, they are translated: ``--max-drop 0.5`` is
``max_drop=0.5`` in Python.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import shlex
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from kdcompress import options as sets
from kdcompress.errors import UserError, usage_error
from kdcompress.option_set import Options, field_type
from kdcompress.signatures import documented, option_set_of, signature_of

F = TypeVar("F", bound=Callable[..., Any])

GIVEN = r"[a-z_]\w*=(?:\"[^\"]*\"|'[^']*'|[\w./…-]*[\w…])"
BESIDE = re.compile(rf"({GIVEN}) (?={GIVEN})")
VALUE = r"\"[^\"]*\"|[\w…/][\w.,=:/…-]*\w|[\w…]"
QUOTED = r"'[^']*'(?:\"'\"'[^']*')*"  # as shlex.quote has it, which writes an apostrophe in quotes of its own
COMMAND = re.compile(rf"\bkdcompress ([a-z]+(?:-[a-z]+)*)((?: (?!kdcompress )(?:{QUOTED}[.,;:)]*|[^\s`]+))*)")
WORD = re.compile(rf"{QUOTED}\S*|\S+")  # of what follows
# a flag, and what may be its value: a placeholder, a number, something in quotes, a spec or a word
FLAG = re.compile(rf"(?<![\w-])(no )?--(no-)?([a-z][a-z0-9-]*[a-z0-9])(?: ({QUOTED}|{VALUE}))?")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def public(function: F) -> F:
    """A function of the API as Python callers get it."""

    @functools.wraps(function)
    def call(*arguments: Any, **given: Any) -> Any:
        from kdcompress.data.seeded import preserved  # here, since it imports torch

        _check_first(function, arguments)
        try:
            with preserved():  # a caller's loop would draw the same numbers after every training
                return function(*arguments, **given)
        except UserError as error:
            error.problem, error.remedy = in_python(error.problem), in_python(error.remedy)
            error.args = (error.problem, error.remedy)
            raise
        except KeyboardInterrupt as stop:
            if remedy := getattr(stop, "remedy", ""):
                stop.remedy = in_python(remedy)  # type: ignore[attr-defined]
            raise

    call.__signature__ = signature_of(function)  # type: ignore[attr-defined]
    call.__doc__ = documented(function)
    return typing.cast(F, call)


def _check_first(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Refuse a run, a model or options of another function in the place of the options."""
    option_set = option_set_of(function)
    if next(iter(inspect.signature(function).parameters), "") != "options":
        return
    if option_set is None or not arguments or arguments[0] is None or isinstance(arguments[0], option_set):
        return
    first, name = arguments[0], function.__name__
    is_path = isinstance(first, (str, os.PathLike))
    value = repr(os.fspath(first)) if is_path else f"options of the kind {type(first).__name__}"
    fields = [field.name for field in dataclasses.fields(option_set)]
    main = next((field.name for field in dataclasses.fields(option_set) if field.metadata["argument"]), fields[0])
    main = "model" if "model" in fields else main
    remedy = f"Write kdcompress.{name}({main}={value if is_path else '…'}, …), or give one {option_set.__name__}."
    raise usage_error(f"{name} takes its options by name, not {value}.", remedy)


def in_python(text: str) -> str:
    """``text`` with flags as parameters and commands as functions."""
    parts, at = list[str](), 0
    for found in COMMAND.finditer(text):
        call, rest = _call(*found.groups())
        parts += [_sentence(text[at : found.start()]), call, _sentence(rest)]
        at = found.end()
    return "".join([*parts, _sentence(text[at:])])


def _sentence(text: str) -> str:
    """Text between commands, with flags as parameters."""
    text = BESIDE.sub(r"\1, ", FLAG.sub(_parameter, text))
    for name in _arguments():
        text = re.sub(rf"(?<![\w=/\\.-]){name.upper()}(?![\w=/\\-]|\.\w)", name, text)  # not in a path
    return text


def _parameter(found: re.Match[str]) -> str:
    without, negative, name, value = found.groups()
    name, rest = name.replace("-", "_"), f" {value}" if value else ""
    if name not in _fields():
        return found.group()
    kind, choices = _fields()[name]
    if kind is bool:
        return f"{name}={not (without or negative)}{rest}"
    before = without or ""
    if value is None or not _is_value(value, kind, choices):
        return f"{before}{name}={rest}"
    if value[0] == "'":
        value = value if value.count("'") == 2 and "\\" not in value else _string(_unquoted(value))
    elif kind is str and value[0] != '"' and not PLACEHOLDER.fullmatch(value):
        value = _string(value)
    return f"{before}{name}={value}"


def _unquoted(word: str) -> str:
    """A word of a command as its program gets it."""
    try:
        return "".join(shlex.split(word)) if word.startswith("'") else word
    except ValueError:  # a quotation that does not end
        return word.strip("'")


def _string(value: str) -> str:
    """A value as Python source, in double quotes where it has none."""
    return repr(value) if '"' in value or "\\" in value else f'"{value}"'


def _is_value(text: str, kind: type, choices: tuple[str, ...]) -> bool:
    """Whether the word after a flag is its value, or the next one of the sentence."""
    if PLACEHOLDER.fullmatch(text) or text[0] in "'\"":
        return True
    if kind is not str:
        return bool(NUMBER.fullmatch(text))
    return text in choices or any(letter in "0123456789/_=:" for letter in text)


def _call(name: str, words: str) -> tuple[str, str]:
    """A command as a call, and the words after it that are not of it."""
    from kdcompress.cli import COMMANDS  # when something went wrong is early enough

    if name not in COMMANDS:
        return f"kdcompress {name}", words
    function, option_set = COMMANDS[name][0], getattr(sets, COMMANDS[name][1])
    fields = {field.name: field for field in dataclasses.fields(option_set)}
    argument = next((field.name for field in fields.values() if field.metadata["argument"]), "run")
    given, rest, ends = list[str](), WORD.findall(words), ""

    def word() -> str:
        """The next one, without the punctuation at its end, after which the sentence goes on."""
        nonlocal ends
        whole = rest.pop(0)
        bare = whole.rstrip(".,;:)")
        ends = whole[len(bare) :]
        return _unquoted(bare)  # it gets quotes of Python

    if rest and PLACEHOLDER.fullmatch(rest[0]):
        given.append(f"{argument}={word()}")
    elif rest and ("/" in rest[0] or rest[0].startswith("'")) and not rest[0].startswith("--"):
        given.append(f"{argument}={_string(word())}")
    while rest and not ends and rest[0].startswith("--"):
        option = word().removeprefix("--").replace("-", "_")
        kind = field_type(option_set, option) if option in fields else str
        kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if kind is bool:
            given.append(f"{option}=True")
        elif rest and not ends and not rest[0].startswith("--"):
            value = word()
            quoted = kind is str and not PLACEHOLDER.fullmatch(value)
            given.append(f"{option}={_string(value) if quoted else value}")
        else:
            given.append(f"{option}=…")
    inside = f"({', '.join(given)})" if given else ""
    return f"kdcompress.{function}{inside}", ends + "".join(f" {each}" for each in rest)


@functools.cache
def _fields() -> dict[str, tuple[type, tuple[str, ...]]]:
    """Type and choices of every option that a function takes."""
    found: dict[str, tuple[type, tuple[str, ...]]] = {}
    for kind in _option_sets():
        for field in dataclasses.fields(kind):
            own = field_type(kind, field.name)
            own = typing.get_args(own)[0] if typing.get_origin(own) is tuple else own
            found[field.name] = own, tuple(field.metadata["choices"])
    return found


@functools.cache
def _arguments() -> list[str]:
    """Names of the options that are positional on the command line."""
    fields = [field for kind in _option_sets() for field in dataclasses.fields(kind)]
    return sorted({field.name for field in fields if field.metadata["argument"]})


def _option_sets() -> list[type[Options]]:
    every = [getattr(sets, name) for name in sets.__all__]
    return [kind for kind in every if isinstance(kind, type) and kind is not sets.ShellOptions]
