"""Checkpoints as other tools write them: the right weights, or a line that says what the file is."""

from __future__ import annotations

import argparse
import copy
import datetime
import pathlib
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdcompress.errors import UserError
from kdcompress.models.build import ModelSpec
from kdcompress.models.checkpoints.kinds import kind_of
from kdcompress.models.loading import Network, load_network
from kdcompress.models.weights import read_weights

SPEC = "resnet8_cifar,width=0.25"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("resnet8_cifar", width=0.25).eval()


@pytest.fixture
def state(network: nn.Module) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def loaded(path: Path, content: Any, arch: str = SPEC, **options: Any) -> tuple[Network, list[str]]:
    torch.save(content, path / "net.pth")
    notes: list[str] = []
    return load_network(str(path / "net.pth"), arch, note=notes.append, **options), notes


def refused(path: Path, content: Any, arch: str = SPEC, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        loaded(path, content, arch, **options)
    return caught.value


@pytest.mark.parametrize("wrap", [lambda arrays: arrays, lambda arrays: {"epoch": 3, "model": arrays}])
def test_weights_as_numpy_arrays_are_called_so(tmp_path: Path, state: State, wrap: Callable[[Any], Any]) -> None:
    """ "A dict of conv1.weight …" reads as if the file were right."""
    error = refused(tmp_path, wrap({name: value.numpy() for name, value in state.items()}))
    assert "NumPy arrays" in error.problem
    assert "from_numpy" in error.remedy


@torch.no_grad()
def same(found: nn.Module, expected: nn.Module, size: int = 32, channels: int = 3) -> bool:
    torch.manual_seed(1)
    images = torch.randn(2, channels, size, size)
    return torch.allclose(found(images), expected.eval()(images), atol=1e-5)


# --- wrappers and what lies beside the weights


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "encoder.", "module.", "_orig_mod.", "timm_model.", "my_student.", "module.model."],
)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "net", "weights"])
def test_a_wrappers_prefix_is_taken_off(
    tmp_path: Path, network: nn.Module, state: State, prefix: str, key: str | None
) -> None:
    """A checkpoint of Lightning, or of any class around the network, would be refused for its names alone."""
    content = below(prefix, state)
    found, notes = loaded(tmp_path, {key: content, "epoch": 3} if key else content)
    assert same(found.model, network)
    assert any(prefix in note for note in notes)


def test_what_other_tools_count_is_left_out(tmp_path: Path, network: nn.Module, state: State) -> None:
    """thop's and AveragedModel's counters lie among the weights, and would be called a misfit."""
    counters = {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)}
    found, notes = loaded(tmp_path, {**state, **counters})
    assert same(found.model, network)
    assert "total_ops" in notes[0]
    found, notes = loaded(tmp_path, AveragedModel(network).state_dict())
    assert same(found.model, network)
    assert "n_averaged" in notes[0]


BESIDE: dict[str, Any] = {
    "a loss": torch.tensor(0.4),
    "a vector": torch.ones(3),
    "numpy scalar": np.float64(91.2),
    "numpy integer": np.int64(3),
    "numpy bool": np.bool_(True),
    "numpy array": np.ones((2, 3)),
    "arguments": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "a date": datetime.datetime(2026, 8, 1),
    "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": []},
    "generator": {"torch_rng": torch.zeros(8, dtype=torch.uint8)},
}


@pytest.mark.parametrize("what", list(BESIDE))
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_saved_beside_the_weights_does_no_harm(
    tmp_path: Path, network: nn.Module, state: State, what: str, zipped: bool
) -> None:
    """The best accuracy as a NumPy scalar is in most checkpoints, and made them unreadable."""
    content = {"epoch": 5, "model_state_dict": state, what: BESIDE[what]}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    assert same(load_network(str(tmp_path / "net.pth"), SPEC).model, network)


def test_what_unpickling_blocks_is_named(tmp_path: Path, network: nn.Module) -> None:
    """ "Pickled code" alone does not tell a user which object to leave out."""
    error = refused(tmp_path, {"model": network})
    assert "CifarResNet" in error.problem or "BasicBlock" in error.problem
    assert "state_dict()" in error.remedy


def test_a_wrappers_own_classifier_is_found(tmp_path: Path, network: nn.Module, state: State) -> None:
    """``self.backbone`` and ``self.classifier`` are how most people fine-tune."""
    body = {name: value for name, value in below("backbone.", state).items() if ".fc." not in name}
    head = {"classifier.weight": state["fc.weight"], "classifier.bias": state["fc.bias"]}
    found, notes = loaded(tmp_path, {**body, **head})
    assert same(found.model, network)
    assert "classifier" in notes[0]


