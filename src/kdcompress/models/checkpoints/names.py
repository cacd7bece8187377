"""From names of tensors in a file to those of the model: wrappers' prefixes, other code's names, leftovers."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcompress.errors import UserError, usage_error
from kdcompress.models.checkpoints.choosing import AVERAGED, TOP, Note, State
from kdcompress.models.checkpoints.order import COUNTER, in_order
from kdcompress.models.checkpoints.origins import origin_of

DEPTH = 5  # wrappers around each other
LEAST = 0.5  # of the model's names: with fewer, a prefix is a part of the network rather than a wrapper (our choice)
TOOLS = ("n_averaged", "total_ops", "total_params")  # of AveragedModel and of thop, beside the weights


@dataclass(frozen=True)
class Fit:
    """A state dict under the model's names, as far as they could be matched.

    Attributes:
        arguments: What the model must be built with besides, to compute what the checkpoint was trained with.
        note: How the names were matched; empty where they are the model's own.
    """

    state: State
    arguments: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class _Candidate:
    """The tensors below one prefix, under the model's names."""

    prefix: str
    rest: tuple[str, ...]  # names without the prefix
    fit: Fit
    rank: tuple[int, int, int, int]  # names that the model has, those of its shape, fewest others, fewest changes


def fit(state: State, model: nn.Module, source: Path, *, by_order: bool = False, note: Note | None = None) -> Fit:
    """Bring the names in a file to those of a model.

    Args:
        by_order: Take the tensors in their order, whatever they are called.
        note: Receives what was done to the names.

    Raises:
        UserError: Two networks in the file fit alike, or the order of the tensors does not.
    """
    own = model.state_dict()
    state, counters = _without_counters(state, own)
    result = _ordered(state, model, source) if by_order else _named(state, model, source)
    if note is not None:
        if counters:
            note(f"Notice: {source} has {', '.join(counters)} of other tools beside the weights; they are left out.")
        if result.note:
            note(f"Notice: {source}: {result.note}")
    return result


def _named(state: State, model: nn.Module, source: Path) -> Fit:
    own = model.state_dict()
    if state.keys() == own.keys() and all(state[name].shape == own[name].shape for name in own):
        return Fit(state)
    candidates = [candidate for part in _parts(state, own) for candidate in _candidates(*part, model)]
    best = max(candidates, key=lambda candidate: candidate.rank)
    alike = {each.prefix: each for each in reversed(candidates) if each.rank[:3] == best.rank[:3]}
    networks = [
        each for each in alike.values() if not any(each.prefix.startswith(o) for o in alike if o != each.prefix)
    ]
    if len(networks) > 1:
        averages = [each for each in networks if AVERAGED.search(each.prefix)]
        if len(networks) > 2 or len(averages) != 1:
            prefixes = ", ".join(sorted(each.prefix.rstrip(".") for each in networks))
            raise usage_error(f"{source} holds several networks that fit: {prefixes}.", "Choose: --weights-key KEY.")
        best = _chosen_average(averages[0], networks)
    elif AVERAGED.search(best.prefix) and best.rest:
        words = f"{best.fit.note} That is an average; the weights beside it: --weights-key {TOP}"
        best = replace(best, fit=replace(best.fit, note=words))
    if best.rank[0] < LEAST * sum(not name.endswith(COUNTER) for name in own):
        return Fit(by_timm(state, model))
    return _with_head(best, state, model)


def _chosen_average(average: _Candidate, networks: list[_Candidate]) -> _Candidate:
    """The moving average, with a note that names the network that it is the average of."""
    other = next(each.prefix for each in networks if each is not average).rstrip(".")
    words = f"it holds {other} and {average.prefix.rstrip('.')}; the average is taken. The other: --weights-key {other}"
    return replace(average, fit=replace(average.fit, note=words))


def _ordered(state: State, model: nn.Module, source: Path) -> Fit:
    matched = in_order(state, model)
    if matched is None:
        own = sum(not name.endswith(COUNTER) for name in model.state_dict())
        there = sum(not name.endswith(COUNTER) for name in state)
        what = f"{there} tensors for {own}" if own != there else "their shapes differ"
        raise UserError(
            f"The tensors of {source} do not match the architecture in order: {what}.",
            "Check --arch and its keys, or leave out match_by.",
        )
    return Fit(matched, {}, f"its {len(matched)} tensors are matched by their order and shapes; check with eval.")


