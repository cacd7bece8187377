"""From a model spec to a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from kdcompress import trust
from kdcompress.errors import UserError
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec, build, config_of, default_config, shrink_classifier, zero_classifier

MODULE = """
from torch import nn

def linear(num_classes=10, in_chans=3, side=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * side * side, num_classes))

def number(num_classes=10, in_chans=3):
    return 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own."""
    (tmp_path / "models_of_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models_of_mine", raising=False)
    return "models_of_mine"


def problem_of(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        build(ModelSpec.parse(text), num_classes=10, in_chans=1)
    return caught.value


@pytest.mark.parametrize(
    ("text", "name", "args"),
    [
        ("resnet8_cifar", "resnet8_cifar", {}),
        (" resnet8_cifar , width=0.25,shortcut=A", "resnet8_cifar", {"width": 0.25, "shortcut": "A"}),
        ("m,a=1,b=true,c=none,d=-1e-3", "m", {"a": 1, "b": True, "c": None, "d": -1e-3}),
        ("m,a=1/2/3,b=x/2", "m", {"a": (1, 2, 3), "b": ("x", 2)}),
        ("py:package.module:function,width=2", "py:package.module:function", {"width": 2}),
        ("resnet18.a1_in1k,drop_rate=0.1", "resnet18.a1_in1k", {"drop_rate": 0.1}),
    ],
)
def test_spec_is_read(text: str, name: str, args: dict) -> None:
    """A key that arrives as text instead of a number builds another network than the one asked for."""
    spec = ModelSpec.parse(text)
    assert (spec.name, spec.args, spec.preprocessing) == (name, args, {})
    assert all(type(spec.args[key]) is type(value) for key, value in args.items())
    assert ModelSpec.parse(str(spec)) == spec, "a message names another network than the one that was meant"


def test_preprocessing_in_a_spec_is_kept_apart() -> None:
    """A foreign checkpoint with its own normalisation would get wrong input, and score like noise."""
    spec = ModelSpec.parse("resnet8_cifar,mean=0.1/0.2/0.3,std=0.5/0.6/0.7,input_size=24x40,crop_pct=0.9,width=2")
    assert spec.args == {"width": 2}
    model, args = build(ModelSpec(spec.name, {"width": 0.25}, spec.preprocessing), size=(24, 40))
    config = config_of(model)
    assert config["mean"] == (0.1, 0.2, 0.3)
    assert config["std"] == (0.5, 0.6, 0.7)
    assert config["input_size"] == (3, 24, 40)
    assert config["crop_pct"] == 0.9
    assert args == {"width": 0.25}


def test_one_number_is_a_mean_too() -> None:
    """For grey images mean=0.13 is the natural thing to write; it ended in a traceback."""
    spec = ModelSpec.parse("resnet8_cifar,width=0.25,mean=0.13,std=0.3")
    model, _ = build(spec, in_chans=1, size=(8, 8))
    assert (config_of(model)["mean"], config_of(model)["std"]) == ((0.13,), (0.3,))
    with pytest.raises(UserError, match="mean=grey"):
        ModelSpec.parse("resnet8_cifar,mean=grey")


@pytest.mark.parametrize("text", ["resnet8_cifar,width", "resnet8_cifar,=2", "resnet8_cifar,wi dth=2", "m,"])
def test_a_part_without_a_value_is_named(text: str) -> None:
    """A mistyped spec must not train for hours as something else."""
    with pytest.raises(UserError, match="key=value") as caught:
        ModelSpec.parse(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "near"),
    [("resnt20_cifar", "resnet20_cifar"), ("lenet-5", "lenet5"), ("convnext_tinny", "convnext_tiny")],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(text: str, near: str) -> None:
    """Without the suggestion a user has to search a list of a thousand names."""
    error = problem_of(text)
    assert text in error.problem
    assert near in error.remedy
    assert error.exit_code == 2


@pytest.mark.parametrize("text", ["resnet8_cifar,depth=3", "resnet8_cifar,width=-1", "test_resnet,foo=1"])
def test_arguments_that_do_not_fit_are_named(text: str) -> None:
    """A wrong key has to end in a line that names it, not in a traceback."""
    error = problem_of(text)
    assert text.split(",")[1].split("=")[0] in error.problem
    assert error.exit_code == 2


def test_the_arguments_returned_rebuild_the_network() -> None:
    """config.json holds these arguments: if they fall short, the saved weights fit nothing."""
    model, args = build(ModelSpec.parse("resnet8_cifar,width=0.25"), num_classes=7, in_chans=1, size=(8, 8))
    again = timm.create_model("resnet8_cifar", num_classes=7, **args)
    again.load_state_dict(model.state_dict())
    assert args == {"in_chans": 1, "width": 0.25}
    assert config_of(model)["num_classes"] == 7
    assert config_of(model)["input_size"] == (1, 8, 8)


def test_a_transformer_of_fixed_size_is_made_for_the_images() -> None:
    """A ViT on 32x32 images would fail at its first batch."""
    assert default_config("vit_tiny_patch16_224")["fixed_input_size"]
    model, args = build(ModelSpec("vit_tiny_patch16_224", {"depth": 1}), num_classes=5, in_chans=1, size=(32, 48))
    assert args["img_size"] == (32, 48)
    assert model(torch.zeros(2, 1, 32, 48)).shape == (2, 5)


def test_img_size_in_a_spec_decides_the_input() -> None:
    """timm's users write img_size; images of another size would be fed to it and crash the training."""
    model, _ = build(ModelSpec.parse("test_vit,img_size=48"), num_classes=5, size=(160, 160))
    assert config_of(model)["input_size"] == (3, 48, 48)


