"""What a network expects of its input, and how an input made for one network is turned into another's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdcompress.data.images import IMAGE_MODES, UNREADABLE, ImageList
from kdcompress.errors import UserError, usage_error

NAMED = 10  # files in a notice or an error
MOST_PIXELS = 65_536  # a side, of --input-size
CENTER = "center"


@dataclass(frozen=True)
class Preprocess:
    """Input of a network: size, channels, normalisation.

    Attributes:
        size: (H, W) in pixels.
        channels: 1 or 3.
        mean, std: Per channel, of values in [0, 1].
        interpolation: For resizing, one of timm's names.
        crop_pct: Share of the shorter side that the centre crop keeps; only where images have to be resized.
        crop_mode: How timm makes an image of the input's proportions: ``center``, ``squash`` or ``border``.
    """

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: str = CENTER

    def described(self) -> str:
        """All of it in a line: the same text for the same input."""
        values = dataclasses.astuple(self)
        return repr(values[:-1] if self.crop_mode == CENTER else values)  # as before there was another mode

    @classmethod
    def of(cls, model: nn.Module) -> Preprocess:
        """As a timm model's ``pretrained_cfg`` says."""
        from timm.data import resolve_model_data_config

        config = resolve_model_data_config(model)
        channels = config["input_size"][0]

        def adapted(values: tuple[float, ...]) -> tuple[float, ...]:
            if len(values) == channels:
                return tuple(values)
            return (sum(values) / len(values),) * channels

        return cls(
            size=tuple(config["input_size"][1:]),
            channels=channels,
            mean=adapted(config["mean"]),
            std=adapted(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config.get("crop_mode") or CENTER,
        )

    def eval_transform(self) -> Callable[[Image.Image], np.ndarray]:
        """timm's evaluation transform up to uint8 [C, H, W]; with ``crop_pct`` 1 the right size stays as it is."""
        from timm.data import create_transform

        return create_transform(
            (self.channels, *self.size),
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            mean=self.mean,  # the colour of a border
            use_prefetcher=True,
        )

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [B, C, H, W] as a network takes it: float32, by mean and standard deviation of each channel."""
        mean, std = (
            torch.tensor(values, device=pixels.device).mul(255).view(1, -1, 1, 1) for values in (self.mean, self.std)
        )
        return pixels.float().sub_(mean).div_(std)


class InputAdapter(nn.Module):
    """Turns a batch normalised for one network into one for another: [B, C, H, W] to [B, C, H', W'].

    Networks that work together may differ in size and normalisation; the pipeline makes each image once.

    Args:
        size: (H', W'); None to leave the size as it is.
        scale, shift: Per channel, ``x * scale + shift``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, size: Sequence[int] | None, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.same = all(value == 1 for value in scale) and not any(shift)
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1), persistent=False)

    @classmethod
    def between(cls, made_for: Preprocess, wanted: Preprocess) -> InputAdapter:
        """From the input of one network to that of another."""
        return cls(**conversion(made_for, wanted))

    def extra_repr(self) -> str:
        return f"size={self.size}, same={self.same}"

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None:
            x = nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)
        return x if self.same else x * self.scale + self.shift


def conversion(made_for: Preprocess, wanted: Preprocess, then: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of :class:`InputAdapter` from the input of one network to that of another.

    Args:
        then: Those of a further conversion, after this one.
    """
    size = list(wanted.size) if wanted.size != made_for.size else None
    mean, std, own_mean, own_std = map(torch.tensor, (made_for.mean, made_for.std, wanted.mean, wanted.std))
    scale, shift = std / own_std, (mean - own_mean) / own_std
    if then is not None:
        size, factor = then["size"] or size, torch.tensor(then["scale"])
        scale, shift = scale * factor, shift * factor + torch.tensor(then["shift"])
    return {"size": size, "scale": scale.tolist(), "shift": shift.tolist()}


def parse_size(text: str | int, channels: int | None = None) -> tuple[int | None, int, int]:
    """``32``, ``24x40`` or ``1x28x28`` as (channels or None, H, W).

    Raises:
        UserError: Not of that form.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", str(text), re.ASCII):
        raise usage_error(f"{text!r} is not an input size.", "Write a side (32), HxW (24x40) or CxHxW (1x28x28).")
    if any(len(part) > 6 or int(part) > MOST_PIXELS for part in str(text).split("x")):
        raise usage_error(
            f"The input size {str(text)[:60]} is out of range.", f"A side has at most {MOST_PIXELS} pixels."
        )
    parts = [int(part) for part in str(text).split("x")]
    if len(parts) == 1:
        return channels, parts[0], parts[0]
    if len(parts) == 2:
        return channels, parts[0], parts[1]
    return parts[0], parts[1], parts[2]


def read_image(images: ImageList, index: int, channels: int) -> Image.Image:
    """Image ``index`` in the mode of so many channels.

    Raises:
        UserError: The file is truncated or not an image; it is named.
    """
    try:
        return with_channels(images.image(index), channels)
    except UNREADABLE as error:
        raise bad_image(f"{images.name(index)}: {str(error).splitlines()[0] if str(error) else 'damaged'}") from error


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode in grey (1) or colour (3).

    Raises:
        ValueError: Pixels are floating-point numbers or have more than 16 bits: their range is not known.
    """
    if image.mode == "F":  # Pillow would clip them: those in [0, 1] are black
        raise ValueError("its pixels are floating-point numbers; convert it to 8 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("its pixels have more than 16 bits; convert it to 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))  # all by one factor, whatever their own range
    return image.convert(IMAGE_MODES[channels])


def check_image_channels(reference: str, channels: int) -> None:
    """Refuse a network that takes something else than images.

    Raises:
        UserError: It has another number of channels.
    """
    if channels not in IMAGE_MODES:
        problem = f"{reference} takes {channels} channels, and images have 1 or 3."
        raise UserError(problem, "Give a network that was trained on images.")


def bad_image(*problems: str) -> UserError:
    """The error of images that cannot be read.

    Args:
        problems: ``name: reason`` of each.
    """
    remedy = "Mend or remove it, or go on without it: --skip-bad-images."
    if len(problems) == 1:
        return UserError(f"Unreadable image {problems[0]}", remedy)
    more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    remedy = "Mend or remove them, or go on without them: --skip-bad-images."
    return UserError(f"{len(problems)} unreadable images: {'; '.join(problems[:NAMED])}{more}", remedy)
