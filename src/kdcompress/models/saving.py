"""A network as timm's ``local-dir`` layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from kdcompress.models.build import config_of
from kdcompress.runs import CONFIG, RunFolder


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