def test_a_network_of_the_users_own(module: str) -> None:
    """py: is the only way in for architectures that timm does not know."""
    trust.typed(f"py:{module}:linear")
    model, args = build(ModelSpec.parse(f"py:{module}:linear,side=4"), num_classes=5, in_chans=1, size=(4, 4))
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert args == {"in_chans": 1, "side": 4}
    assert config_of(model)["input_size"] == (1, 4, 4)


@pytest.mark.parametrize(
    ("tail", "words"),
    [("linear,depth=3", "depth"), ("number", "returned int"), ("missing", "missing")],
)
def test_a_callable_that_does_not_do_is_explained(module: str, tail: str, words: str) -> None:
    """The user's own slip must be told from ours."""
    trust.typed(f"py:{module}:{tail}")
    assert words in problem_of(f"py:{module}:{tail}").problem


@pytest.mark.parametrize("name", ["resnet8_cifar", "lenet5", "test_resnet", "test_vit", "test_efficientnet"])
def test_a_zero_classifier_says_nothing(name: str) -> None:
    """A res-student that starts with an opinion of its own spoils the sum it joins."""
    model, _ = build(ModelSpec(name), num_classes=6, in_chans=3, size=(32, 32))
    x = torch.randn(3, 3, 32, 32)
    assert model.eval()(x).abs().max() > 0
    zero_classifier(model)
    assert model(x).abs().max() == 0
    model(x).sum().backward()
    classifier = model.get_classifier()
    assert classifier.weight.grad.abs().max() > 0  # and it can still learn


def test_no_classifier_to_zero_is_said() -> None:
    """Going on silently would start the sum somewhere else than at the former student."""
    with pytest.raises(UserError, match="no classifier"):
        zero_classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "resnet8_cifar"])
def test_new_classes_start_small(name: str) -> None:
    """A large head destroys pretrained features: an EfficientNet lost 15 points within two epochs."""
    model = timm.create_model(name, num_classes=7)
    shrink_classifier(model)
    assert 0.005 < float(model.get_classifier().weight.detach().std()) < 0.02
    assert not model.get_classifier().bias.any()


def test_pretrained_weights_of_the_same_classes_keep_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the best part of what was paid for; other classes get a new one."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **args: create(name, **args))  # no network here
    spec = ModelSpec.parse("test_efficientnet")
    networks = [
        new_network(spec, num_classes=classes, channels=3, size=(32, 32), seed=0, pretrained=True)
        for classes in (1000, 7)
    ]
    spread = [float(network.model.get_classifier().weight.detach().std()) for network in networks]
    assert spread[0] > 0.015 > spread[1]
