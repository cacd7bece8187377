"""A network's input size and normalisation where nothing records them: chosen for the data, and always printed."""

from __future__ import annotations

import dataclasses

from kdcompress.data import DataSource, Preprocess, choose_size
from kdcompress.models.build import config_of
from kdcompress.models.loading import INPUT_SIZE, NORMALISATION, Network, Note
from kdcompress.options import DataOptions


def is_fixed(network: Network) -> bool:
    """Whether the architecture takes images of one size only."""
    return bool(config_of(network.model).get("fixed_input_size"))


def settle_input(network: Network, source: DataSource, options: DataOptions, note: Note, where: str) -> None:
    """Let a network whose input size is not recorded see the images at their own size, where they are small and alike.

    Args:
        options: With ``input_size`` where the user chose the size of this network.
        note: Receives what is assumed.
        where: The option that names its architecture.
    """
    if INPUT_SIZE in network.assumed:
        size = choose_size(source, options, network.prep.size, is_fixed(network))
        config_of(network.model)["input_size"] = (network.prep.channels, *size)
    if options.input_size is not None or source.is_raw:
        network.assumed -= {INPUT_SIZE}
    if source.is_raw:  # such inputs are taken as they are
        network.assumed -= {NORMALISATION}
    note_assumed(network, note, where, own_size=network.prep.size == source.size)


def note_assumed(network: Network, note: Note, where: str, *, own_size: bool = False) -> None:
    """Say what is assumed of a network's input, and how to give something else.

    Args:
        own_size: Whether the size is that of the images.
    """
    prep, assumed, give = network.prep, [], []
    if INPUT_SIZE in network.assumed:
        height, width = prep.size
        assumed.append(f"{height}x{width} pixels ({'the size of the images' if own_size else 'the default'})")
        give.append("input_size=HxW")
    if NORMALISATION in network.assumed:
        assumed.append(f"{_normalisation(prep)} (the default)")
        give += ["mean=…", "std=…"]
    if assumed:
        spec = ",".join([network.arch or network.reference, *give])
        change = f"{where} {spec}" if network.arch is not None else spec
        note(
            f"Notice: {network.reference} does not record its input. Assumed: {' and '.join(assumed)}. "
            f"To change it: {change}"
        )


def recall_size(network: Network, size: list[int] | None) -> None:
    """Take the input size that an earlier command settled for a network."""
    if size is not None and INPUT_SIZE in network.assumed and size[0] == network.prep.channels:
        config_of(network.model)["input_size"] = tuple(size)
        network.assumed = frozenset()


def without_size(options: DataOptions) -> DataOptions:
    """The options without ``--input-size``, which is that of the network that is trained, not of its teacher."""
    return dataclasses.replace(options, input_size=None)


def _normalisation(prep: Preprocess) -> str:
    return f"mean={_per_channel(prep.mean)},std={_per_channel(prep.std)}"


def _per_channel(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
