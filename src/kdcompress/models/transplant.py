"""A student that starts from a deeper network of its family: layers of the teacher's that fit it (our choice).

That a shallower student starts from some of its teacher's layers is DistilBERT's idea (arXiv 1910.01108, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

LEAST = 0.5  # of the parameters: with less, the copied layers no longer fit each other (our choice)


def transplant(student: nn.Module, teacher: nn.Module) -> float:
    """Copy the teacher's weights, and statistics of norms, wherever a layer has a counterpart of the same shape.

    Where that would be less than half of the student, it is left as it is.

    Layers correspond by name. Where blocks are numbered and the teacher has more of them, the student's are spread over
    the teacher's: its first is the first, its last the last. A module's own tensors are copied all together, or none of
    them.

    Returns:
        The share of the student's parameters that fit, 0 to 1.

    Example:
        >>> transplant(timm.create_model("resnet20_cifar"), timm.create_model("resnet56_cifar"))
        1.0
    """
    fitting = [pair for pair in _counterparts(student, teacher) if _alike(*map(_held, pair))]
    count = sum(parameter.numel() for own, _ in fitting for parameter in own.parameters(recurse=False))
    share = count / sum(parameter.numel() for parameter in student.parameters())
    if share >= LEAST:
        with torch.no_grad():
            for own, given in fitting:
                there = _held(given)
                for name, tensor in _held(own).items():
                    tensor.copy_(there[name])
    return share


def _counterparts(student: nn.Module, teacher: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of corresponding modules."""
    yield student, teacher
    children, theirs = dict(student.named_children()), dict(teacher.named_children())
    names = _spread(list(children), list(theirs))
    for name, child in children.items():
        if names.get(name) in theirs:
            yield from _counterparts(child, theirs[names[name]])


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, not of its children."""
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _alike(here: dict[str, Tensor], there: dict[str, Tensor]) -> bool:
    return {name: tensor.shape for name, tensor in here.items()} == {name: there[name].shape for name in there}


def _spread(own: list[str], theirs: list[str]) -> dict[str, str]:
    """Names of the student's children -> names of the teacher's."""
    numbered = all(name.isdigit() for name in (*own, *theirs)) and len(own) < len(theirs)
    if not numbered:
        return {name: name for name in own}
    step = (len(theirs) - 1) / max(1, len(own) - 1)
    return {name: theirs[round(number * step)] for number, name in enumerate(own)}
