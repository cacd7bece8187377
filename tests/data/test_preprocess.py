"""What reaches a network: pixels of the right size, channels and scale."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcompress.data import InputAdapter, Preprocess, choose_channels, choose_size, load_source, parse_size
from kdcompress.data.preprocess import read_image
from kdcompress.errors import UserError
from kdcompress.options import DataOptions

from .images import MakeFolder, random_image

GREY = Preprocess((8, 8), 1, (0.5,), (0.25,))
COLOUR = Preprocess((12, 10), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class Images:
    """One image, as a split of a source."""

    labels = np.zeros(1, dtype=np.int64)

    def __init__(self, image: Image.Image) -> None:
        self._image = image

    def image(self, index: int) -> Image.Image:
        return self._image

    def name(self, index: int) -> str:
        return "the image"


def read(image: Image.Image, channels: int = 1) -> np.ndarray:
    return np.asarray(read_image(Images(image), 0, channels))


# --- reading ---


def test_sixteen_bit_grey_keeps_its_range() -> None:
    """Pillow would clip all that is brighter than 255 of 65535: white images."""
    values = np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)
    assert np.array_equal(read(Image.fromarray(values)), values >> 8)
    assert np.array_equal(read(Image.fromarray(values.astype(np.int32))), values >> 8)
    assert np.array_equal(read(Image.fromarray(values), 3), np.stack([values >> 8] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_is_read_as_pillow_converts_it(mode: str, channels: int) -> None:
    """A palette's indices would be taken for brightness, or an image with transparency have four channels."""
    image = random_image(0).convert(mode)
    expected = np.asarray(image.convert({1: "L", 3: "RGB"}[channels]))
    assert np.array_equal(read(image, channels), expected)


# --- sizes ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [("32", (None, 32, 32)), (28, (None, 28, 28)), ("24x40", (None, 24, 40)), ("1x28x30", (1, 28, 30))],
)
def test_input_sizes(text: Any, expected: Any) -> None:
    """Height and width would change places."""
    assert parse_size(text) == expected


@given(st.text(alphabet="0123x-., a", max_size=8).filter(lambda s: not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", s)))
@settings(deadline=None)
def test_anything_else_is_no_input_size(text: str) -> None:
    """A traceback, or images of size 0."""
    with pytest.raises(UserError) as caught:
        parse_size(text)
    assert repr(text) in caught.value.problem
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("size", "wanted", "fixed", "expected"),
    [
        ((12, 10), None, False, (12, 10)),  # small and alike: as they are
        ((12, 10), None, True, (32, 32)),  # an architecture of one size
        ((12, 10), "20x16", True, (20, 16)),  # the user's word
        ((12, 10), "3x20x16", False, (20, 16)),
        ((40, 10), None, False, (32, 32)),  # too large in one direction
    ],
)
def test_the_size_a_new_network_sees(
    make_folder: MakeFolder, size: tuple[int, int], wanted: str | None, fixed: bool, expected: tuple[int, int]
) -> None:
    """Small images would be blown up to 16 times the MACs, or --input-size be ignored."""
    source = load_source(str(make_folder(sizes=(size,))))
    assert choose_size(source, DataOptions(input_size=wanted), (32, 32), fixed) == expected


def test_the_channels_a_new_network_sees(make_folder: MakeFolder) -> None:
    """--input-size 1x32x32 would be ignored, or 2 channels end in a traceback."""
    source = load_source(str(make_folder()))
    assert choose_channels(source, DataOptions()) == 3
    assert choose_channels(source, DataOptions(input_size="24")) == 3
    assert choose_channels(source, DataOptions(input_size="1x24x24")) == 1
    with pytest.raises(UserError, match="2 channels"):
        choose_channels(source, DataOptions(input_size="2x24x24"))


# --- transforms ---


@pytest.mark.parametrize("prep", [GREY, COLOUR])
def test_an_image_of_the_right_size_is_not_touched(prep: Preprocess) -> None:
    """Small images would be blurred by a resize to their own size."""
    image = random_image(0, prep.size, "L" if prep.channels == 1 else "RGB")
    pixels = np.asarray(prep.eval_transform()(image))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(image).reshape(*prep.size, -1).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(12, 10), (40, 40), (7, 31), (31, 7), (1, 1)])
@pytest.mark.parametrize("wanted", [(16, 16), (12, 20), (20, 12)])
def test_any_image_comes_out_in_the_networks_size(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Mixed sizes or an odd shape would stop the training at some batch."""
    prep = Preprocess(wanted, 3, (0.5,) * 3, (0.5,) * 3)
    assert np.asarray(prep.eval_transform()(random_image(0, size))).shape == (3, *wanted)


def test_preprocess_follows_the_model() -> None:
    """A pretrained teacher would be fed with another normalisation, and be wrong."""
    cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic", "crop_pct": 0.9}
    cfg |= {"input_size": (3, 40, 48)}
    prep = Preprocess.of(timm.create_model("test_resnet", pretrained_cfg_overlay=cfg))
    assert prep == Preprocess((40, 48), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic", 0.9)


def test_a_grey_model_gets_one_mean() -> None:
    """A network for grey images would get three channels' normalisation."""
    cfg = {"mean": (0.1, 0.2, 0.3), "input_size": (1, 40, 48)}
    prep = Preprocess.of(timm.create_model("test_resnet", in_chans=1, pretrained_cfg_overlay=cfg))
    assert prep.channels == 1
    assert len(prep.mean) == len(prep.std) == 1
    assert prep.mean[0] == pytest.approx(0.2)


# --- from one network's input to another's ---


def normalised(pixels: torch.Tensor, prep: Preprocess) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (prep.mean, prep.std))
    return (pixels / 255 - mean) / std


def test_the_adapter_renormalises() -> None:
    """A teacher of another normalisation would teach nonsense."""
    other = Preprocess(COLOUR.size, 3, (0.5, 0.4, 0.45), (0.2, 0.3, 0.25))
    pixels = torch.randint(0, 256, (4, 3, 12, 10)).float()
    adapted = InputAdapter.between(COLOUR, other)(normalised(pixels, COLOUR))
    assert torch.allclose(adapted, normalised(pixels, other), atol=1e-5)
    x = normalised(pixels, COLOUR)
    assert InputAdapter.between(COLOUR, COLOUR)(x) is x, "the same input costs nothing"


@pytest.mark.parametrize("wanted", [(24, 20), (6, 5), (16, 16)])
def test_the_adapter_resizes(wanted: tuple[int, int]) -> None:
    """A teacher of another input size would refuse the student's images."""
    x = torch.ones(2, 3, 12, 10) * torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    y = InputAdapter.between(COLOUR, Preprocess(wanted, 3, COLOUR.mean, COLOUR.std))(x)
    assert y.shape == (2, 3, *wanted)
    assert torch.allclose(y[:, 2], torch.full((2, *wanted), 2.0))


def test_the_adapter_leaves_no_trace_in_the_weights() -> None:
    """A saved model would hold tensors that timm does not know."""
    adapter = InputAdapter.between(COLOUR, Preprocess((24, 24), 3, (0.5,) * 3, (0.5,) * 3))
    assert not adapter.state_dict()
