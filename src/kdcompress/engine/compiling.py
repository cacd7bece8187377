"""``torch.compile`` around a training, and only around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from kdcompress.errors import first_line, usage_error


def check_compiler() -> None:
    """Try it out on next to nothing.

    Raises:
        UserError: It does not work on this machine.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2))
    except Exception as error:  # no compiler, no headers, a platform that has none
        problem = f"--compile does not work on this machine: {first_line(error)}"
        raise usage_error(problem, "Install a C++ compiler, or leave it out.") from error


@contextlib.contextmanager
def compiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules run as compiled code; names of weights stay, and so do the modules.

    Sizes of batches differ by an image, so the code is made for any size at once.
    """
    chosen = list(modules)
    for module in chosen:
        module.compile(dynamic=True)
    try:
        yield
    finally:
        for module in chosen:
            module._compiled_call_impl = None
