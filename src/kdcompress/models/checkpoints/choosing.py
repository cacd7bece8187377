"""One state dict out of all that a file holds: beside the weights there are optimizers, averages, losses, counters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcompress.errors import UserError, kind_of, usage_error
from kdcompress.models.checkpoints.reading import Inert, quantized

State = dict[str, Tensor]
Note = Callable[[str], None]

TOP = "."  # key of what is not in a set of its own, without averages
DEPTH = 4  # mappings inside mappings
# what training keeps beside the networks
_NOT_NETWORKS = re.compile(r"optim|sched|scaler|criterion|loss|loops|rng|hparams|hyper_param|config|^args$")
AVERAGED = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)", re.IGNORECASE)


def choose(content: Any, path: Path, key: str | None = None, note: Note | None = None) -> State:
    """The state dict that a file was saved for.

    Of a network and its moving average the average is taken, as timm does; other sets of weights side by side are not
    chosen among.

    Args:
        content: What was read from the file.
        path: Names the file in messages.
        key: Where the weights are, as a path with dots: ``ema``, ``student.state_dict``; or a prefix of their names; or
            ``.`` for those at the top, without averages.
        note: Receives which weights were taken, where there are several.

    Raises:
        UserError: No weights, several sets of them, quantized ones, or none at ``key``.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {_what(content)}, not a state_dict.", _REMEDY)
    if key is not None:
        return _at(content, key, path)
    sets = dict(_sets(content))
    if not sets and _holds_arrays(content):
        remedy = "Save tensors: torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, FILE)."
        raise UserError(f"{path} holds weights as NumPy arrays, which are not unpickled.", remedy)
    if not sets:
        raise UserError(f"{path} holds no state_dict, but {_what(content)}.", _REMEDY)
    if len(sets) == 1:
        return _tensors(next(iter(sets.values())), path)
    averages = [name for name in sets if AVERAGED.search(name)]
    others = [name for name in sets if name not in averages]
    if len(averages) == 1 and len(others) == 1:
        taken = averages[0]
    elif not averages and all(_equal(sets[others[0]], sets[name]) for name in others[1:]):
        return _tensors(sets[others[0]], path)
    else:
        sizes = ", ".join(f"{name} ({_size(state)} parameters)" for name, state in sets.items())
        raise usage_error(f"{path} holds several sets of weights: {sizes}.", "Choose one: --weights-key KEY.")
    if note is not None:
        note(f"Notice: {path} holds {' and '.join(sets)}; {taken} is taken. Another: --weights-key KEY.")
    return _tensors(sets[taken], path)


_REMEDY = "Save the model's state_dict() and give that file."


def _sets(content: Mapping[Any, Any], where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All state dicts, by their path with dots."""
    if _is_state(content):
        yield where, content
        return
    inner = [
        each
        for name, value in content.items()
        if depth and isinstance(name, str) and isinstance(value, Mapping) and not _NOT_NETWORKS.search(name.lower())
        for each in _sets(value, f"{where}.{name}" if where else name, depth - 1)
    ]
    if inner:
        yield from inner
    elif any(isinstance(value, Tensor) and value.ndim > 1 for value in content.values()):
        yield where, content  # names without dots: a network that is one layer


def _is_state(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and "." in key and isinstance(content[key], Tensor) for key in content)


def _holds_arrays(content: Mapping[Any, Any], depth: int = DEPTH) -> bool:
    """Whether what stands in for NumPy's objects has the names of weights."""
    return any(
        (isinstance(value, Inert) and "." in str(name))
        or (depth > 0 and isinstance(value, Mapping) and _holds_arrays(value, depth - 1))
        for name, value in content.items()
    )


def _at(content: Mapping[Any, Any], key: str, path: Path) -> State:
    """The weights at a path with dots, the last parts of which may be a prefix of their names."""
    if key == TOP:
        return _tensors({name: value for name, value in content.items() if not AVERAGED.search(str(name))}, path)
    here: Any = content
    parts = key.strip(".").split(".")
    while parts and isinstance(here, Mapping):
        # names of mappings may themselves hold dots
        count = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in here), 0)
        if not count:
            break
        here, parts = here[".".join(parts[:count])], parts[count:]
    if parts and isinstance(here, Mapping):
        prefix = ".".join(parts) + "."
        here = _below(here, prefix)
    if not isinstance(here, Mapping) or not any(isinstance(value, Tensor) for value in here.values()):
        inner = dict(_sets(here)) if isinstance(here, Mapping) else {}
        if len(inner) == 1:
            return _tensors(next(iter(inner.values())), path)
        # a prefix of names in the only set that has it: messages call it so
        below = [found for state in dict(_sets(content)).values() if (found := _below(state, f"{key.strip('.')}."))]
        if len(below) == 1:
            return _tensors(below[0], path)
        there = [name for name, _ in _sets(content) if name] or sorted({str(name).split(".")[0] for name in content})
        raise usage_error(
            f"There are no weights at {key!r} in {path}.", f"--weights-key can be one of: {', '.join(there[:20])}."
        )
    return _tensors(here, path)


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if str(name).startswith(prefix)}


def _tensors(state: Mapping[str, Any], path: Path) -> State:
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if any(value.is_quantized for value in tensors.values()) or any("_packed_params" in str(key) for key in state):
        raise quantized(path)
    return tensors


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        not isinstance(one[key], Tensor) or (isinstance(other[key], Tensor) and torch.equal(one[key], other[key]))
        for key in one
    )


def _size(state: Mapping[str, Any]) -> str:
    count = sum(value.numel() for value in state.values() if isinstance(value, Tensor))
    return f"{count / 1e6:.2f} M" if count >= 10_000 else str(count)


def _what(content: Any) -> str:
    """What was saved in place of a state dict."""
    if isinstance(content, Tensor):
        return f"one tensor of shape {list(content.shape)}"
    if isinstance(content, (list, tuple)):
        kind = f"of {len(content)} tensors without names" if content and isinstance(content[0], Tensor) else ""
        return f"{kind_of(content)} {kind}".strip()
    if isinstance(content, Mapping):
        return f"a dict of {', '.join(map(str, list(content)[:5]))}" if content else "an empty dict"
    return kind_of(content)
