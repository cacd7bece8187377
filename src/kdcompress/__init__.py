"""Compress a trained image classifier by knowledge distillation, and report exactly what the result costs.

Every command is a function here, and importing the package registers its networks with timm. Heavy modules are imported
when they are first needed, because ``kdcompress --help`` imports this module, too. Editors and type checkers read
``__init__.pyi``.
"""

from __future__ import annotations

import importlib
from typing import Any

from kdcompress import timm_hook
from kdcompress.errors import UserError

__all__ = [
    "UserError",
    "add_res_student",
    "benchmark",
    "cascade",
    "compress",
    "describe_data",
    "distill",
    "evaluate",
    "export_network",
    "gate_calibrate",
    "load",
    "manage_cache",
    "polish",
    "predict",
    "profile_flops",
    "push",
    "train_teacher",
    "verify",
    "watch",
    "write_report",
]

timm_hook.install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        from kdcompress.python_layer import public

        globals()[name] = public(getattr(importlib.import_module("kdcompress.api"), name))
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
