"""Networks that are about to be trained, and cascades made of trained ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdcompress.data.preprocess import Preprocess, conversion
from kdcompress.models.build import PREPROCESSING, ModelSpec, build, config_of, default_config, shrink_classifier
from kdcompress.models.loading import Network
from kdcompress.models.own_input import OwnInput
from kdcompress.models.residual_cascade import ARCHITECTURE, ResidualCascade

INPUT_KEYS = (*PREPROCESSING, "num_classes")


def new_network(
    spec: ModelSpec, *, num_classes: int, channels: int, size: tuple[int, int], seed: int, pretrained: bool = False
) -> Network:
    """A network with weights drawn by ``seed``, or timm's pretrained ones.

    Raises:
        UserError: As :func:`~kdcompress.models.build.build`.
    """
    torch.manual_seed(seed)
    model, args = build(spec, num_classes=num_classes, in_chans=channels, size=size, pretrained=pretrained)
    if pretrained and num_classes != default_config(spec.name).get("num_classes"):
        shrink_classifier(model)
    config = config_of(model)
    prep = Preprocess.of(model)
    config.update(mean=prep.mean, std=prep.std)
    config.pop("label_names", None)
    return Network(model, spec.untagged, args, spec.name)


def new_member(spec: ModelSpec, base: Network, seed: int, pretrained: bool = False) -> Network:
    """A res-student that takes the input of ``base``, with weights drawn by ``seed``, or timm's pretrained ones."""
    prep = base.prep
    # members of one chain share its seed, but must not start as copies of each other
    seed += len(base.model_args.get("members", [base]))
    network = new_network(
        spec, num_classes=base.num_classes, channels=prep.channels, size=prep.size, seed=seed, pretrained=pretrained
    )
    take_input(network.model, base.model)
    return network


def as_cascade(network: Network) -> Network:
    """The network itself if it is a cascade, else a cascade of one member."""
    if isinstance(network.model, ResidualCascade):
        return network
    entry = {"architecture": network.architecture, "model_args": network.model_args}
    return _cascade([network.model], [entry], network)


def joined(cascade: Network, member: Network, sum_weight: float = 1.0) -> Network:
    """The cascade with one more member, beside which the sum so far weighs ``sum_weight``, and no gate."""
    model = as_cascade(cascade).model
    assert isinstance(model, ResidualCascade)
    entry = {"architecture": member.architecture, "model_args": member.model_args, "sum_weight": sum_weight}
    return _cascade([*model.members, member.model], [*as_cascade(cascade).model_args["members"], entry], cascade)


def cascade_of(networks: Sequence[Network], sum_weights: Sequence[float]) -> Network:
    """Networks as the members of one cascade, each with the input that it was trained on; those of a cascade singly.

    The cascade gets images as the network of the largest input does.

    Args:
        networks: Of the same classes and channels.
        sum_weights: Of each network but the first: what the logits before it weigh in the sum with its own.
    """
    like = max(networks, key=lambda network: math.prod(network.prep.size))
    models: list[nn.Module] = []
    members: list[dict[str, Any]] = []
    for number, network in enumerate(networks):
        whole = as_cascade(network)
        assert isinstance(whole.model, ResidualCascade)
        for position, (model, entry) in enumerate(zip(whole.model.members, whole.model_args["members"], strict=True)):
            own = {key: value for key, value in entry.items() if key not in ("input", "sum_weight")}
            if position:
                own["sum_weight"] = entry.get("sum_weight", 1.0)
            elif number:
                own["sum_weight"] = sum_weights[number - 1]
            given = conversion(like.prep, network.prep, entry.get("input"))
            if given != conversion(like.prep, like.prep):
                own["input"] = given
            models.append(model.network if isinstance(model, OwnInput) else model)
            members.append(own)
    return _cascade(models, members, like)


def _cascade(models: list[nn.Module], members: list[dict[str, Any]], like: Network) -> Network:
    args: dict[str, Any] = {"members": members, "in_chans": like.prep.channels}
    cascade, _ = build(ModelSpec(ARCHITECTURE, args), num_classes=like.num_classes, size=like.prep.size)
    assert isinstance(cascade, ResidualCascade)
    for own, trained in zip(cascade.members, models, strict=True):
        same = isinstance(own, OwnInput) == isinstance(trained, OwnInput)
        inside = own if same else own.get_submodule("network")
        inside.load_state_dict(trained.state_dict())
    take_input(cascade, like.model)
    return Network(cascade.eval(), ARCHITECTURE, args, like.reference, None, like.class_names, like.record, like.path)


def take_input(model: nn.Module, like: nn.Module) -> None:
    """Members of one cascade share one preprocessing."""
    config = config_of(like)
    config_of(model).update({key: config[key] for key in INPUT_KEYS if key in config})
