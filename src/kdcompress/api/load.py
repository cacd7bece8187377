"""``kdcompress.load``: any trained network, from Python."""

from __future__ import annotations

import os
from typing import Any

from kdcompress import trust
from kdcompress.models.loading import Network, load_network


def load(
    reference: str | os.PathLike[str], arch: str | None = None, *, weights_key: str | None = None, **shape: Any
) -> Network:
    """Load a network by any reference that the commands take, with its transform and labels.

    Args:
        reference: A run folder, ``local-dir:PATH``, ``hf-hub:ORG/NAME``, a checkpoint file, or a model spec.
        arch: Model spec of a checkpoint file.
        weights_key: Which of several sets of weights in a checkpoint file, as a path with dots.
        shape: ``weights``, ``num_classes``, ``in_chans``, ``size``: as for
            :func:`~kdcompress.models.loading.load_network`.

    Raises:
        UserError: Nothing there, a checkpoint that does not fit, is truncated or holds code, unknown architecture.

    Example:
        >>> network = kdcompress.load("runs/gated")
        >>> logits = network.model(network.transform(Image.open("photo.jpg"))[None])
        >>> network.labels[logits.argmax()]
    """
    reference = os.fspath(reference)
    trust.typed((reference, arch))
    return load_network(reference, arch, key=weights_key, **shape)
