"""Folding BatchNorm may save time, but must never change what a frozen network says."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import kdcompress.models  # noqa: F401 - registers our networks
from kdcompress.models.fold import fold_batchnorm


def settled(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize("name", ["resnet8_cifar", "wrn_16_1_cifar", "lenet5", "test_efficientnet", "test_vit"])
def test_outputs_stay(name: str) -> None:
    """A teacher would teach something else than it knows."""
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=5))
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.allclose(model(x), fold_batchnorm(model)(x), rtol=1e-3, atol=1e-4)


def test_plain_layers_are_folded() -> None:
    """The frozen networks would cost what they need not."""
    folded = fold_batchnorm(settled(timm.create_model("resnet8_cifar")))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("residual_cascade", {"members": [{"architecture": "resnet8_cifar"}, {"architecture": "wrn_16_1_cifar"}]}),
        ("student_assistant", {"model": {"architecture": "resnet8_cifar"}, "widths": (0.9, 0.3)}),
    ],
)
@pytest.mark.parametrize("gate", [None, {"measure": "confidence", "thresholds": [0.2]}])
def test_stages_are_folded_one_by_one(name: str, given: dict[str, Any], gate: dict[str, Any] | None) -> None:
    """A gated cascade would cost what its stages need not, or lose its gate."""
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=5, gate=gate, **given))
    folded = fold_batchnorm(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == (7 if "members" in given else 0), (
        "a Wide ResNet has some that follow no convolution"
    )
    x = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x), folded(x), rtol=1e-3, atol=1e-4)
    assert (folded.gate is None) == (gate is None)


class Twice(nn.Module):
    """One convolution, two BatchNorm layers after it."""

    pretrained_cfg = {"input_size": (3, 8, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(x)))).mean((2, 3))


def test_a_convolution_that_runs_twice_is_left_alone() -> None:
    """A network of the user's own would silently give other logits."""
    model = settled(Twice())
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), fold_batchnorm(model)(x))


def test_the_copy_tells_what_the_model_tells() -> None:
    """Methods that look at feature maps would have to do without."""
    model = settled(timm.create_model("resnet8_cifar"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        final, maps = fold_batchnorm(model).forward_intermediates(x)
        expected_final, expected = model.forward_intermediates(x)
    for found, wanted in zip([final, *maps], [expected_final, *expected], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
