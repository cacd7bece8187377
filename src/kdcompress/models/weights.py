"""Weights from files into networks: every tensor in its place, of its shape and kind, and no code run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from kdcompress.errors import UserError
from kdcompress.models.checkpoints.choosing import Note, choose
from kdcompress.models.checkpoints.heads import classifier_tensors
from kdcompress.models.checkpoints.order import in_order
from kdcompress.models.checkpoints.reading import read_content
from kdcompress.models.staged import Staged

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def read_weights(path: Path, key: str | None = None, note: Note | None = None) -> dict[str, Tensor]:
    """The state dict in a file, without what is saved beside it.

    Args:
        key: Which of several sets of weights, as a path with dots: ``ema``, ``student.state_dict``.
        note: Receives which was taken, where there are several.

    Raises:
        UserError: Truncated, no weights, several sets of them, or pickled code (which is not run).
    """
    return choose(read_content(path), path, key, note)


def fill(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Strict loading that names the first tensor that does not fit.

    Raises:
        UserError: A tensor is missing, left over, of another shape or kind, quantized, or holds NaN; an infinite
            parameter.
    """
    own, learned = model.state_dict(), {name for name, _ in model.named_parameters()}
    for key, value in own.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                continue
            raise _misfit(source, f"the model's {key} {list(value.shape)} is not in it", model, state)
        if state[key].shape != value.shape:
            shape = list(state[key].shape)
            raise _misfit(source, f"{key} is {shape} there and {list(value.shape)} in the model", model, state)
    extra = next((key for key in state if key not in own), None)
    if extra is not None:
        raise _misfit(source, f"its {extra} {list(state[extra].shape)} is not in the model", model, state)
    for key in [key for key in own if key in state]:
        there = state[key]
        if there.is_meta:
            raise UserError(f"{source} holds no weights: {key} is on the meta device.", "Save the weights themselves.")
        if _other_kind(there, own[key]):
            # load_state_dict would take the stored integers for the weights
            what = f"{key} is {_type(there)} there and {_type(own[key])} in the model"
            remedy = "Give the weights before they were quantized or converted."
            raise UserError(f"{source} holds no weights that can be run: {what}.", remedy)
        _check_finite(key, there, source, learned=key in learned)
    model.load_state_dict(state, strict=False)


def check_finite(model: nn.Module, source: Path) -> None:
    """Raises:
    UserError: A tensor of a loaded network holds NaN, or a parameter infinity.
    """
    learned = {name for name, _ in model.named_parameters()}
    for key, value in model.state_dict().items():
        _check_finite(key, value, source, learned=key in learned)


def _check_finite(key: str, value: Tensor, source: Path, *, learned: bool) -> None:
    if value.is_floating_point() and value.isnan().any():
        raise UserError(f"{source} is broken: {key} holds NaN.", "Take an earlier checkpoint, or train anew.")
    if learned and value.isinf().any():  # a buffer may: a mask of attention
        raise UserError(f"{source} is broken: {key} holds infinity.", "Take an earlier checkpoint, or train anew.")


def _other_kind(there: Tensor, own: Tensor) -> bool:
    if own.is_floating_point():
        return not there.is_floating_point() or there.dtype.itemsize < 2
    return there.is_complex() != own.is_complex() or (there.dtype != own.dtype and "bool" in _type(there) + _type(own))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_gate(model: nn.Module, source: Path) -> None:
    """Raises:
    UserError: A gate that does not fit the stages.
    """
    if isinstance(model, Staged) and model.gate is not None:
        thresholds, stages = len(model.gate.thresholds), len(model.stages())
        if thresholds != stages - 1:
            problem = f"{source} has a gate of {thresholds} thresholds for {stages} stages."
            raise UserError(problem, "The folder is damaged; use another run, or run gate-calibrate anew.")


def _misfit(source: Path, detail: str, model: nn.Module, state: Mapping[str, Tensor]) -> UserError:
    own, heads = model.state_dict().keys(), classifier_tensors(model)
    remedy = "Check --arch and its keys (width, stem, shortcut …)."
    stems = [tuple(each["conv1.weight"].shape[2:]) for each in (state, model.state_dict()) if "conv1.weight" in each]
    if stems == [(3, 3), (7, 7)]:
        remedy = "Its first convolution is 3x3, as in code for CIFAR: --arch resnet18_3x3, resnet34_3x3, resnet50_3x3 …"
    if re.search(r"-\d+-of-\d+\.", source.name):
        remedy = "It is one of several files: give their folder, or the index beside them (….index.json)."
    elif own & heads and not state.keys() & heads and own - state.keys() <= heads:
        layers = tuple(f"{name.rpartition('.')[0]}." for name in heads)
        others = [name for name in state if name.startswith(layers)]
        remedy = "It has no classifier: give a fine-tuned network, or fine-tune it with kdcompress train-teacher."
        if others:
            code = "build the network in a function of yours, and give py:MODULE:FUNCTION"
            remedy = f"Its classifier may be of several layers ({', '.join(others[:3])}): {code}."
    elif own - state.keys() and all(key.endswith(STATISTICS) for key in own - state.keys()):
        remedy = "It lacks the statistics of BatchNorm: save all of model.state_dict(), not its parameters alone."
    elif not state.keys() & own and in_order(state, model) is not None:
        remedy = "By their order all tensors fit: add ,match_by=order to --arch, and check with eval."
    return UserError(f"{source} does not fit the architecture: {detail}.", remedy)
