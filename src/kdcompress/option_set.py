"""Options that check themselves, and where their values come from.

A value is taken from the caller (flag or keyword), else from the environment (``KDCOMPRESS_EPOCHS``), else from the
config file, else from the default. Nothing here knows a particular option, or imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from kdcompress import suggest, trust
from kdcompress.errors import kind_of, usage_error

T = TypeVar("T", bound="Options")

LONGEST_QUOTE = 60  # characters of user input that an error message quotes
MOST_NAME, MOST_TEXT = 255, 4096  # bytes of a file name, characters of a path


def option(
    default: Any,
    help: str,
    *,
    choices: Collection[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    panel: str | None = None,
    argument: bool = False,
    short: str | None = None,
    file: bool = False,
    affects_result: bool = True,
) -> Any:
    """A dataclass field with the metadata that the command line and the checks need.

    Args:
        low, high: Closed bounds. ``above`` and ``below`` are the open ones.
        panel: Heading under which ``--help`` lists it.
        argument: Positional on the command line.
        short: Another name of the flag, e.g. ``-0``.
        file: Names a file or folder that the command makes or reads.
        affects_result: Whether another value may give another result. Paths and progress display do not, and may
            change when a run is resumed.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, "panel": panel, "argument": argument, "file": file, **bounds}
    metadata.update(affects_result=affects_result, short=short)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class Options:
    """Base of all option sets; checks its values on construction.

    Raises:
        UserError: An unknown option, or a value of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, _checked(field, field_type(type(self), field.name), getattr(self, field.name)))

    @classmethod
    def resolve(
        cls: type[T],
        given: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> T:
        """Merge the sources of options; ``None`` in ``given`` means not given.

        ``py:…`` code may be run if the caller or the environment names it, not if only the config file does.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for key, value in (config or {}).items():
            name = str(key).replace("-", "_")
            if name not in names:
                raise _unknown(str(key), names, "in the config file")
            values[name] = value
        for name in names:
            if text := (environment or {}).get(variable(name)):
                values[name] = text.split() if typing.get_origin(field_type(cls, name)) is tuple else text
                trust.typed(values[name])
        for name, value in given.items():
            if name not in names:
                raise _unknown(name, names, "")
            if value is not None and value != ():
                values[name] = value
                trust.typed(value)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All options that are not None, as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
            if value is not None
        }

    def affecting_result(self) -> dict[str, Any]:
        """Options that affect the result, and so must not change when a run is resumed."""
        changeable = self.changeable()
        return {key: value for key, value in self.to_dict().items() if key not in changeable}

    @classmethod
    def changeable(cls) -> set[str]:
        """Names of the options that do not affect the result, and may change when a run is resumed."""
        return {field.name for field in dataclasses.fields(cls) if not field.metadata["affects_result"]}

    def differing(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """Keys of two records that differ; an option missing from an older ``then`` counts as its default."""
        known = {**type(self)().to_dict(), **then}
        return [key for key in {**then, **now} if known.get(key) != now.get(key)]

    def typed(self) -> list[str]:
        """The options that are not at their defaults, as a command line has them."""
        fields = {field.name: field for field in dataclasses.fields(self)}
        words: list[str] = []
        for name in self.changed():
            value, field = getattr(self, name), fields[name]
            if field.metadata["argument"]:
                words[:0] = map(_plainly, value if isinstance(value, tuple) else (value,))
            else:
                words += typed_flags(name, value)
        return words

    def changed(self) -> list[str]:
        """Names of the options that are not at their defaults."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]


_type_hints = functools.cache(typing.get_type_hints)  # half a millisecond per call, and --help needs every field


def field_type(cls: type, name: str) -> Any:
    """The type of a field, without ``None``."""
    hint = _type_hints(cls)[name]
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def flag(name: str) -> str:
    """``--batch-size`` for ``batch_size``."""
    return "--" + name.replace("_", "-")


def shown(name: str, value: Any) -> str:
    """An option as a user types it; ``no --name`` for None and False."""
    if value is None or value is False:
        return f"no {flag(name)}"
    return flag(name) if value is True else f"{flag(name)} {value}"


def typed_flags(name: str, value: Any) -> list[str]:
    """A flag as a command line has it, repeated for each of several values."""
    words: list[str] = []
    for each in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(each, bool):
            words.append(flag(name) if each else f"--no-{name.replace('_', '-')}")
        else:
            words += (flag(name), _plainly(each))
    return words


def _plainly(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def variable(name: str) -> str:
    """The environment variable of an option; several values in it are separated by spaces."""
    return f"KDCOMPRESS_{name.upper()}"


def _unknown(name: str, names: list[str], where: str) -> Exception:
    near = suggest.option(name, names)
    remedy = f"Did you mean {near!r}?" if near else f"Known options: {', '.join(sorted(names))}."
    return usage_error(f"Unknown option {name!r} {where}".rstrip() + ".", remedy)


def _checked(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    if value is None:
        return field.default
    if typing.get_origin(kind) is tuple:
        parts = value if isinstance(value, (list, tuple)) else [value]
        element = typing.get_args(kind)[0]
        return tuple(_checked_one(field, element, part) for part in parts)
    return _checked_one(field, kind, value)


def _checked_one(field: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    meta, name = field.metadata, flag(field.name)
    if isinstance(value, bool) and {"on", "off"} <= set(meta["choices"] or ()):  # as YAML reads them
        value = "on" if value else "off"
    try:
        value = _converted(kind, value)
    except (TypeError, ValueError, OverflowError):
        words = {int: ("a whole number", "3"), float: ("a number", "0.5"), bool: ("true or false", "true")}
        word, example = words.get(kind, ("text", "TEXT"))
        raise usage_error(f"{name} takes {word}, not {_quoted(value)}.", f"Write it like {name} {example}.") from None
    if isinstance(value, str):
        _check_text(name, value, meta["file"])
    if meta["choices"] and value not in meta["choices"]:
        near = difflib.get_close_matches(str(value), meta["choices"], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise usage_error(f"{name} {_quoted(value)} is unknown.", f"{hint}Choose from: {', '.join(meta['choices'])}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        good = meta["low"] <= value <= meta["high"] and meta["above"] < value < meta["below"]
        if not good or not math.isfinite(value):
            raise usage_error(f"{name} {_quoted(value)} is out of range.", f"It takes {_range(meta)}.")
    return value


def _quoted(value: Any) -> str:
    """The user's input, shortened; a nested value of a config file could be arbitrarily long."""
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST_QUOTE else f"{value[:LONGEST_QUOTE]}…")
    plain = isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 4 * LONGEST_QUOTE)
    return repr(value) if plain else kind_of(value)


