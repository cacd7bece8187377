"""Weights from files into networks: every tensor in its place, of its shape and kind, and no code run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcompress.errors import UserError, first_line
from kdcompress.models.staged import Staged


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without wrappers and prefixes (``state_dict``, ``module.``, EMA first).

    Raises:
        UserError: Truncated, no weights, or pickled code (which is not run).
    """
    from timm.models import load_state_dict

    try:
        state: Any = load_state_dict(str(path))
    except Exception as error:
        text = str(error)
        if "weights_only" in text:
            # "Unsupported operand": what follows is nothing that torch.save writes, a web page for instance
            foreign = "Unsupported operand" in str(error.__cause__)
            what = "is not a checkpoint of PyTorch" if foreign else "holds pickled code, which was not run"
            remedy = "Save its state_dict with safetensors, or with torch.save, and give that file."
            raise UserError(f"{path} {what}.", remedy) from error
        first = first_line(error)
        raise UserError(f"{path} cannot be read as weights: {first}", "It may be cut off; fetch it again.") from error
    if isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
        inner = [value for value in state.values() if isinstance(value, Mapping) and value]
        state = next((value for value in inner if all(isinstance(one, Tensor) for one in value.values())), {})
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path} holds no state_dict.", "Save the model's state_dict() and give that file.")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def translated(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Foreign names and sizes as the architecture's own file translates them (timm's ``checkpoint_filter_fn``)."""
    own = model.state_dict()
    if state.keys() == own.keys() and all(state[key].shape == own[key].shape for key in own):
        return state
    translate = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return dict(translate(state, model)) if translate is not None else state


def fill(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Strict loading that names the first tensor that does not fit.

    Raises:
        UserError: A tensor is missing, left over, of another shape, quantized, or holds NaN; an infinite parameter.
    """
    own, learned = model.state_dict(), {name for name, _ in model.named_parameters()}
    for key, value in own.items():
        if key not in state:
            if key.endswith("num_batches_tracked"):
                continue
            raise _misfit(source, f"the model's {key} {list(value.shape)} is not in it")
        if state[key].shape != value.shape:
            raise _misfit(source, f"{key} is {list(state[key].shape)} there and {list(value.shape)} in the model")
    extra = next((key for key in state if key not in own), None)
    if extra is not None:
        raise _misfit(source, f"its {extra} {list(state[extra].shape)} is not in the model")
    for key in [key for key in own if key in state]:
        there = state[key]
        if own[key].is_floating_point() and (not there.is_floating_point() or there.dtype.itemsize < 2):
            # load_state_dict would take the stored integers for the weights
            what = f"{key} is {_type(there)} there and {_type(own[key])} in the model"
            raise UserError(
                f"{source} holds no weights that can be run: {what}.", "Give the weights before they were quantized."
            )
        if there.is_floating_point() and there.isnan().any():
            raise UserError(f"{source} is broken: {key} holds NaN.", "Take an earlier checkpoint, or train anew.")
        if key in learned and there.isinf().any():  # a buffer may: a mask of attention
            raise UserError(f"{source} is broken: {key} holds infinity.", "Take an earlier checkpoint, or train anew.")
    model.load_state_dict(state, strict=False)


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


def _misfit(source: Path, detail: str) -> UserError:
    return UserError(
        f"{source} does not fit the architecture: {detail}.", "Check --arch and its keys (width, shortcut …)."
    )
