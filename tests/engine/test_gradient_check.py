"""Wrong gradients are found and named before a training, and right ones are left alone."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcompress.engine.allocation import poisoned_memory
from kdcompress.engine.distributed import Place
from kdcompress.engine.fp32_layers import in_fp32
from kdcompress.engine.gradient_check import Numerics, checked
from kdcompress.methods.base import StudentTask
from kdcompress.methods.lwkd import LwKdTask, SoftTargetBank
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.build import ModelSpec, build

pytestmark = pytest.mark.attack("a kernel whose gradients are wrong")

CPU = Place(torch.device("cpu"), "bf16")
BF16 = Numerics("bf16", channels_last=False)


def batch(size: int = 8, channels: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(24, channels, size, size, generator=random), torch.randint(10, (24,), generator=random)


def task_of(spec: str, size: int = 8) -> SupervisedTask:
    model, _ = build(ModelSpec.parse(f"{spec},in_chans=1"), num_classes=10)
    return SupervisedTask(model)


def check(task: StudentTask, wanted: Numerics = BF16, size: int = 8) -> tuple[Numerics, list[str]]:
    notes: list[str] = []
    return checked(wanted, task, batch(size), CPU, notes.append), notes


# --- faults made on purpose: found on any machine


class Faulty(torch.autograd.Function):
    """A linear layer whose kernel is wrong in some way where ``wrong``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, wrong: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wrong = wrong
        return x @ weight.T * (-1 if wrong == "output" else 1)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Any:
        (given_,), (x, weight) = given, ctx.saved_tensors
        to_weight, to_x = given_.T @ x, given_ @ weight
        if ctx.wrong == "noise":
            to_weight = torch.randn_like(to_weight) * to_weight.std()
        elif ctx.wrong == "nan":
            to_weight = to_weight * float("nan")
        elif ctx.wrong == "half":
            to_weight = to_weight / 2
        elif ctx.wrong == "unwritten":
            to_weight = torch.empty_like(to_weight)
        elif ctx.wrong == "input":
            to_x = torch.randn_like(to_x)
        return to_x, to_weight, None


class Unreliable(nn.Linear):
    """Wrong in bf16, or with images in channels-last."""

    wrong, when = "", "bf16"

    def forward(self, x: Tensor) -> Tensor:
        last = x.dim() == 4 and not x.is_contiguous()
        low = torch.is_autocast_enabled("cpu")
        wrong = last if self.when == "channels-last" else low
        flat, weight = x.flatten(1), self.weight
        if low:
            flat, weight = flat.bfloat16(), weight.bfloat16()
        return Faulty.apply(flat, weight, self.wrong if wrong else "") + self.bias


