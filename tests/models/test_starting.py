"""Trained weights for other classes, channels and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from kdcompress.errors import UserError
from kdcompress.models.assemble import as_cascade, joined, new_member, new_network
from kdcompress.models.build import ModelSpec, config_of
from kdcompress.models.loading import Network, load_network
from kdcompress.models.positions import trained_size
from kdcompress.models.starting import adapted, single

KINDS = ("resnet8_cifar,width=0.25", "lenet5", "test_vit", "test_efficientnet", "test_resnet", "test_convnext")


def trained(spec: str, classes: int = 5, channels: int = 3, size: tuple[int, int] = (32, 32)) -> Network:
    """A network with weights and statistics that no fresh one has."""
    network = new_network(ModelSpec.parse(spec), num_classes=classes, channels=channels, size=size, seed=7)
    with torch.no_grad():
        network.model.train()(2 * torch.randn(8, channels, *size) + 1)
        for parameter in network.model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    network.model.eval()
    return network


@torch.no_grad()
def features(network: Network, x: torch.Tensor) -> torch.Tensor:
    model: Any = network.model.eval()
    return model.forward_features(x)


@pytest.mark.parametrize("spec", KINDS)
def test_all_but_the_classifier_is_kept(spec: str) -> None:
    """A layer that is left at random makes the rest of the weights worthless, and nobody sees why."""
    given = trained(spec)
    other = adapted(given, num_classes=9, channels=3, size=(32, 32), seed=0)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(features(other, x), features(given, x))
    assert other.model(x).shape == (4, 9)
    assert other.num_classes == 9
    same = adapted(given, num_classes=5, channels=3, size=(32, 32), seed=0)
    assert torch.equal(same.model.eval()(x), given.model(x))
    assert same.fingerprint() == given.fingerprint()


@torch.no_grad()
@pytest.mark.parametrize("spec", ["resnet8_cifar,width=0.25", "test_vit", "test_resnet"])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3)])
def test_colours_become_grey_and_back(spec: str, old: int, new: int) -> None:
    """A first layer drawn anew has to be learned from scratch; on grey images both must see the same."""
    given = trained(spec, channels=old)
    other = adapted(given, num_classes=5, channels=new, size=(32, 32), seed=0)
    assert other.input_size == (new, 32, 32)
    assert len(other.prep.mean) == new
    grey = torch.randn(4, 1, 32, 32)
    theirs, ours = (grey.expand(-1, count, -1, -1) for count in (old, new))
    torch.testing.assert_close(other.model.eval()(ours), given.model(theirs), rtol=1e-3, atol=1e-4)


def test_a_transformer_for_another_size() -> None:
    """Position embeddings belong to a size; they are resampled, not drawn anew."""
    given = trained("test_vit", size=(64, 64))
    other = adapted(given, num_classes=5, channels=3, size=(96, 96), seed=0)
    assert other.input_size == (3, 96, 96)
    assert other.model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 5)
    own: Any = other.model
    theirs: Any = given.model
    old = theirs.patch_embed.grid_size
    expected = resample_abs_pos_embed(theirs.pos_embed, own.patch_embed.grid_size, old, theirs.num_prefix_tokens)
    torch.testing.assert_close(own.pos_embed, expected)
    assert torch.equal(own.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_vit2", 96), ("test_vit4", 160)])
def test_the_size_of_a_transformer_is_in_its_weights(tmp_path: Path, name: str, size: int) -> None:
    """At the architecture's own size the embeddings were resampled without a word, and accuracy fell."""
    model = timm.create_model(name, num_classes=5, img_size=size).eval()
    state = model.state_dict()
    assert trained_size(state, ModelSpec(name)) == (size, size)
    torch.save(state, tmp_path / "vit.pth")
    found = load_network(str(tmp_path / "vit.pth"), name)
    assert found.input_size == (3, size, size)
    assert "input_size" not in found.assumed
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(found.model(x), model(x))


def test_what_nobody_recorded_is_known_as_such(tmp_path: Path) -> None:
    """Only what is assumed may be changed to suit the data, and has to be said."""
    spec = "resnet8_cifar,width=0.25"
    torch.save(trained(spec).model.state_dict(), tmp_path / "net.pth")
    path = str(tmp_path / "net.pth")
    assert load_network(path, spec).assumed == {"input_size", "normalisation"}
    assert load_network(path, f"{spec},input_size=8").assumed == {"normalisation"}
    assert load_network(path, f"{spec},mean=0.5,std=0.2").assumed == {"input_size"}
    assert load_network(path, f"{spec},mean=0.5,std=0.2,input_size=8").assumed == set()
    assert load_network("resnet8_cifar", weights=False).assumed == set()


def test_the_member_of_a_cascade_of_one() -> None:
    """distill --method reskd makes such a cascade: it is one network."""
    given = trained("resnet8_cifar,width=0.25", size=(8, 8))
    found = single(as_cascade(given))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(found.model.eval()(x), given.model(x))
    assert config_of(found.model)["classifier"] == "fc"
    assert adapted(found, num_classes=3, channels=3, size=(8, 8), seed=0).model(x).shape == (2, 3)


def test_a_longer_cascade_is_not_one_network() -> None:
    """Fine-tuned as a whole on labels, its gate and its members would lose their meaning."""
    base = as_cascade(trained("resnet8_cifar,width=0.25", size=(8, 8)))
    longer = joined(base, new_member(ModelSpec.parse("lenet5"), base, 1))
    with pytest.raises(UserError, match="several networks") as caught:
        single(longer)
    assert "polish" in caught.value.remedy


def test_a_folder_of_timm_is_rebuilt_with_its_arguments(tmp_path: Path) -> None:
    """What was trained from it is saved with its architecture; without the arguments that loads another network."""
    from timm.models import save_for_hf

    model: nn.Module = timm.create_model("test_resnet", num_classes=5, in_chans=1)
    save_for_hf(model, str(tmp_path / "theirs"), safe_serialization=True)
    given = load_network(f"local-dir:{tmp_path / 'theirs'}")
    other = adapted(given, num_classes=7, channels=3, size=(32, 32), seed=0)
    assert other.model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
