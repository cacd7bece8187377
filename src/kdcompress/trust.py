"""The only place that imports code by name: ``py:module:function``, and only if the user typed that name.

Files, pipes and search journals may name code, too, but whoever wrote them need not be the user. So a name is refused
unless it was given to this process as a flag, an environment variable or a keyword argument, or the user trusts all.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError, usage_error

PREFIX = "py:"
VARIABLE = "KDCOMPRESS_TRUST_CODE"
_typed: set[str] = set()


def typed(text: Any) -> None:
    """Remember code that the user's own input names, as a data set or in a model spec.

    Args:
        text: An option's value, or several.
    """
    if isinstance(text, (tuple, list)):
        for part in text:
            typed(part)
    elif isinstance(text, str) and text.split(",")[0].strip().startswith(PREFIX):
        _typed.update((text, text.split(",")[0].strip()))


def import_callable(spec: str) -> Callable[..., Any]:
    """The function that ``py:package.module:function`` names; the working directory is on the path.

    Raises:
        UserError: The user did not type this very name, it cannot be imported, or it is not callable.
    """
    if spec not in _typed and os.environ.get(VARIABLE, "").lower() not in ("1", "true", "yes", "on"):
        remedy = "If you trust that code, add --trust-code (in Python: KDCOMPRESS_TRUST_CODE=1 in the environment)."
        raise UserError(f"A file or a pipe names code to run: {spec}", remedy)
    module_name, _, name = spec.removeprefix(PREFIX).partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # importing an arbitrary module may fail in any way
        remedy = "Write py:package.module:function; the module must be importable from here."
        raise usage_error(f"{spec!r} cannot be imported: {error}", remedy) from error
    if not callable(function):
        raise usage_error(f"{spec!r} is not callable.", "Name a function.")
    return function
