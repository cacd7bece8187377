"""``torch.compile`` for the duration of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from kdcompress.errors import first_line, usage_error


def check_compiler() -> None:
    """Compile a trivial function.

    Raises:
        UserError: ``torch.compile`` does not work on this machine.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # no C++ compiler, no headers, an unsupported platform
        problem = f"--compile does not work on this machine: {first_line(error)}"
        raise usage_error(problem, "Install a C++ compiler, or leave out --compile.") from error


@contextlib.contextmanager
def compiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules run compiled; the modules and their state-dict keys stay the same.

    Batch sizes may differ by one image, so shapes are compiled as dynamic.
    """
    chosen = list(modules)
    for module in chosen:
        module.compile(dynamic=True)
    try:
        yield
    finally:
        for module in chosen:
            module._compiled_call_impl = None
