"""Our CIFAR networks against the literature, timm's interface and public checkpoints."""

import io
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from kdcompress.models import cifar_resnet, cifar_wrn, lenet
from kdcompress.models.cifar_resnet import PadShortcut, checkpoint_filter_fn

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
CHECKPOINT = SHARED_DATA / "resnet56-cifar10.safetensors"
IMAGES = SHARED_DATA / "cifar10.zip"

NAMES = [*cifar_resnet.default_cfgs, *cifar_wrn.default_cfgs, *lenet.default_cfgs]
FAMILIES = ["resnet8_cifar", "wrn_16_1_cifar", "lenet5"]


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted from the shapes that really pass."""
    total = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * output[0].numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        network.eval()(image)
    return total


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet20_cifar", {"shortcut": "A"}, 269_722),
        ("resnet20_cifar", {}, 272_474),
        ("resnet56_cifar", {"shortcut": "A"}, 853_018),
        ("resnet56_cifar", {}, 855_770),
        ("resnet110_cifar", {"shortcut": "A"}, 1_727_962),
        ("wrn_16_2_cifar", {}, 691_674),
        ("wrn_16_2_cifar", {"num_classes": 100}, 703_284),
        ("wrn_40_2_cifar", {}, 2_243_546),
        ("wrn_28_10_cifar", {}, 36_479_194),
        ("lenet5", {"in_chans": 1}, 61_706),
    ],
)
def test_parameters_match_the_literature(name: str, options: dict, expected: int) -> None:
    """A user's compression ratio would be against a network that only carries the paper's name."""
    with torch.device("meta"):
        assert parameters(timm.create_model(name, **options)) == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet20_cifar", {}, 40.81e6),
        ("resnet20_cifar", {"shortcut": "A"}, 40.55e6),
        ("resnet110_cifar", {"shortcut": "A"}, 252.9e6),
        ("lenet5", {"in_chans": 1}, 416_520),
    ],
)
def test_macs_match_the_literature(name: str, options: dict, expected: float) -> None:
    """A stride in the wrong place keeps the weights but changes the cost a user compares and reports."""
    image = torch.zeros(1, options.get("in_chans", 3), 32, 32)
    assert macs(timm.create_model(name, **options), image) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_registered_with_our_input(name: str) -> None:
    """A listed name could not be created, or its images would be prepared for another network."""
    with torch.device("meta"):
        network = timm.create_model(name)
    cfg = network.pretrained_cfg
    assert (cfg["architecture"], cfg["input_size"], cfg["num_classes"]) == (name, (3, 32, 32), 10)
    assert (cfg["first_conv"], cfg["classifier"]) == ("conv1", "fc")
    assert not timm.is_model_pretrained(name)


@pytest.mark.parametrize(
    ("name", "width", "channels"),
    [
        ("resnet8_cifar", 0.5, [8, 8, 16, 32]),
        ("resnet8_cifar", 2, [32, 32, 64, 128]),
        ("resnet8_cifar", 0.01, [1, 1, 1, 1]),
        ("wrn_16_2_cifar", 0.5, [8, 16, 32, 64]),
        ("lenet5", 0.5, [3, 8, 60]),
    ],
)
def test_width_scales_every_stage(name: str, width: float, channels: list[int]) -> None:
    """A student asked for at half the width would not be half as wide, or its description would lie."""
    network = timm.create_model(name, width=width).eval()
    _, maps = network.forward_intermediates(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == channels
    assert [info["num_chs"] for info in network.feature_info] == channels


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("width", [0.01, 0.3, 0.45, 0.7])
def test_shortcuts_work_at_any_width(shortcut: str, width: float) -> None:
    """Widths that add an odd number of channels, or none, would crash in training's first batch."""
    network = timm.create_model("resnet8_cifar", width=width, shortcut=shortcut)
    assert network(torch.randn(2, 3, 9, 7)).shape == (2, 10)


