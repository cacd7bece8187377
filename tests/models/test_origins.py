"""Other code's names for the same layers: the network must compute what it did there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import convnext, swin_transformer, vision_transformer

from kdcompress.errors import UserError
from kdcompress.models.checkpoints.names import fit
from kdcompress.models.loading import load_network


def vit() -> nn.Module:
    network = vision_transformer.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=5
    )
    nn.init.normal_(network.heads.head.weight)
    return network


def small_convnext() -> nn.Module:
    setting = [convnext.CNBlockConfig(*each) for each in ((8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1))]
    return convnext.ConvNeXt(setting, num_classes=5)


def swin() -> nn.Module:
    return swin_transformer.SwinTransformer([4, 4], 24, [1, 1, 2, 1], [1, 2, 4, 8], [7, 7], num_classes=5)


def uncommon(network: nn.Module) -> nn.Module:
    """Small variances: a different epsilon of the normalisation then shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.01, 0.1)
            nn.init.uniform_(module.weight, 0.1, 0.2)
    return network


WHOLE: dict[str, tuple[Any, str, int]] = {
    "vit": (vit, "vit_tiny_patch16_224,img_size=32,patch_size=8,embed_dim=48,depth=2,mlp_ratio=2", 32),
    "convnext": (
        small_convnext,
        "convnext_atto,depths=1/1/2/1,dims=8/16/24/32,conv_mlp=False,use_grn=False",
        64,
    ),
    "swin": (swin, "swin_tiny_patch4_window7_224,embed_dim=24,depths=1/1/2/1,num_heads=1/2/4/8", 224),
    "mobilenet_v3": (partial(torchvision.models.mobilenet_v3_small, num_classes=5), "mobilenetv3_small_100", 64),
    "mnasnet": (partial(torchvision.models.mnasnet0_5, num_classes=5), "mnasnet_050", 64),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_torchvisions_networks_compute_the_same(tmp_path: Path, name: str) -> None:
    """A teacher from torchvision would be refused, or run with another normalisation and lose accuracy."""
    make, arch, size = WHOLE[name]
    torch.manual_seed(0)
    expected = uncommon(make()).eval()
    torch.save(expected.state_dict(), tmp_path / "net.pth")
    notes: list[str] = []
    found = load_network(str(tmp_path / "net.pth"), arch, note=notes.append)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits = expected(images)
        torch.testing.assert_close(found.model(images) / logits.std(), logits / logits.std(), rtol=1e-4, atol=1e-4)
    assert "torchvision" in notes[0]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("resnet18", "resnet18"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mobilenet_v3_large", "mobilenetv3_large_100"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("efficientnet_v2_s", "efficientnetv2_s"),
        ("densenet121", "densenet121"),
        ("convnext_tiny", "convnext_tiny"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("regnet_y_400mf", "regnety_004"),
        ("mnasnet1_0", "mnasnet_100"),
        ("vgg11_bn", "vgg11_bn"),
        ("vgg16", "vgg16"),
    ],
)
def test_all_names_of_torchvision_are_translated(theirs: str, ours: str) -> None:
    """One name that is missed, and the whole checkpoint is refused."""
    with torch.device("meta"):
        # regnet draws its widths on the CPU
        state = _on_meta(getattr(torchvision.models, theirs))
        own = timm.create_model(ours)
    found = fit(state, own, Path("net.pth")).state
    expected = own.state_dict()
    assert not {name for name in expected if name not in found and not name.endswith("num_batches_tracked")}
    assert all(found[name].shape == expected[name].shape for name in found)


def _on_meta(make: Any) -> dict[str, Tensor]:
    with torch.device("cpu" if "regnet" in make.__name__ else "meta"):
        state: dict[str, Tensor] = make().state_dict()
    return {name: value.to("meta") for name, value in state.items()}


def to_efficientnet_pytorch(name: str, flat: dict[str, int]) -> str:
    """timm's names as the package EfficientNet-PyTorch has them, with blocks counted through."""
    parts = name.split(".")
    if parts[0] == "blocks":
        block = flat.setdefault(".".join(parts[:3]), len(flat))
        return f"_blocks.{block}._depthwise_conv.{'_'.join(parts[3:-1])}.{parts[-1]}"
    return f"_{name}"


def test_efficientnet_pytorch_is_matched_in_order(tmp_path: Path) -> None:
    """The most downloaded EfficientNet weights have names of their own, and blocks without stages."""
    torch.manual_seed(0)
    expected = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    flat: dict[str, int] = {}
    state = {to_efficientnet_pytorch(name, flat): value for name, value in expected.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    notes: list[str] = []
    found = load_network(str(tmp_path / "net.pth"), "tf_efficientnet_lite0", note=notes.append)
    assert found.num_classes == 3
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in expected.state_dict().items())
    assert "EfficientNet-PyTorch" in notes[0]
    with pytest.raises(UserError, match="pads and normalises in another way") as caught:  # all shapes fit
        load_network(str(tmp_path / "net.pth"), "efficientnet_lite0")
    assert "--arch tf_efficientnet_lite0" in caught.value.remedy


def to_conv2_x(name: str) -> str:
    """Our names as the CIFAR-100 code with ``conv2_x`` and ``residual_function`` has them."""
    for old, new in (
        ("downsample.", "shortcut."),
        (".conv1.", ".residual_function.0."),
        (".bn1.", ".residual_function.1."),
        (".conv2.", ".residual_function.3."),
        (".bn2.", ".residual_function.4."),
    ):
        name = name.replace(old, new) if name.startswith("layer") else name
    for stage in (1, 2, 3):
        name = name.replace(f"layer{stage}.", f"conv{stage + 1}_x.")
    return {"conv1.weight": "conv1.0.weight"}.get(name, name.replace("bn1.", "conv1.1.", 1))


@pytest.mark.parametrize(
    "rename", [to_conv2_x, lambda name: name.replace("downsample", "shortcut").replace("fc", "linear")]
)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_other_cifar_codes_names(tmp_path: Path, rename: Any, prefix: str) -> None:
    """Public CIFAR teachers would be refused for their spelling."""
    torch.manual_seed(0)
    expected = timm.create_model("resnet14_cifar", width=0.25).eval()
    state = {prefix + rename(name): value for name, value in expected.state_dict().items()}
    assert state.keys() != expected.state_dict().keys()
    torch.save({"net": state}, tmp_path / "net.pth")
    found = load_network(str(tmp_path / "net.pth"), "resnet14_cifar,width=0.25")
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in expected.state_dict().items())


