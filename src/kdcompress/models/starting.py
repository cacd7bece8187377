"""Trained weights as the start of another training: the same architecture for other classes, channels or sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.data.preprocess import Preprocess
from kdcompress.errors import UserError, usage_error
from kdcompress.models.assemble import take_input
from kdcompress.models.build import PREPROCESSING, ModelSpec, build, config_of, shrink_classifier
from kdcompress.models.checkpoints.heads import names_in
from kdcompress.models.checkpoints.names import by_timm
from kdcompress.models.loading import Network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged

GIVEN = ("num_classes", "in_chans", "img_size")  # arguments that follow from the data


def single(network: Network) -> Network:
    """The network itself, or the only member of a cascade of one.

    Raises:
        UserError: It has several stages.
    """
    if not isinstance(network.model, Staged):
        return network
    if not isinstance(network.model, ResidualCascade) or len(network.model.members) > 1:
        remedy = "Start from one network; kdcompress polish fine-tunes the members of a gated cascade together."
        raise usage_error(f"{network.reference} is a cascade of several networks.", remedy)
    member, (entry,) = network.model.members[0], network.model_args["members"]
    take_input(member, network.model)
    args = dict(entry.get("model_args") or {})
    return Network(
        member, entry["architecture"], args, network.reference, None, network.class_names, network.record, network.path
    )


def adapted(network: Network, *, num_classes: int, channels: int, size: tuple[int, int], seed: int) -> Network:
    """A network of the same architecture with the weights of ``network``, for other images or classes.

    For another number of classes, the classifier is new, drawn small by ``seed``. For other channels, the filters of
    the first layer are summed over colours, or spread evenly over them. Position embeddings are resampled as in timm.

    Args:
        network: A single network.
        num_classes, channels: What is wanted.
        size: (H, W).

    Raises:
        UserError: An architecture whose weights depend on the input size in a way that cannot be translated.
    """
    prep = network.prep
    args = {key: value for key, value in network.model_args.items() if key not in GIVEN}
    config = {key: getattr(prep, key) for key in PREPROCESSING if key != "input_size"}
    if channels != prep.channels:
        config.update(mean=(sum(prep.mean) / len(prep.mean),), std=(sum(prep.std) / len(prep.std),))
    torch.manual_seed(seed)
    name = ModelSpec(network.architecture).untagged
    model, args = build(ModelSpec(name, args, config), num_classes=num_classes, in_chans=channels, size=size)
    old = network.model.state_dict()
    same = network.num_classes == num_classes
    kept = old if same else _without_classifier(old, model, network.num_classes)
    state = _fitted(kept, model, prep.channels, channels)
    heads = tuple(f"{head}." for head in names_in(config_of(model).get("classifier")))
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        problem = f"The weights of {network.reference} cannot be used for images of {size[0]}x{size[1]}."
        remedy = f"Give the size that they were trained at: --input-size {prep.size[0]}x{prep.size[1]}."
        raise UserError(problem, remedy) from error
    if lost := [key for key in missing if key in kept or not (key in old or key.startswith(heads))]:
        problem = f"{network.architecture} has no weights for {lost[0]} in {network.reference}."
        raise UserError(problem, "Check the spec of its architecture.")
    if not same or not network.has_classifier:
        shrink_classifier(model)
    prepared = config_of(model)
    prepared.update({key: value for key, value in config.items() if key not in ("mean", "std")})
    own = Preprocess.of(model)
    prepared.update(mean=own.mean, std=own.std)
    prepared.pop("label_names", None)
    return Network(model, name, args, network.reference, network.arch, network.class_names)


def _without_classifier(state: dict[str, Tensor], new: nn.Module, classes: int) -> dict[str, Tensor]:
    """The weights without those that have a row for each of ``classes``, where ``new`` has another number of them."""
    own = new.state_dict()

    def is_head(key: str, value: Tensor) -> bool:
        return key in own and value.shape != own[key].shape and value.ndim > 0 and value.shape[0] == classes

    return {key: value for key, value in state.items() if not is_head(key, value)}


def _fitted(state: dict[str, Tensor], new: nn.Module, old_channels: int, channels: int) -> dict[str, Tensor]:
    """The weights with the shapes of ``new``: first layers of other channels, position embeddings of other sizes."""
    own = new.state_dict()
    fitted = {}
    for key, value in state.items():
        wanted = own[key].shape if key in own else value.shape
        other = value.ndim == 4 and value.shape[1] != wanted[1]
        if other and value.shape[1] * channels == wanted[1] * old_channels:
            value = _recoloured(value, old_channels, channels)
        fitted[key] = value
    if all(key not in own or own[key].shape == value.shape for key, value in fitted.items()):
        return fitted
    return by_timm(fitted, new)


def _recoloured(weight: Tensor, old: int, new: int) -> Tensor:
    """Filters [O, G * old, h, w] of images of ``old`` channels for images of ``new``: alike on grey images."""
    groups = weight.unflatten(1, (-1, old)).sum(2, keepdim=True) / new
    return groups.expand(-1, -1, new, -1, -1).flatten(1, 2)
