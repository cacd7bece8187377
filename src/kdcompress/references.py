"""What a reference names, judged by its text and the files that are there. Nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcompress.trust import PREFIX

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".tar", ".ckpt")
STDIN = "-"
LOCAL_DIR, HUB = "local-dir:", "hf-hub:"
UNLABELLED = "unlabelled:"  # before a folder of images without labels, as --data


@dataclass(frozen=True)
class Reference:
    """A network as the user names it.

    Attributes:
        text: A run folder, ``local-dir:PATH``, ``hf-hub:ORG/NAME``, a checkpoint file, or a model spec.
        arch: Model spec of a checkpoint file.
    """

    text: str
    arch: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it names trained weights: see :func:`has_weights`."""
        return has_weights(self.text)


def has_weights(text: str) -> bool:
    """Whether a reference names trained weights, not an architecture whose weights are drawn at random.

    What looks like a path counts even if nothing is there, so that the error is about the path. A bare name is the
    architecture, even where a folder has the same name; ``./NAME`` is the folder.
    """
    if text == STDIN or text.startswith((LOCAL_DIR, HUB)):
        return True
    if text.startswith(PREFIX):
        return False
    return is_checkpoint(text) or is_path(text) or (os.path.isdir(text) and not _is_architecture(text))


def is_of_timm(text: str) -> bool:
    """Whether a reference is an architecture by name, whose trained weights are timm's where there are any."""
    return not has_weights(text) and not text.startswith(PREFIX)


def is_checkpoint(text: str) -> bool:
    """Whether a reference is, or looks like, a checkpoint file."""
    return os.path.isfile(text) or Path(text).suffix in CHECKPOINT_SUFFIXES


def needs_arch(text: str) -> bool:
    """Whether a reference is a checkpoint file, whose architecture has to be named; an exported file is not."""
    return is_checkpoint(text) and Path(text).suffix.lower() != ".onnx"


def is_path(text: str) -> bool:
    """Whether a reference can only be a path: no architecture has a slash in its name."""
    return "/" in text.split(",")[0] or text in (".", "..")


def absolute(reference: str) -> str:
    """A reference, as it reads from any folder."""
    if reference.startswith(UNLABELLED):
        return UNLABELLED + os.path.abspath(reference.removeprefix(UNLABELLED))
    path = reference.removeprefix(LOCAL_DIR)
    return os.path.abspath(path) if os.path.exists(path) else reference


def paired(texts: Sequence[str]) -> list[Reference]:
    """References from a repeated option: after a checkpoint file comes the spec of its architecture.

    Example:
        >>> paired(["mine.pth", "resnet8_cifar", "lenet5"])
        [Reference(text='mine.pth', arch='resnet8_cifar'), Reference(text='lenet5', arch=None)]
    """
    references: list[Reference] = []
    rest = list(texts)
    while rest:
        text = rest.pop(0)
        references.append(Reference(text, rest.pop(0) if rest and is_checkpoint(text) else None))
    return references


def unpaired(reference: Reference) -> tuple[str, ...]:
    """The values of a repeated option that :func:`paired` reads as this reference."""
    return (reference.text,) if reference.arch is None else (reference.text, reference.arch)


def _is_architecture(text: str) -> bool:
    from timm.models import is_model  # only asked where a folder has such a name

    return bool(is_model(text.split(".")[0]))
