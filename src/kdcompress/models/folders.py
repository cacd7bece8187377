"""Model folders of other tools: which of them hold a network of timm's, and where its weights and class names are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompress.errors import UserError
from kdcompress.models.checkpoints.shards import SUFFIX
from kdcompress.runs import CONFIG, RECORD, WEIGHTS, RunFolder

# in timm's order of preference, and the indices of weights in several files
FILES = (
    WEIGHTS,
    WEIGHTS + SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + SUFFIX,
    "pytorch_model.pth",
    "model.pth",
)
WRAPPER = "timm_wrapper"  # transformers' name of a network of timm's
# a file in a folder without a config of timm's -> what the folder is
OTHERS = {
    "adapter_config.json": "a PEFT adapter, not a whole network",
    "model_index.json": "a pipeline of diffusers",
    "saved_model.pb": "a SavedModel of TensorFlow",
    ".metadata": "a distributed checkpoint of PyTorch",
}


def is_theirs(run: RunFolder) -> bool:
    """Whether a folder is laid out in a way that is not a run's: other weights, class names by number, transformers.

    Raises:
        UserError: It is known what it is, and that is no network of timm's.
    """
    if (run.path / RECORD).is_file():
        return False
    if not (run.path / CONFIG).is_file():
        for name, what in OTHERS.items():
            if (run.path / name).is_file():
                raise UserError(f"{run.path} is {what}.", "Give a state_dict of the network, with --arch.")
        return False
    config = run.config()
    if "architecture" not in config and ("model_type" in config or "architectures" in config):
        raise _of_transformers(run.path, config)
    by_number = any(isinstance(part.get("label_names"), Mapping) for part in (config, _pretrained(config)))
    elsewhere = not (run.path / WEIGHTS).is_file() and ("model_args" in config or _index(run.path))
    return bool(config.get("model_type") == WRAPPER or by_number or elsewhere)


def weights_in(folder: Path) -> Path:
    """The file of weights, or the index of several.

    Raises:
        UserError: There is none.
    """
    found = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"The folder {folder} has no weights ({WEIGHTS}).", "Fetch or save them anew.")
    return found


def class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """In logit order; None where they are unknown, or numbered with gaps."""
    names = config.get("label_names") or _pretrained(config).get("label_names")
    if isinstance(names, Mapping):
        numbered = {str(number): name for number, name in names.items()}
        names = [numbered.get(str(number)) for number in range(len(numbered))]
        names = None if None in names else names
    return tuple(names) if names else None


def _pretrained(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("pretrained_cfg") or {}


def _index(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES if name.endswith(SUFFIX))


def _of_transformers(path: Path, config: Mapping[str, Any]) -> UserError:
    kinds = config.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds else config.get("model_type")
    return UserError(
        f"{path} holds a network of transformers ({kind}), not of timm.",
        "Give a function of yours that loads it: py:module:function (its .logits are used), or the timm name of it.",
    )
