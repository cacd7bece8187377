"""ResNets of public CIFAR code, with four stages and a 3x3 first convolution."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcompress.errors import UserError
from kdcompress.flops import profile
from kdcompress.models.loading import load_network

ARCH = "resnet18_3x3,num_classes=10"


def kuangliu(name: str) -> str:
    """Names of https://github.com/kuangliu/pytorch-cifar."""
    return re.sub(r"^fc\.", "linear.", name.replace(".downsample.", ".shortcut."))


def conv2_x(name: str) -> str:
    """Names of https://github.com/weiaicunzai/pytorch-cifar100."""
    name = re.sub(r"^layer(\d)\.", lambda match: f"conv{int(match[1]) + 1}_x.", name)
    for ours, theirs in (("conv1", "0"), ("bn1", "1"), ("conv2", "3"), ("bn2", "4")):
        name = re.sub(rf"(conv\d_x\.\d+)\.{ours}\.", rf"\1.residual_function.{theirs}.", name)
    name = re.sub(r"^conv1\.", "conv1.0.", re.sub(r"^bn1\.", "conv1.1.", name))
    return name.replace(".downsample.", ".shortcut.")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet18_3x3", num_classes=10).eval()


@pytest.mark.parametrize("renamed", [kuangliu, conv2_x, lambda name: f"module.{kuangliu(name)}"])
def test_public_checkpoints_load(network: nn.Module, tmp_path: Path, renamed: object) -> None:
    """The commonest teachers of CIFAR fitted no architecture at all."""
    assert callable(renamed)
    state: dict[str, Tensor] = {renamed(name): value for name, value in network.state_dict().items()}
    torch.save({"net": state, "acc": 95.4, "epoch": 199}, tmp_path / "ckpt.pth")
    found = load_network(str(tmp_path / "ckpt.pth"), ARCH)
    assert found.prep.size == (32, 32)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.model(x), network(x))


def test_the_imagenet_form_is_not_what_they_are(network: nn.Module, tmp_path: Path) -> None:
    """The error named keys of the spec that this architecture does not have."""
    torch.save(network.state_dict(), tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match="does not fit") as caught:
        load_network(str(tmp_path / "ckpt.pth"), "resnet18,num_classes=10")
    assert "resnet18_3x3" in caught.value.remedy


def test_it_costs_what_is_known(network: nn.Module) -> None:
    """ResNet-18 of CIFAR code has 11.17 M parameters, and 0.56 G MACs."""
    assert sum(value.numel() for value in network.parameters()) == 11_173_962
    assert profile(network, (3, 32, 32)).macs == pytest.approx(0.556e9, rel=0.01)
    stages = timm.create_model("resnet18_3x3", features_only=True)
    sizes = [tuple(each.shape[2:]) for each in stages(torch.zeros(1, 3, 32, 32))]
    assert sizes == [(32 // reduction,) * 2 for reduction in stages.feature_info.reduction()]