def test_weights_without_a_classifier_are_called_that(tmp_path: Path, state: State) -> None:
    """A pretrained body is no teacher; "does not fit" would send the user to --arch."""
    error = refused(tmp_path, {name: value for name, value in state.items() if not name.startswith("fc.")})
    assert "no classifier" in error.remedy


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_linear_layer_in_a_sequential_is_the_classifier(
    tmp_path: Path, network: nn.Module, state: State, prefix: str
) -> None:
    """``model.fc = nn.Sequential(nn.Dropout(), nn.Linear(…))`` is how torchvision's networks are fine-tuned."""
    named = {name.replace("fc.", "fc.1."): value for name, value in state.items()}
    found, notes = loaded(tmp_path, below(prefix, named))
    assert same(found.model, network)
    assert "fc.1 is the classifier" in notes[0]


def test_a_classifier_of_several_layers_is_not_cut(tmp_path: Path, state: State) -> None:
    """The last of them alone would fit by its shape, and answer nonsense; "no classifier" is not what is wrong."""
    hidden = {"fc.0.weight": torch.zeros(64, 64), "fc.0.bias": torch.zeros(64)}
    last = {name.replace("fc.", "fc.2."): value for name, value in state.items()}
    error = refused(tmp_path, {**last, **hidden})
    assert "several layers" in error.remedy
    assert "py:" in error.remedy
    backbone = below("backbone.", {name: value for name, value in state.items() if not name.startswith("fc.")})
    projected = {**backbone, **below("backbone.", hidden), "classifier.weight": state["fc.weight"]}
    assert refused(tmp_path, {**projected, "classifier.bias": state["fc.bias"]}), "its projection would be lost"
    normed = {"fc.0.weight": torch.zeros(64), "fc.0.bias": torch.zeros(64)}
    assert "several layers" in refused(tmp_path, {**last, **normed}).remedy


# --- several sets of weights


@pytest.mark.parametrize(
    ("key", "average"), [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("net", "ema"), ("params", "swa")]
)
def test_the_moving_average_is_taken_and_said(
    tmp_path: Path, network: nn.Module, state: State, key: str, average: str
) -> None:
    """The average is the better network, and which of the two is scored must not be a guess."""
    found, notes = loaded(tmp_path, {key: other(state), average: state})
    assert same(found.model, network)
    assert f"{average} is taken" in notes[0]
    found, notes = loaded(tmp_path, {key: state, average: other(state)}, key=key)
    assert same(found.model, network)
    assert notes == []


