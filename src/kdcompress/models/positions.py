"""The image size that a transformer was trained at, read from its position embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcompress.models.build import ModelSpec, build

NAME = "pos_embed"


def trained_size(state: Mapping[str, Tensor], spec: ModelSpec) -> tuple[int, int] | None:
    """(H, W) of the images that weights with position embeddings were trained on; None where these do not tell.

    Without it, timm would silently resample the embeddings to the architecture's own size.

    Args:
        state: With one row of ``pos_embed`` for each patch, and for each class token [1, N, D]; or [1, H, W, D].
        spec: Of their architecture; where it says ``img_size``, that is the size.

    Raises:
        UserError: As :func:`~kdcompress.models.build.build`.
    """
    keys = [key for key in state if key == NAME or key.endswith(f".{NAME}")]
    if not keys or spec.is_code or "img_size" in spec.args:
        return None
    table = state[min(keys, key=len)]
    with torch.device("meta"):
        model: Any = build(spec)[0]
    patches: Any = getattr(model, "patch_embed", None)
    own = getattr(model, NAME, None)
    if own is None or table.ndim != own.ndim or not hasattr(patches, "patch_size"):
        return None
    height, width = patches.patch_size
    if table.ndim == 4:
        return table.shape[1] * height, table.shape[2] * width
    tokens = table.shape[1] - (own.shape[1] - patches.num_patches)
    side = math.isqrt(max(tokens, 0))
    return (side * height, side * width) if side and side * side == tokens else None