class Between(nn.Module):
    """Wrong in what it computes between its layers, as a kernel for attention might be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.first(x)
        wrong = "input" if torch.is_autocast_enabled("cpu") else ""
        return self.second(Faulty.apply(middle, torch.eye(8, dtype=middle.dtype), wrong))


def around(layer: nn.Module) -> SupervisedTask:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())
    head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10))
    return SupervisedTask(nn.Sequential(body, layer, head))


@pytest.mark.parametrize("wrong", ["noise", "nan", "half", "input", "output", "unwritten"])
def test_a_wrong_layer_is_found_and_run_in_fp32(wrong: str) -> None:
    """A training on noise ends hours later in a bad network, or in advice to lower --lr."""
    if wrong == "unwritten" and sys.platform != "linux":
        pytest.skip("only glibc can fill what is allocated")
    layer = Unreliable(128, 8)
    layer.wrong = wrong
    found, notes = check(around(layer))
    assert found == Numerics("bf16", channels_last=False, fp32_layers=("1",))
    assert len(notes) == 1
    assert "bf16 gradients of 1 are wrong" in notes[0]
    layer.wrong = ""
    assert check(around(layer)) == (BF16, [])


def test_a_wrong_layout_is_given_up() -> None:
    """float32 has wrong kernels, too, and no precision makes up for a wrong layout."""
    layer = Unreliable(128, 8)
    layer.wrong, layer.when = "noise", "channels-last"
    for precision in ("fp32", "bf16"):
        found, notes = check(around(layer), Numerics(precision, channels_last=True))
        assert found == Numerics(precision, channels_last=False)
        assert len(notes) == 1
        assert "channels-last gradients of 1 are wrong" in notes[0]


def test_a_fault_between_layers_is_found() -> None:
    """Attention is computed between layers."""
    found, notes = check(around(nn.Sequential(nn.Flatten(), nn.Linear(128, 8), Between())))
    assert found.fp32_layers == ("1.2",)
    assert len(notes) == 1


def test_a_block_is_not_blamed_for_its_layer() -> None:
    """All of it would run in fp32. What a process remembers of the block holds no longer when its layer is mended."""

    class Wrong(Unreliable):
        wrong = "noise"

    class Pair(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    Wrong.__module__ = Pair.__module__ = "timm.layers.of_this_test"
    pair = Pair(nn.Linear(128, 8), Wrong(8, 8))
    found, notes = check(around(nn.Sequential(nn.Flatten(), pair)))
    assert found.fp32_layers == ("1.1.1",)
    assert len(notes) == 1


def test_a_fault_outside_of_layers_runs_all_in_fp32() -> None:
    """A task may compute something outside of any layer."""

    class Strange(SupervisedTask):
        def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
            result = super().forward(input, target)
            if torch.is_autocast_enabled("cpu"):
                result["loss"] = result["loss"] * float("inf")
            return result

    found, notes = check(Strange(around(nn.Sequential(nn.Flatten(), nn.Linear(128, 8))).trainable_module))
    assert found == Numerics("fp32", channels_last=False)
    assert len(notes) == 1
    assert "runs in fp32" in notes[0]


def test_a_loss_that_is_not_finite_in_fp32_either_changes_nothing() -> None:
    """NaN in the data would be blamed on the machine."""
    images, labels = batch()
    notes: list[str] = []
    task = around(nn.Sequential(nn.Flatten(), nn.Linear(128, 8)))
    assert checked(BF16, task, (images * float("nan"), labels), CPU, notes.append) == BF16
    assert notes == []


def test_the_check_changes_neither_task_nor_random_state() -> None:
    """A run that was checked would not be the one that its seed gives; LW-KD's discriminator learns in every step."""
    model, _ = build(ModelSpec.parse("resnet8_cifar,width=0.25,in_chans=1"), num_classes=10)
    task = LwKdTask(model, SoftTargetBank(torch.randn(10, 4, 10)), adversarial_weight=0.1)
    before = copy.deepcopy((task.state_dict(), task.get_task_state()))
    modes = [module.training for module in task.modules()]
    drawn = torch.get_rng_state()
    check(task, Numerics("bf16", channels_last=True))
    after = task.state_dict(), task.get_task_state()
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert modes == [module.training for module in task.modules()]
    assert not any(module._forward_pre_hooks for module in task.modules())


# --- layers in float32