def _without_counters(state: State, own: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    def is_counter(name: str) -> bool:
        return name not in own and name.rpartition(".")[2] in TOOLS

    dropped = {name.rpartition(".")[2] for name in state if is_counter(name)}
    return {name: value for name, value in state.items() if not is_counter(name)}, sorted(dropped)


def _parts(state: State, own: Mapping[str, Tensor]) -> Iterator[tuple[str, State, tuple[str, ...]]]:
    """Prefixes that a wrapper may have put before the names, the shortest first: tensors below them, other names."""
    yield "", state, ()
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, min(DEPTH, len(parts) - 1) + 1))
    least = LEAST * sum(not name.endswith(COUNTER) for name in own)
    for prefix in sorted(counts, key=len):
        if counts[prefix] >= least:
            inside = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            yield prefix, inside, tuple(name for name in state if not name.startswith(prefix))


def _candidates(prefix: str, part: State, rest: tuple[str, ...], model: nn.Module) -> Iterator[_Candidate]:
    own = {name: value for name, value in model.state_dict().items() if not name.endswith(COUNTER)}
    without = f"names begin with {prefix!r}, which is taken off." if prefix else ""
    if rest:
        without += f" {len(rest)} without it are left out ({rest[0]}{' …' if len(rest) > 1 else ''})."

    def candidate(state: State, arguments: dict[str, Any], words: str, changes: int) -> _Candidate:
        there = [name for name in own if name in state]
        shapes = sum(state[name].shape == own[name].shape for name in there)
        result = Fit(state, arguments, " ".join(filter(None, (without, words))))
        others = sum(name not in own and not name.endswith(COUNTER) for name in state)
        return _Candidate(prefix, rest, result, (len(there), shapes, -others, -changes))

    yield candidate(part, {}, "", 0)
    if (origin := origin_of(part)) and (renamed := origin.translate(part, model)) is not None:
        architecture = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture"))
        if not re.match(origin.only, architecture):
            problem = f"The weights are those of {origin.name}; {architecture} pads and normalises in another way."
            raise usage_error(problem, f"Give its twin: --arch {origin.only}{architecture}")
        how = "" if origin.renames else f", its {len(renamed)} tensors matched by their order and shapes"
        words = f"names are those of {origin.name}; timm's are put in their place{how}."
        yield candidate(renamed, origin.arguments_for(architecture), words, 1)
    translated = by_timm(part, model)
    if translated is not part:
        yield candidate(translated, {}, "", 2)


def by_timm(state: State, model: nn.Module) -> State:
    """Foreign names and sizes as the architecture's own file translates them; as they are where it cannot."""
    translate: Any = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        return dict(translate(dict(state), model))
    except Exception:  # made for names that this file does not have
        return state


def _with_head(best: _Candidate, state: State, model: nn.Module) -> Fit:
    """A linear layer elsewhere as the classifier, where that is all that is missing: a wrapper's, or a Sequential's."""
    own, fitted = model.state_dict(), best.fit.state
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    missing = [name for name in own if name not in fitted and not name.endswith(COUNTER)]
    if not isinstance(classifier, str) or missing != [f"{classifier}.weight", f"{classifier}.bias"]:
        return best.fit
    beside = {name: state[name] for name in best.rest}
    inside = {name: value for name, value in fitted.items() if name.startswith(f"{classifier}.")}
    tensors = inside or beside
    head = _linear_in(tensors) if len(inside) in (0, 2) else ""  # of more, the others would be lost
    if not head or tensors[f"{head}.weight"].shape[1:] != own[missing[0]].shape[1:]:
        return best.fit
    kept = {name: value for name, value in fitted.items() if name not in inside}
    both = {missing[0]: tensors[f"{head}.weight"], missing[1]: tensors[f"{head}.bias"]}
    words = f"names begin with {best.prefix!r}, which is taken off; " if best.prefix else ""
    return Fit({**kept, **both}, best.fit.arguments, f"{words}{head} is the classifier.")


def _linear_in(tensors: Mapping[str, Tensor]) -> str:
    """Name of the only linear layer with a bias; empty where there is none, or several."""
    matrices = [name for name, value in tensors.items() if name.endswith(".weight") and value.ndim == 2]
    head = matrices[0].removesuffix(".weight") if len(matrices) == 1 else ""
    return head if f"{head}.bias" in tensors else ""