def _check_text(name: str, value: str, is_file: bool) -> None:
    if not value.strip():
        raise usage_error(f"{name} is empty.", f"Give a value, or leave {name} out.")
    if "\0" in value:
        raise usage_error(f"{name} {_quoted(value)} contains a NUL character.", "Remove it.")
    if is_file and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise usage_error(f"{name} {_quoted(value)} is not valid UTF-8.", "Choose another name.")
    longest = max(len(os.fsencode(part)) for part in value.split(os.sep)) if is_file else 0
    if len(value) > MOST_TEXT or longest > MOST_NAME:
        limit = f"{MOST_NAME} bytes per name and {MOST_TEXT}" if is_file else f"{MOST_TEXT} characters"
        raise usage_error(f"{name} {_quoted(value)} is too long.", f"Give at most {limit} in all.")


def _converted(kind: type, value: Any) -> Any:
    if isinstance(value, (list, tuple, dict, set, bytes)):
        raise TypeError
    if kind is bool:
        if isinstance(value, bool):
            return value
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "on": True,
            "0": False,
            "false": False,
            "no": False,
            "off": False,
        }
        if str(value).lower() not in words:
            raise ValueError(value)
        return words[str(value).lower()]
    if isinstance(value, bool) or (kind is int and isinstance(value, float) and value != int(value)):
        raise ValueError
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, (str, int, float)) and not hasattr(value, "__index__"):  # a model in place of its name
        raise TypeError
    return kind(value)


def _range(meta: Mapping[str, Any]) -> str:
    parts = []
    for key, words in (("low", "at least"), ("above", "more than"), ("high", "at most"), ("below", "less than")):
        if math.isfinite(meta[key]):
            parts.append(f"{words} {meta[key]:.12g}")
    return "a number, " + " and ".join(parts) if parts else "a finite number"
