"""Example images of a report, as small pictures within the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdcompress.api.reporting.measured import Measured
from kdcompress.data.images import ImageList
from kdcompress.data.preprocess import read_image
from kdcompress.report.facts import Example, Exit

SIDE = 96  # pixels of a picture, at most
SMALL = 32  # up to this side, images are kept as they are, and enlarged by the browser
QUALITY = 80
NEAREST = 50  # images among which those of other classes come first


def exits(found: Measured, images: ImageList, ids: np.ndarray, names: Sequence[str], count: int) -> list[Exit]:
    """The images that stop after each stage; of a network without a gate, all of them as one group.

    Args:
        images, ids: Of the split, in the order of the scores.
        names: Of the classes.
        count: Examples of each kind.
    """
    channels = found.network.prep.channels
    shown = []
    for stage, rate in enumerate(found.exit_rates):
        if found.gate is None and stage != len(found.macs) - 1:
            continue
        here = found.stopped == stage
        examples = {
            kind: [_example(found, images, int(ids[position]), position, names, channels) for position in positions]
            for kind, positions in _chosen(found, here, count).items()
        }
        right = found.right[:, here].double().mean(1).mul(100).tolist() if bool(here.any()) else None
        name = f"exit {stage + 1}" if found.gate is not None else "all images"
        shown.append(
            Exit(
                name,
                int(here.sum()),
                rate,
                right[-1] if right else None,
                right[len(found.macs) - 1] if right and found.gate is not None else None,
                {kind: own for kind, own in examples.items() if own},
            )
        )
    return shown


def _chosen(found: Measured, here: Tensor, count: int) -> dict[str, list[int]]:
    """Positions of examples: right and surest, right and least sure, wrong and surest; of several classes first."""
    confidence, right = found.probabilities[-1, :, 0], found.right[-1]

    def some(flags: Tensor, descending: bool) -> list[int]:
        positions = flags.nonzero()[:, 0]
        order = positions[torch.argsort(confidence[positions], descending=descending, stable=True)]
        labels = found.labels[order].tolist()
        again = [labels.index(label) != place for place, label in enumerate(labels[:NEAREST])]
        near = sorted(zip(again, order[:NEAREST].tolist(), strict=True), key=lambda entry: entry[0])
        return [position for _, position in near[:count]]

    surest = some(here & right, True)
    least = [position for position in some(here & right, False) if position not in surest]
    return {"surest": surest, "least sure": least, "wrong": some(here & ~right, True)}


def _example(
    found: Measured, images: ImageList, index: int, position: int, names: Sequence[str], channels: int
) -> Example:
    source, pixelated = picture(read_image(images, index, channels))
    return Example(
        source,
        names[int(found.labels[position])],
        names[int(found.classes[-1, position, 0])],
        float(found.probabilities[-1, position, 0]),
        pixelated,
    )


def picture(image: Image.Image) -> tuple[str, bool]:
    """A ``data:`` address of an image of at most 96 pixels a side, and whether it is to be enlarged as it is."""
    small = max(image.size) <= SMALL
    if not small:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if small:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", small