def test_an_average_among_the_names_is_taken(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Lightning saves both in one flat state_dict."""
    content = {"state_dict": {**below("model.", other(state)), **below("model_ema.module.", state)}}
    found, notes = loaded(tmp_path, content)
    assert same(found.model, network)
    assert "it holds model and model_ema; the average is taken" in notes[0]
    found, notes = loaded(tmp_path, content, key="state_dict.model")
    assert not same(found.model, network)
    assert not any("average" in note for note in notes)


def test_keys_that_messages_offer_reach_the_weights(tmp_path: Path, network: nn.Module, state: State) -> None:
    """A key that was offered, and refused, leaves the user nowhere."""
    content = {"state_dict": {**below("student.", state), **below("teacher.", other(state))}}
    assert "student, teacher" in refused(tmp_path, content).problem
    assert same(loaded(tmp_path, content, key="student")[0].model, network)
    averaged = {"state_dict": {**below("net.", state), **below("net_ema.", other(state))}}
    _, notes = loaded(tmp_path, averaged)
    assert notes[0].endswith("The other: --weights-key net")
    assert same(loaded(tmp_path, averaged, key="net")[0].model, network)
    beside = {**state, **below("ema.", other(state))}
    found, notes = loaded(tmp_path, beside)
    assert not same(found.model, network)
    assert notes[0].endswith("That is an average; the weights beside it: --weights-key .")
    assert same(loaded(tmp_path, beside, key=".")[0].model, network)


def test_the_average_of_a_callback_is_seen(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Lightning's callbacks keep it beside the weights, which are not what was validated."""
    content = {"state_dict": other(state), "callbacks": {"EMA": {"ema_state_dict": state, "decay": 0.99}}}
    found, notes = loaded(tmp_path, content)
    assert same(found.model, network)
    assert "callbacks.EMA.ema_state_dict is taken" in notes[0]


def test_weights_that_are_nowhere(tmp_path: Path, state: State) -> None:
    error = refused(tmp_path, {name: value.to("meta") for name, value in state.items()})
    assert "meta device" in error.problem


def test_batch_norm_without_statistics_says_so(tmp_path: Path, network: nn.Module) -> None:
    """Who saved the parameters alone would look for another architecture."""
    error = refused(tmp_path, dict(network.named_parameters()))
    assert "statistics of BatchNorm" in error.remedy


@pytest.mark.parametrize("flat", [True, False])
def test_of_two_networks_none_is_guessed(tmp_path: Path, network: nn.Module, state: State, flat: bool) -> None:
    """A student evaluated in place of its teacher would quietly ruin what is distilled from it."""
    teacher = other(state)
    both = (
        {**below("student.", state), **below("teacher.", teacher)} if flat else {"student": state, "teacher": teacher}
    )
    error = refused(tmp_path, both)
    assert "student" in error.problem
    assert "teacher" in error.problem
    assert "--weights-key" in error.remedy
    assert same(loaded(tmp_path, both, key="student")[0].model, network)
    assert "student" in refused(tmp_path, both, key="assistant").remedy


def test_of_two_networks_the_one_that_fits_is_taken(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Student and teacher in one file of a distillation differ in width; only one can be meant."""
    teacher = timm.create_model("resnet8_cifar").state_dict()
    found, notes = loaded(tmp_path, {**below("teacher.", teacher), **below("student.", state)})
    assert same(found.model, network)
    assert "student" in notes[0]


def test_a_nested_key_is_a_path_with_dots(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Where weights lie two levels deep, the key must reach them."""
    content = {"student": {"state_dict": state, "epoch": 3}, "teacher": {"state_dict": other(state)}}
    for key in ("student.state_dict", "student"):
        assert same(loaded(tmp_path, content, key=key)[0].model, network)


def test_the_same_weights_twice_are_no_choice(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Some tools save the same network under two names."""
    assert same(loaded(tmp_path, {"state_dict": state, "model": copy.deepcopy(state)})[0].model, network)


# --- files that are not what they are called


def lfs(path: Path, _: nn.Module) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def torchscript(path: Path, network: nn.Module) -> None:
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(str(path))


def archived(path: Path, network: nn.Module) -> None:
    torch.save(network.state_dict(), path.with_name("inner.pth"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inner.pth"), "inner.pth")


def zipped(path: Path, network: nn.Module) -> None:
    torch.save(network.state_dict(), path.with_name("inner.pth"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("inner.pth"), "inner.pth")


def arrays(path: Path, network: nn.Module) -> None:
    with open(path, "wb") as file:
        np.savez(file, **{name: value.numpy() for name, value in network.state_dict().items()})  # type: ignore[arg-type]


def quantized(path: Path, network: nn.Module) -> None:
    linear = {nn.Linear}
    torch.save(torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), linear).state_dict(), path)


WRONG: dict[str, tuple[Callable[[Path, nn.Module], Any], str]] = {
    "Git LFS": (lfs, "git lfs pull"),
    "TorchScript": (torchscript, "state_dict"),
    "tar archive of inner.pth": (archived, "Unpack"),
    "zip archive of inner.pth": (zipped, "Unpack"),
    "NumPy arrays": (arrays, "state_dict"),
    "int8-quantized": (quantized, "before they were quantized"),
    "list of 2 tensors": (lambda path, _: torch.save([torch.ones(2), torch.ones(3)], path), "state_dict"),
    "one tensor of shape [2, 3]": (lambda path, _: torch.save(torch.ones(2, 3), path), "state_dict"),
    "gzip": (lambda path, _: path.write_bytes(b"\x1f\x8b\x08\0rest"), "Unpack"),
    "HDF5": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)), "state_dict"),
    "a web page": (lambda path, _: path.write_text("<!DOCTYPE html><html>404</html>"), "anew"),
    "JSON": (lambda path, _: path.write_text('{"message": "gone"}'), "anew"),
    "empty": (lambda path, _: path.write_bytes(b""), "cut off"),
    "ONNX": (lambda path, _: path.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:" + bytes(64)), "state_dict"),
    "a dict of optimizer, epoch": (lambda path, _: torch.save({"optimizer": {}, "epoch": 1}, path), "state_dict"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("what", list(WRONG))
def test_a_file_is_called_what_it_is(tmp_path: Path, network: nn.Module, what: str, suffix: str) -> None:
    """ "Pickled code" or "cut off" would send the user to mend what is not broken."""
    make, remedy = WRONG[what]
    path = tmp_path / f"net{suffix}"
    make(path, network)
    with pytest.raises(UserError) as caught:
        load_network(str(path), SPEC)
    assert what in caught.value.problem
    assert remedy in caught.value.remedy


def test_a_files_content_counts_not_its_name(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Renamed on upload, the weights are still good."""
    save_file(state, tmp_path / "net.pth")
    torch.save(state, tmp_path / "net.safetensors")
    assert same(load_network(str(tmp_path / "net.pth"), SPEC).model, network)
    assert same(load_network(str(tmp_path / "net.safetensors"), SPEC).model, network)


def test_weights_are_never_taken_for_something_else(tmp_path: Path) -> None:
    """A signature that matches good weights would refuse them: 200 random state dicts in three formats."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "net"
    for _ in range(200):
        size = int(torch.randint(1, 40, (), generator=generator))
        state = {"a.weight": torch.randn(size, size, generator=generator)}
        torch.save(state, path)
        assert kind_of(path).loader == "torch"
        torch.save(state, path, _use_new_zipfile_serialization=False)
        assert kind_of(path).loader == "torch"
        save_file(state, path)
        assert kind_of(path).loader == "safetensors"


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.uint8, torch.int64, torch.complex64])
def test_tensors_of_the_wrong_kind_are_refused(tmp_path: Path, state: State, kind: torch.dtype) -> None:
    """Loaded, integers would be taken for weights, and a network of noise be scored."""
    content = {name: (value * 10).to(kind) if value.is_floating_point() else value for name, value in state.items()}
    assert str(kind).removeprefix("torch.") in refused(tmp_path, content).problem


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_weights_load(tmp_path: Path, state: State, kind: torch.dtype) -> None:
    """Half-precision checkpoints are common."""
    content = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    assert loaded(tmp_path, content)[0].model.get_parameter("conv1.weight").dtype == torch.float32


# --- by order


def renamed(state: State) -> State:
    return {f"l{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(state.items())}


def test_order_is_offered_and_taken_on_request(tmp_path: Path, network: nn.Module, state: State) -> None:
    """Foreign names whose layers are the same would have to be renamed by hand."""
    assert ",match_by=order" in refused(tmp_path, renamed(state)).remedy
    found, notes = loaded(tmp_path, renamed(state), f"{SPEC},match_by=order")
    assert same(found.model, network)
    assert "order" in notes[0]
    assert found.arch == f"{SPEC},match_by=order"  # so that a later command loads it alike


@pytest.mark.parametrize("wrong", ["a shape", "a kind", "a tensor less"])
def test_order_is_verified(tmp_path: Path, state: State, wrong: str) -> None:
    """Tensors in the wrong places give a network that runs and is wrong."""
    foreign = renamed(state)
    names = list(foreign)
    if wrong == "a shape":
        foreign[names[0]] = torch.ones(4, 3, 5, 5)
    elif wrong == "a kind":  # bias before weight: the shapes agree
        swapped = {names[1]: names[2], names[2]: names[1]}
        foreign = {name: foreign[swapped.get(name, name)] for name in (swapped.get(name, name) for name in foreign)}
        foreign = {swapped.get(name, name): value for name, value in foreign.items()}
        foreign = dict(sorted(foreign.items(), key=lambda item: names.index(swapped.get(item[0], item[0]))))
    else:
        del foreign[names[0]]
    assert "in order" in refused(tmp_path, foreign, f"{SPEC},match_by=order").problem


def test_match_by_is_checked() -> None:
    """A typo would silently match by name."""
    with pytest.raises(UserError, match="match_by=odor"):
        ModelSpec.parse("resnet18,match_by=odor")


# --- heads and stems


@pytest.mark.parametrize(
    "arch",
    [
        "eva02_tiny_patch14_224,img_size=28,depth=1",  # no classes by default
        "deit_tiny_distilled_patch16_224,img_size=32,depth=1",  # two heads
        "tresnet_m,layers=1/1/1/1",  # a stem that sees 16 channels for each of the image
        "levit_128s",
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_classes_and_channels_of_any_head_and_stem(tmp_path: Path, arch: str, channels: int) -> None:
    """145 architectures of timm have no classes unless asked, 70 have several heads."""
    spec = ModelSpec.parse(arch)
    torch.manual_seed(0)
    expected = timm.create_model(spec.name, num_classes=4, in_chans=channels, **spec.args)
    found, _ = loaded(tmp_path, expected.state_dict(), arch)
    assert found.num_classes == 4
    assert found.prep.channels == channels
    assert same(found.model, expected, found.prep.size[0], channels)


def test_reading_alone_gives_the_state_dict(tmp_path: Path, state: State) -> None:
    """What `verify` looks at."""
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    assert read_weights(tmp_path / "net.pth").keys() == state.keys()