def test_option_a_has_no_weights_and_centres_the_channels() -> None:
    """Published 'option A' weights would not load, or would load and see shifted channels."""
    network = timm.create_model("resnet20_cifar", shortcut="A")
    assert not any("downsample" in name for name in network.state_dict())
    image = torch.arange(1.0, 33.0).view(1, 2, 4, 4)
    padded = PadShortcut(3)(image)
    assert torch.equal(padded[:, 1:3], image[:, :, ::2, ::2])
    assert not padded[:, [0, 3, 4]].any()


def test_parameter_names_follow_timm() -> None:
    """Weights of the public CIFAR ResNets would not load, and saved ones would fit no other tool."""
    theirs = timm.models.resnet.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=10)
    ours = timm.create_model("resnet8_cifar")
    assert set(ours.state_dict()) == {name for name in theirs.state_dict() if not name.startswith("layer4")}
    # Order too: timm's feature extractors and layer-wise learning rates walk the children.
    children = [name for name, _ in theirs.named_children() if name not in ("maxpool", "layer4")]
    assert [name for name, _ in ours.named_children()] == children


def to_linear(name: str) -> str:
    return name.replace("fc.", "linear.").replace("downsample.", "shortcut.")


def to_public_wrn(name: str) -> str:
    if name.startswith("layer"):
        name = f"block{name[5]}.layer{name[6:]}"
    return name.replace("downsample.0.", "convShortcut.")


@pytest.mark.parametrize(
    ("arch", "rename", "wrapper"),
    [
        ("resnet8_cifar", to_linear, None),
        ("resnet8_cifar", lambda name: "module." + to_linear(name), "state_dict"),
        ("resnet8_cifar", lambda name: "module." + to_linear(name), "net"),
        ("resnet8_cifar", lambda name: "module." + name, None),
        ("resnet8_cifar", str, "model"),
        ("wrn_16_2_cifar", to_public_wrn, None),
        ("wrn_16_2_cifar", lambda name: "module." + to_public_wrn(name), "state_dict"),
        ("wrn_16_2_cifar", str, None),
        ("lenet5", lambda name: "module." + name, None),
    ],
)
def test_foreign_names_come_back(arch: str, rename: Callable[[str], str], wrapper: str | None) -> None:
    """A user's public checkpoint would be refused for its spelling alone."""
    network = timm.create_model(arch)
    ours = network.state_dict()
    foreign = {rename(name): value for name, value in ours.items()}
    assert len(foreign) == len(ours)
    filtered = checkpoint_filter_fn({wrapper: foreign, "epoch": 3} if wrapper else foreign, network)
    assert list(filtered) == list(ours)
    assert all(filtered[name] is foreign[rename(name)] for name in ours)


def test_filter_leaves_names_the_network_has() -> None:
    """A network with its own `linear` or `shortcut` layers would lose them to the renaming."""
    block = nn.ModuleDict({"shortcut": nn.Sequential(nn.Linear(2, 2))})
    network = nn.ModuleDict({"linear": nn.Linear(2, 2), "block": block})
    assert checkpoint_filter_fn(network.state_dict(), network).keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 24, 40), (2, 70, 33)])
