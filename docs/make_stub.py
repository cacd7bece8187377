"""Write src/kdcompress/__init__.pyi from the options, so that editors complete what the functions take::

python docs/make_stub.py
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import os
import re
import types
import typing
from pathlib import Path
from typing import Any

import kdcompress
from kdcompress import errors
from kdcompress.signatures import signature_of

STUB = Path(__file__).parent.parent / "src" / "kdcompress" / "__init__.pyi"
WIDTH = 120
HEADER = """# Written by docs/make_stub.py from the options; do not edit.

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal
"""


def stub() -> str:
    """The whole file."""
    api = importlib.import_module("kdcompress.api")
    imports: dict[str, set[str]] = {errors.__name__: {"UserError"}}
    functions = [_function(getattr(api, name), imports) for name in kdcompress.__all__ if name != "UserError"]
    lines = [_import(module, sorted(names)) for module, names in sorted(imports.items())]
    names = "".join(f'    "{name}",\n' for name in kdcompress.__all__)
    return "\n".join([HEADER, *lines, "", f"__all__ = [\n{names}]", "", *functions, ""])


def _import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return (
        line if len(line) <= WIDTH else f"from {module} import (\n" + "".join(f"    {each},\n" for each in names) + ")"
    )


def _function(function: Any, imports: dict[str, set[str]]) -> str:
    signature, star = signature_of(function), False
    lines = []
    for parameter in signature.parameters.values():
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY and not star:
            lines.append("*,")
            star = True
        prefix = "**" if parameter.kind == inspect.Parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is inspect.Parameter.empty else f" = {_literal(parameter.default)}"
        lines.append(f"{prefix}{parameter.name}: {_type(parameter.annotation, imports)}{default},")
        if parameter.kind == inspect.Parameter.POSITIONAL_ONLY:
            lines.append("/,")
    inner = "".join(f"    {line}\n" for line in lines)
    return f"def {function.__name__}(\n{inner}) -> {_type(signature.return_annotation, imports)}: ..."


def _type(annotation: Any, imports: dict[str, set[str]]) -> str:
    """A type as it is written; what it needs is added to ``imports``."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return " | ".join(_type(part, imports) for part in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(_literal, typing.get_args(annotation)))}]"
    if origin in (collections.abc.Iterator, collections.abc.Sequence, os.PathLike):
        name = "os.PathLike" if origin is os.PathLike else origin.__name__
        return f"{name}[{', '.join(_type(part, imports) for part in typing.get_args(annotation))}]"
    if origin is list:
        return f"list[{_type(typing.get_args(annotation)[0], imports)}]"
    if annotation is Any:
        return "Any"
    if annotation.__module__ != "builtins":
        module = re.sub(r"^(kdcompress\.options)\..*", r"\1", annotation.__module__)
        imports.setdefault(module, set()).add(annotation.__name__)
    return str(annotation.__name__)


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    STUB.write_text(stub())
