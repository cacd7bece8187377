"""Logits out of what a network of the user's own returns: a dict, a tuple or an output object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdcompress.errors import UserError

KEY = "logits"


def return_logits(model: nn.Module, name: str) -> None:
    """Make a network return its logits alone; names of its weights stay.

    ``logits``, as a key or an attribute, is taken; of a tuple or list the first, as timm does; of a dict with one
    tensor [B, K], that.

    Args:
        name: Of the network, in messages.
    """

    def hook(_module: nn.Module, _images: Any, output: Any) -> Any:
        return output if isinstance(output, Tensor) else logits_of(output, name)

    model.register_forward_hook(hook)


def logits_of(output: Any, name: str) -> Tensor:
    """The logits [B, K] in an output.

    Raises:
        UserError: There are none, or several tensors that may be.
    """
    logits: Any = output
    if isinstance(output, Mapping):
        tensors = [value for value in output.values() if isinstance(value, Tensor) and value.ndim == 2]
        logits = output.get(KEY, tensors[0] if len(tensors) == 1 else None)
    elif isinstance(getattr(output, KEY, None), Tensor):
        logits = getattr(output, KEY)
    elif isinstance(output, (tuple, list)):
        logits = output[0] if output else None
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        remedy = f"Return a tensor [B, K], or one as {KEY!r} of a dict or object, or first in a tuple."
        raise UserError(f"{name} returned {_what(output)}, without logits [B, K].", remedy)
    return logits


def _what(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a dict of {', '.join(map(str, list(output)[:5]))}" if output else "an empty dict"
    if isinstance(output, (tuple, list)):
        parts = [str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in output[:5]]
        return f"a {type(output).__name__} of {', '.join(parts)}" if parts else f"an empty {type(output).__name__}"
    return f"a {type(output).__name__}"