def test_any_image_size_trains(name: str, size: tuple[int, int, int]) -> None:
    """Grey, tiny or oblong images, the built-in digits first of all, would not train."""
    network = timm.create_model(name, in_chans=size[0], num_classes=7, drop_rate=0.1)
    logits = network(torch.randn(2, *size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_lenet_centres_small_images() -> None:
    """The same digit with and without a margin would be two different inputs."""
    network = timm.create_model("lenet5", in_chans=1).eval()
    digit = torch.randn(1, 1, 8, 8)
    framed = torch.zeros(1, 1, 32, 32)
    framed[:, :, 12:20, 12:20] = digit
    assert torch.equal(network(digit), network(framed))


@pytest.mark.parametrize("name", FAMILIES)
def test_classifier_can_be_replaced(name: str) -> None:
    """Fine-tuning on other classes, or taking features, would fail or keep the old head."""
    network = timm.create_model(name).double().eval()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    features = network.forward_features(image)
    assert features.shape[1] == network.num_features
    assert network.forward_head(features, pre_logits=True).shape == (1, network.head_hidden_size)
    assert torch.equal(network.forward_head(features), network(image))

    network.reset_classifier(5)
    assert network.get_classifier() is network.fc
    assert (network.num_classes, network.fc.out_features) == (5, 5)
    assert network(image).shape == (1, 5)
    network.reset_classifier(0)
    assert network(image).shape == (1, network.head_hidden_size)
    network.reset_classifier(0, "")
    assert network(image).shape[:2] == (1, network.head_hidden_size)
    assert network(image).dim() == 4
    network.reset_classifier(3, "avg")
    assert network(image).shape == (1, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_intermediates_agree_with_the_forward_pass(name: str) -> None:
    """Feature distillation would match maps that the network does not compute on its way to the logits."""
    network = timm.create_model(name).eval()
    image = torch.randn(2, 3, 32, 32)
    final, maps = network.forward_intermediates(image, norm=True)
    assert torch.equal(final, network.forward_features(image))
    assert torch.equal(maps[-1], final)
    raw = network.forward_intermediates(image, intermediates_only=True)
    listed = timm.create_model(name, features_only=True).eval()
    listed.load_state_dict(network.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(raw, listed(image), strict=True))
    stopped, [second] = network.forward_intermediates(image, indices=[1], stop_early=True)
    assert torch.equal(stopped, second)
    assert torch.equal(second, raw[1])
    with pytest.raises(ValueError, match="'NLC'"):
        network.forward_intermediates(image, output_fmt="NLC")


@pytest.mark.parametrize("name", FAMILIES)
def test_drop_rate_acts_in_training_only(name: str) -> None:
    """Dropout would be silently ignored, or make evaluation random."""
    network = timm.create_model(name, drop_rate=0.5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    image = torch.randn(1, 3, 32, 32)
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


def test_wide_resnet_drops_inside_its_blocks() -> None:
    """`drop_rate` would not be the paper's, so its published settings would not carry over."""
    network = timm.create_model("wrn_16_1_cifar", drop_rate=0.5)
    features = network.forward_features(torch.randn(2, 3, 16, 16))
    assert torch.equal(network.forward_head(features), network.forward_head(features))


def test_wide_resnet_shortcuts_follow_the_paper() -> None:
    """Public Wide ResNet weights would load but give wrong answers."""
    block = cifar_wrn.WideBlock(2, 4, 2, 0.0).eval()
    image = torch.randn(1, 2, 6, 6)
    nn.init.zeros_(block.conv2.weight)
    active = block.bn1(image).relu()
    assert torch.equal(block(image), block.downsample(active[:, :, ::2, ::2]))
    same = cifar_wrn.WideBlock(2, 2, 1, 0.0).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(image), image)


@pytest.mark.parametrize("name", FAMILIES)
def test_initial_weights_are_he_scaled(name: str) -> None:
    """Deep networks would start with vanishing or exploding activations and train worse than published."""
    network = timm.create_model(name, width=4)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 2000:
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"width": bad}) for name in FAMILIES for bad in (0, -1.5, np.nan, np.inf, "wide")),
        ("resnet8_cifar", {"shortcut": "C"}),
        ("resnet8_cifar", {"depth": 20}),
        *((name, {"widht": 0.5}) for name in FAMILIES),
        *((name, {"num_classes": -1}) for name in FAMILIES),
        *((name, {"in_chans": 0}) for name in FAMILIES),
        *((name, {"drop_rate": 1.5}) for name in FAMILIES),
        *((name, {"global_pool": "median"}) for name in FAMILIES),
        ("lenet5", {"shortcut": "A"}),
    ],
)
def test_wrong_arguments_are_quoted(name: str, options: dict) -> None:
    """A typo would be ignored, or answered by a traceback that does not name it."""
    [(option, value)] = options.items()
    with pytest.raises(ValueError, match=re.escape(f"{option}={value!r}")):
        timm.create_model(name, **options)


