"""Code that a file names is not run: ``py:module:function`` counts where the user typed it, not where it was found."""

from __future__ import annotations

import os
from typing import Any

from kdcompress.errors import UserError

VARIABLE = "KDCOMPRESS_TRUST_CODE"
_typed: set[str] = set()


def typed(spec: str) -> None:
    """The user named this code in this process."""
    _typed.add(spec)


def check_trusted(found: Any, where: str) -> None:
    """Look for ``py:`` references in what a file (or a pipe) says, however deep.

    Raises:
        UserError: One that the user neither typed nor allowed.
    """
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, (list, tuple)):
        for part in found:
            check_trusted(part, where)
    elif isinstance(found, str) and found.startswith("py:") and not _allowed(found):
        remedy = "If you trust that code, add --trust-code (in Python: KDCOMPRESS_TRUST_CODE=1 in the environment)."
        raise UserError(f"{where} names code that would be run: {found}.", remedy)


def _allowed(spec: str) -> bool:
    return spec.split(",")[0] in _typed or os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes", "on")
