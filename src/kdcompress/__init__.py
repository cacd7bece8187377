"""Compress a trained image classifier by knowledge distillation, and report exactly what the result costs.

Every command is a function here, and importing the package registers its networks with timm. Heavy modules are imported
when they are first needed, because ``kdcompress --help`` imports this module, too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdcompress import timm_hook
from kdcompress.errors import UserError

if TYPE_CHECKING:
    from kdcompress.api.add_res_student import add_res_student
    from kdcompress.api.cache import manage_cache
    from kdcompress.api.describe import describe_data
    from kdcompress.api.evaluate import evaluate
    from kdcompress.api.gate import gate_calibrate
    from kdcompress.api.load import load
    from kdcompress.api.polish import polish
    from kdcompress.api.profile import profile_flops
    from kdcompress.api.train import distill, train_teacher
    from kdcompress.api.verify import verify

__all__ = [
    "UserError",
    "add_res_student",
    "describe_data",
    "distill",
    "evaluate",
    "gate_calibrate",
    "load",
    "manage_cache",
    "polish",
    "profile_flops",
    "train_teacher",
    "verify",
]

timm_hook.install()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("kdcompress.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