def test_a_layer_in_fp32_is_the_same_layer() -> None:
    """Its weights would be saved by other names, or the moving average's copy would run in bf16 again."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    names, x = list(network.state_dict()), torch.randn(3, 4)
    with in_fp32(network, ["1", "gone"]):
        assert list(network.state_dict()) == names
        for each in (network, copy.deepcopy(network), torch.compile(network, backend="eager", fullgraph=True)):
            with torch.autocast("cpu", torch.bfloat16):
                found = each(x)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, network[1](network[0](x).bfloat16().float()), rtol=0.02, atol=0.02)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Linear]
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == torch.bfloat16


# --- this machine


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        ("resnet8_cifar", 8),
        ("resnet20_cifar,width=0.5", 16),
        ("lenet5", 8),
        ("test_efficientnet", 32),
        ("test_convnext", 32),
        ("test_vit,img_size=8,patch_size=2", 8),
        ("test_resnet", 32),
    ],
)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.usefixtures("bf16")
def test_no_notice_where_bf16_is_correct(spec: str, size: int, channels_last: bool) -> None:
    """Nobody reads a notice that comes in every training, and float32 is slow."""
    wanted = Numerics("bf16", channels_last)
    assert check(task_of(spec), wanted, size) == (wanted, [])


def right_in_bf16(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether a convolution's outputs and gradients are, found out without the product's check."""
    found = []
    for low in (True, False):
        image, kernel = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = F.conv2d(image, kernel, stride=stride, padding=weight.shape[-1] // 2)
        (y.float() * torch.arange(y.numel()).reshape(y.shape).remainder(7).sub(3)).sum().backward()
        assert kernel.grad is not None
        assert image.grad is not None
        found.append((y.detach().float(), kernel.grad, image.grad))
    return all(bool((one - other).norm() < 0.05 * other.norm()) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (1, 2), (3, 2)])
@pytest.mark.usefixtures("bf16")
def test_a_convolution_is_run_in_fp32_just_where_its_gradient_is_wrong(
    kernel: int, stride: int, layout: torch.memory_format
) -> None:
    """Of oneDNN's, those with stride 2 on 1 x 1 maps are memory that nobody wrote to: noise, or infinite."""
    for (cin, cout), side in [((64, 32), 1), ((48, 24), 1), ((16, 16), 1), ((32, 64), 2), ((64, 32), 4)]:
        torch.manual_seed(0)
        layer = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        network = nn.Sequential(nn.Identity(), layer, nn.BatchNorm2d(cout), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        task = SupervisedTask(nn.Sequential(*network, nn.Flatten(), nn.Linear(cout, 10)))
        x = torch.randn(31, cin, side, side).contiguous(memory_format=layout)
        with poisoned_memory():
            right = right_in_bf16(x, layer.weight.detach().contiguous(memory_format=layout), stride)
        wanted, notes = Numerics("bf16", layout is torch.channels_last), []
        found = checked(wanted, task, (x, torch.arange(31) % 10), CPU, notes.append)
        assert found.fp32_layers == (() if right else ("1",)), (cin, cout, side)
        assert len(notes) == len(found.fp32_layers)


@pytest.mark.parametrize("spec", ["test_resnet", "resnet18", "mobilenetv2_100"])
@pytest.mark.usefixtures("bf16")
def test_networks_on_small_images_get_the_gradients_of_fp32(spec: str) -> None:
    """What ImageNet networks do with 8 x 8 digits, by default: the loss was infinite after some steps, or all noise."""
    task = task_of(spec)
    network = task.trainable_module.to(memory_format=torch.channels_last)
    for scale in [each.weight for each in network.modules() if isinstance(each, nn.BatchNorm2d)]:
        nn.init.ones_(scale)  # timm's last one of a block begins at 0, which hides what is before it
    found, notes = check(task, Numerics("bf16", channels_last=True))
    assert found.precision == "bf16"
    assert len(notes) == bool(found.fp32_layers)
    images, labels = batch()
    images = images.contiguous(memory_format=torch.channels_last)

    def norms(layers: tuple[str, ...], low: bool = True) -> dict[str, Tensor]:
        network.zero_grad()
        with poisoned_memory(), in_fp32(network, layers), torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = task(images, labels)["loss"]
            loss.backward()
        return {name: each.grad.norm() for name, each in network.named_parameters() if each.grad is not None}

    exact, right, wrong = norms((), low=False), norms(found.fp32_layers), norms(())
    for name, norm in right.items():
        assert norm <= 10 * max(exact.values()), name
    assert all(not bool(wrong[f"{layer}.weight"] <= 1e6 * max(exact.values())) for layer in found.fp32_layers)