def test_the_public_wide_resnets(tmp_path: Path) -> None:
    """`block1.layer` and `convShortcut` are the names of most Wide ResNets in distillation code."""
    torch.manual_seed(0)
    expected = timm.create_model("wrn_16_1_cifar", width=0.5).eval()
    names = {name: name.replace("downsample.0.", "convShortcut.") for name in expected.state_dict()}
    names = {name: f"block{new[5]}.layer{new[6:]}" if new.startswith("layer") else new for name, new in names.items()}
    torch.save({"model": {names[name]: value for name, value in expected.state_dict().items()}}, tmp_path / "net.pth")
    notes: list[str] = []
    found = load_network(str(tmp_path / "net.pth"), "wrn_16_1_cifar,width=0.5", note=notes.append)
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in expected.state_dict().items())
    assert "Wide ResNets" in notes[0]


def test_the_resnets_x4_of_the_distillation_literature() -> None:
    """resnet8x4 and resnet32x4, a stem of 32 before stages of 64, 128 and 256, are its usual teachers."""
    network = timm.create_model("resnet8_cifar", width=4, stem=32, num_classes=100)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["conv1.weight"] == (32, 3, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (64, 32, 1, 1)
    assert shapes["layer3.0.conv2.weight"] == (256, 256, 3, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_233_540
    assert [info["num_chs"] for info in network.feature_info] == [32, 64, 128, 256]
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    with pytest.raises(ValueError, match="stem=0"):
        timm.create_model("resnet8_cifar", stem=0)
