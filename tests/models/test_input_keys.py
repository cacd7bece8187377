"""What a spec or a network says of its input: no slip of the pen, and nothing that timm says, is passed over."""

from __future__ import annotations

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from data.images import random_image
from kdcompress.data.prepared import _stream_transform
from kdcompress.data.preprocess import Preprocess
from kdcompress.errors import UserError
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec, build


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("mean=0.49/0.48", "mean has 2 numbers for 3 channels"),
        ("std=0.2/0.2/0.2/0.2", "std has 4 numbers for 3 channels"),
        ("mean=125.3/123.0/113.9", "is above 1"),
        ("std=63.0/62.1/66.7", "is above 1"),
        ("interpolation=bicubc", "'interpolation=bicubc' in the model spec is unknown"),
        ("crop_mode=stretch", "'crop_mode=stretch' in the model spec is unknown"),
        ("crop_pct=abc", "'crop_pct=abc' in the model spec is no share"),
        ("crop_pct=0", "is no share"),
    ],
)
def test_slips_are_named(keys: str, problem: str) -> None:
    """A teacher would see images that it was not trained on, and teach that."""
    with pytest.raises(UserError, match=problem) as caught:
        build(ModelSpec.parse(f"resnet8_cifar,{keys}"), num_classes=10, in_chans=3)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("mean=0.5,std=0.25", {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
        ("mean=0.49/0.48/0.45", {"mean": (0.49, 0.48, 0.45)}),
        ("crop_pct=0.9,interpolation=lanczos,crop_mode=border",
         {"crop_pct": 0.9, "interpolation": "lanczos", "crop_mode": "border"}),
    ],
)  # fmt: skip
def test_what_is_right_is_taken(keys: str, expected: dict[str, object]) -> None:
    prep = Preprocess.of(build(ModelSpec.parse(f"resnet8_cifar,{keys}"), num_classes=10, in_chans=3)[0])
    assert {name: getattr(prep, name) for name in expected} == expected


def test_photos_are_squashed_for_training_as_for_scoring() -> None:
    """A network would be fine-tuned on the centres of photos, and scored on whole ones."""
    prep = Preprocess((32, 32), 3, (0.5,) * 3, (0.5,) * 3, crop_mode="squash")
    image = Image.fromarray(np.repeat(np.arange(96, dtype=np.uint8)[None, :, None] * 2, 48, 0).repeat(3, 2))
    for augment in ("none", "crop-flip"):
        made = np.asarray(_stream_transform(prep, augment, 100)(image))
        assert made[0].max() - made[0].min() > 150, f"{augment}: both ends of the photo"


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_images_are_cropped_as_timm_crops_them(mode: str) -> None:
    """Strong networks of timm squash photos; with their centres alone, a teacher is less accurate than it is."""
    model = timm.create_model("test_resnet")
    model.pretrained_cfg.update(crop_mode=mode, crop_pct=0.9)
    image = random_image(0, (90, 60), "RGB").resize((300, 200))
    config = resolve_model_data_config(model)
    ours = Preprocess.of(model).eval_transform()(image)
    theirs = create_transform(**config, use_prefetcher=True)(image)
    assert config["crop_mode"] == mode
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_member_takes_the_crop_of_its_cascade() -> None:
    """The first member would see other images than the cascade says."""
    network = new_network(
        ModelSpec.parse("resnet8_cifar,crop_mode=squash"), num_classes=10, channels=3, size=(32, 32), seed=0
    )
    assert network.prep.crop_mode == "squash"
    assert network.prep.described() != Preprocess((32, 32), 3, network.prep.mean, network.prep.std).described()