def test_classes_need_pooling() -> None:
    """The mismatch would surface as a matrix shape error in the middle of training."""
    with pytest.raises(ValueError, match="num_classes=10 must be 0 where global_pool=''"):
        timm.create_model("resnet8_cifar", global_pool="")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8_cifar", {"width": 0.5, "shortcut": "A"}),
        ("resnet14_cifar", {"width": 0.75, "shortcut": "B"}),
        ("wrn_16_1_cifar", {"width": 0.5, "drop_rate": 0.2}),
        ("lenet5", {"width": 2.0}),
    ],
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_saved_folder_rebuilds_the_network(tmp_path: Path, name: str, options: dict, in_chans: int) -> None:
    """A student saved in one session could not be loaded in the next by its folder alone."""
    options = {**options, "in_chans": in_chans, "num_classes": 4}
    network = timm.create_model(name, **options).eval()
    save_for_hf(network, tmp_path, model_args=options, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(2, in_chans, 8, 8)
    assert torch.equal(network(image), again(image))


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_loads_foreign_names_through_the_filter(tmp_path: Path, name: str) -> None:
    """timm's own ways to load a checkpoint would refuse the public spelling."""
    network = timm.create_model(name).eval()
    file = tmp_path / "public.safetensors"
    save_file({"module." + to_linear(key): value for key, value in network.state_dict().items()}, file)
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    image = torch.randn(1, 3, 16, 16)
    assert torch.equal(network(image), again.eval()(image))


@pytest.mark.skipif(not (CHECKPOINT.exists() and IMAGES.exists()), reason="shared CIFAR-10 data missing")
def test_public_resnet56_is_as_accurate_as_promised() -> None:
    """Public teachers would load without complaint and classify badly."""
    teacher = timm.create_model("resnet56_cifar", shortcut="A").eval()
    teacher.load_state_dict(checkpoint_filter_fn(load_file(CHECKPOINT), teacher), strict=True)
    images, labels = [], []
    with zipfile.ZipFile(IMAGES) as archive:
        files = sorted(name for name in archive.namelist() if re.fullmatch(r"test/\w+/\w+\.jpg", name))
        classes = sorted({name.split("/")[1] for name in files})
        for label, class_name in enumerate(classes):
            for name in [name for name in files if name.startswith(f"test/{class_name}/")][:20]:
                images.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                labels.append(label)
    assert len(labels) == 200
    cfg = teacher.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        correct = teacher((batch - mean) / std).argmax(1) == torch.tensor(labels)
    assert correct.float().mean() > 0.85


@pytest.mark.parametrize(
    ("name", "options"), [("resnet8_cifar", {}), ("resnet8_cifar", {"shortcut": "A"}), ("wrn_16_1_cifar", {})]
)
def test_gradients_stay_channels_last(name: str, options: dict) -> None:
    """Where one map's gradient has another memory format than the map, the layers before are several times slower."""
    network = timm.create_model(name, num_classes=10, **options).to(memory_format=torch.channels_last)
    formats: dict[tuple[int, ...], list[bool]] = {}

    def note(shape: tuple[int, ...], gradient: Tensor) -> None:
        formats.setdefault(shape, []).append(gradient.is_contiguous(memory_format=torch.channels_last))

    def watch(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(partial(note, tuple(output.shape)))

    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(watch)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network(images).sum().backward()
    first_two = {shape: kept for shape, kept in formats.items() if shape[-1] > 8}  # after them, pooling begins
    assert first_two
    assert all(all(kept) for kept in first_two.values()), formats
