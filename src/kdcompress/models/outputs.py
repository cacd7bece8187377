"""Logits out of what a network of the user's own returns: a dict, a tuple or an output object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn

from kdcompress.errors import UserError, kind_of
from kdcompress.models.checkpoints.choosing import Note

KEY = "logits"


def return_logits(model: nn.Module, name: str, num_classes: int | None = None, note: Note | None = None) -> None:
    """Make a network return its logits alone; names of its weights stay.

    A tensor [B, K] is taken as it is; ``logits``, as a key or an attribute; of a tuple or list the first, as timm does;
    of a dict with one tensor [B, K], that.

    Args:
        name: Of the network, in messages.
        num_classes: K, where it is known.
        note: Receives, once, which of several outputs is taken.
    """
    said = False

    def say(text: str) -> None:
        nonlocal said
        if note is not None and not said:
            said = True
            note(text)

    def hook(_module: nn.Module, _images: Any, output: Any) -> Any:
        return logits_of(output, name, num_classes, say)

    model.register_forward_hook(hook)


def logits_of(output: Any, name: str, num_classes: int | None = None, note: Note | None = None) -> Tensor:
    """The logits [B, K] in an output.

    Args:
        name, num_classes, note: As for :func:`return_logits`.

    Raises:
        UserError: There are none, or several tensors that may be.
    """
    logits: Any = output
    assumed = ""
    if isinstance(output, Mapping):
        if KEY in output:
            logits = output[KEY]
        else:
            keys = [key for key, value in output.items() if _fits(value, num_classes)]
            logits = output[keys[0]] if len(keys) == 1 else None
            if len(keys) == 1 and not num_classes:
                assumed = f"{name} returns {_what(output)}; {keys[0]} is taken as logits"
    elif isinstance(getattr(output, KEY, None), Tensor):
        logits = getattr(output, KEY)
    elif isinstance(output, (tuple, list)):
        logits = output[0] if output else None
        if sum(_fits(part, num_classes) for part in output) > 1:
            assumed = f"{name} returns {_what(output)}; the first is taken as logits"
    if not _fits(logits, num_classes):
        wanted = f"[B, {num_classes or 'K'}]"
        remedy = f"Return a tensor {wanted}, or one as {KEY!r} of a dict or object, or first in a tuple."
        raise UserError(f"{name} returned {_what(output)}, without logits {wanted}.", remedy)
    if assumed and note is not None:
        note(f"Notice: {assumed}.")
    return logits


def _fits(value: Any, num_classes: int | None) -> TypeGuard[Tensor]:
    """Whether a value can be logits; a network without a classifier (``num_classes=0``) may return any [B, D]."""
    return isinstance(value, Tensor) and value.ndim == 2 and (not num_classes or int(value.shape[1]) == num_classes)


def _shape(value: Any) -> str:
    return str([int(side) for side in value.shape]) if isinstance(value, Tensor) else type(value).__name__


def _what(output: Any) -> str:
    if isinstance(output, Mapping):
        parts = [f"{key} {_shape(value)}" for key, value in list(output.items())[:5]]
        return f"a dict of {', '.join(parts)}" if output else "an empty dict"
    if isinstance(output, (tuple, list)):
        parts = [_shape(part) for part in output[:5]]
        return f"{kind_of(output)} of {', '.join(parts)}" if parts else f"an empty {type(output).__name__}"
    return f"a tensor {_shape(output)}" if isinstance(output, Tensor) else kind_of(output)
