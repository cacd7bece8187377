"""Any reference to a trained network -> the network, ready to run.

Nothing that is loaded can run code: weights come from safetensors or from ``torch.load(weights_only=True)``. The one
exception is ``py:module:function``, which names code of the user's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from kdcompress.data.preprocess import Preprocess
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.models.build import ModelSpec, build, config_of, default_config
from kdcompress.models.staged import Staged
from kdcompress.runs import CONFIG, RECORD, WEIGHTS, RunFolder, open_run
from kdcompress.schema import Malformed, Pretrained, check

CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".tar", ".ckpt")


@dataclass
class Network:
    """A network and what is known about it.

    Attributes:
        model: In eval mode, on the CPU.
        architecture: timm's name, or ``py:module:function``.
        model_args: What rebuilds it besides the number of classes.
        reference: Finds it again from any folder.
        arch: The spec that ``reference`` needs, where it is a bare checkpoint.
        class_names: In logit order, where known.
        record: ``run.json`` of the run it comes from, else empty.
        path: The run folder, or None.
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, Any]
    reference: str
    arch: str | None = None
    class_names: tuple[str, ...] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @property
    def prep(self) -> Preprocess:
        return Preprocess.of(self.model)

    @property
    def num_classes(self) -> int:
        """Raises:
        UserError: A network of the user's own that does not say.
        """
        count = config_of(self.model)["num_classes"]
        if count is None:
            remedy = f"Add it to the reference: {self.reference},num_classes=10."
            raise usage_error(f"How many classes {self.reference} has is not known.", remedy)
        return int(count)

    @property
    def input_size(self) -> tuple[int, int, int]:
        prep = self.prep
        return (prep.channels, *prep.size)

    def staged(self, purpose: str) -> Staged:
        """The model as one of several stages.

        Raises:
            UserError: It is a single network.
        """
        if not isinstance(self.model, Staged):
            remedy = "Make a cascade first: kdcompress distill --method reskd, then kdcompress add-res-student."
            raise UserError(f"{self.reference} is a single network ({self.architecture}), {purpose}.", remedy)
        return self.model

    def fingerprint(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_network(reference: str, arch: str | None = None, *, weights: bool = True, **shape: Any) -> Network:
    """Load a network.

    Args:
        reference: A run folder, ``local-dir:PATH``, ``hf-hub:ORG/NAME``, a checkpoint file, or a model spec.
        arch: Model spec of a checkpoint file.
        weights: Whether a bare model spec has to come with timm's pretrained weights.
        shape: ``num_classes``, ``in_chans`` and ``size`` (H, W) of a bare model spec without weights.

    Raises:
        UserError: Nothing there, a checkpoint that does not fit, is truncated or holds code, unknown architecture.
    """
    path = Path(reference.removeprefix("local-dir:"))
    is_folder, is_file = os.path.isdir(path), os.path.isfile(path)  # unlike those of Path, they take any text
    if arch is not None and not is_file:
        what = "is a folder, which names its own" if is_folder else "names it itself, or is no file"
        raise usage_error(f"The architecture {arch} was given, but {reference} {what}.", "Leave it out.")
    if reference.startswith("local-dir:") or is_folder:
        return _from_folder(path)
    if is_file:
        return _from_checkpoint(path, arch)
    if reference.startswith("hf-hub:"):
        return _by_timm(reference)
    if path.suffix in CHECKPOINT_SUFFIXES or "/" in reference.split(",")[0]:
        raise UserError(f"There is no file or folder {reference}.", "Check the path.")
    return _from_spec(reference, weights, shape)


def _from_folder(path: Path) -> Network:
    run = RunFolder(path.absolute())
    if (run.path / CONFIG).is_file() and not (run.path / RECORD).is_file() and "model_args" not in run.config():
        return dataclasses.replace(_by_timm(f"local-dir:{run.path}"), path=run.path)  # none of ours
    run = open_run(path)
    config, record = run.config(), run.record()
    architecture, args = config.get("architecture"), dict(config.get("model_args") or {})
    if not isinstance(architecture, str):
        raise UserError(f"{run.path / CONFIG} names no architecture.", "The folder is damaged; use another run.")
    pretrained = config.get("pretrained_cfg") or {}
    classes = config.get("num_classes") or pretrained.get("num_classes")
    model = build(ModelSpec(architecture, args), num_classes=classes)[0]
    built = config_of(model)
    config_size = pretrained.get("input_size") or built["input_size"]
    if config_size[0] != built["input_size"][0]:
        problem = f"{run.path / CONFIG} has an input_size of {config_size[0]} channels, the network takes"
        raise UserError(f"{problem} {built['input_size'][0]}.", "The folder is damaged; use another run.")
    model.pretrained_cfg = {**pretrained, "input_size": config_size, "num_classes": classes}  # type: ignore[assignment]
    _check_gate(model, run.path / CONFIG)
    _fill(model, read_weights(run.path / WEIGHTS), run.path / WEIGHTS)
    names = config.get("label_names") or pretrained.get("label_names")
    return Network(
        model.eval(), architecture, args, str(run.path), None, tuple(names) if names else None, record, run.path
    )


def _from_checkpoint(path: Path, arch: str | None) -> Network:
    if arch is None:
        remedy = "Name its architecture, e.g. --arch resnet56_cifar,shortcut=A (for a teacher: --teacher-arch)."
        raise usage_error(f"{path} is a bare checkpoint.", remedy)
    spec = ModelSpec.parse(arch)
    state = read_weights(path)
    size = spec.preprocessing.get("input_size")
    model, args = build(spec, size=size[1:] if size else None)
    filtered = _translated(state, model)
    config = config_of(model)
    shape: dict[str, Any] = {}
    head_name, stem_name = f"{config.get('classifier')}.weight", f"{config.get('first_conv')}.weight"
    head, stem = filtered.get(head_name), filtered.get(stem_name)
    if head is not None and "num_classes" not in spec.args:
        shape["num_classes"] = head.shape[0]
    if stem is not None and stem.ndim == 4 and "in_chans" not in spec.args:
        shape["in_chans"] = stem.shape[1]
    own = model.state_dict()
    if any(key in own and own[key].shape != filtered[key].shape for key in (head_name, stem_name) if key in filtered):
        model, args = build(spec, size=size[1:] if size else None, **shape)
    _fill(model, filtered, path)
    return Network(model.eval(), spec.name, args, str(path.absolute()), arch)


def _by_timm(reference: str) -> Network:
    """A model folder that others made, here or on the hub: in any of the layouts that timm knows."""
    try:
        model = timm.create_model(reference, pretrained=True)
    except UserError:
        raise
    except Exception as error:
        first = first_line(error)
        raise UserError(
            f"{reference} cannot be loaded: {first}", "Check the name, its files and the connection."
        ) from error
    config = config_of(model)
    try:
        check(config, Pretrained)
    except Malformed as error:
        raise UserError(f"{reference} has a config that cannot be used: {error}", "Mend its config.json.") from error
    names = config.get("label_names")
    architecture = config["architecture"]
    return Network(model.eval(), architecture, {}, reference, class_names=tuple(names) if names else None)


def _from_spec(reference: str, weights: bool, shape: dict[str, Any]) -> Network:
    spec = ModelSpec.parse(reference)
    if weights and not spec.is_code:
        config = default_config(spec.name)
        if not any(config.get(key) for key in ("url", "hf_hub_id", "file")):
            remedy = f"Train it: kdcompress train-teacher --model {reference}"
            raise UserError(f"{spec.name} has no pretrained weights.", remedy)
    size = spec.preprocessing.get("input_size")
    model, args = build(spec, pretrained=weights, **{"size": size[1:] if size else None, **shape})
    return Network(model.eval(), spec.name, args, reference)


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


def _translated(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Foreign names and sizes as the architecture's own file translates them (timm's ``checkpoint_filter_fn``)."""
    own = model.state_dict()
    if state.keys() == own.keys() and all(state[key].shape == own[key].shape for key in own):
        return state
    translate = getattr(importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None)
    return dict(translate(state, model)) if translate is not None else state


def _fill(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Strict loading that names the first tensor that does not fit.

    Raises:
        UserError: A tensor is missing, left over, of another shape, quantized, or holds NaN.
    """
    own = model.state_dict()
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
    model.load_state_dict(state, strict=False)


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_gate(model: nn.Module, source: Path) -> None:
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


def model_config(
    network: nn.Module, architecture: str, args: Mapping[str, Any], names: tuple[str, ...] | None
) -> dict[str, Any]:
    """``config.json`` in timm's ``local-dir`` layout."""
    pretrained = {
        key: value
        for key, value in config_of(network).items()
        if key not in ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "state_dict", "tag", "custom_load")
        and (value is not None or key in ("pool_size", "first_conv", "classifier"))
    }
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": pretrained["num_classes"],
        "num_features": getattr(network, "num_features", None),
        "model_args": {key: value for key, value in args.items() if key != "num_classes"},
        "pretrained_cfg": pretrained,
    }
    if names is not None:
        config["label_names"] = list(names)
    return json.loads(json.dumps({key: value for key, value in config.items() if value is not None}))


def save_network(run: RunFolder, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write ``config.json`` and the weights."""
    run.write_json(CONFIG, config)
    run.write_weights(model.state_dict())
