"""Any reference to a trained network -> the network; and what we save loads with timm alone."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from kdcompress import trust
from kdcompress.errors import UserError
from kdcompress.gating import Gate
from kdcompress.models.assemble import as_cascade, joined, new_member, new_network
from kdcompress.models.build import ModelSpec, config_of
from kdcompress.models.loading import Network, load_network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.saving import model_config, save_network
from kdcompress.models.student_assistant import ARCHITECTURE, StudentAssistant
from kdcompress.models.weights import read_weights
from kdcompress.runs import CONFIG, WEIGHTS, RunFolder

SPEC = "resnet8_cifar,width=0.25"
NAMES = ("ant", "bee", "cat", "dog", "elk")


def fresh(spec: str | ModelSpec = SPEC, channels: int = 3, size: tuple[int, int] = (8, 8), seed: int = 0) -> Network:
    """A network with BatchNorm statistics of its own."""
    made = spec if isinstance(spec, ModelSpec) else ModelSpec.parse(spec)
    network = new_network(made, num_classes=len(NAMES), channels=channels, size=size, seed=seed)
    with torch.no_grad():
        network.model.train()(2 * torch.randn(16, channels, *size) + 1)
    network.model.eval()
    return network


def fresh_pair(gate: dict[str, Any] | None = None) -> Network:
    """A student and an assistant that has something to say."""
    args: dict[str, Any] = {"model": {"architecture": "resnet8_cifar"}, "widths": [0.5, 0.25], "features": 12}
    network = fresh(ModelSpec(ARCHITECTURE, args | ({"gate": gate} if gate else {})))
    assert isinstance(network.model, StudentAssistant)
    nn.init.normal_(network.model.assistant_projection.weight)
    return network


def saved(path: Path, network: Network, names: tuple[str, ...] | None = NAMES) -> Path:
    path.mkdir()
    config = model_config(network.model, network.architecture, network.model_args, names)
    save_network(RunFolder(path), network.model, config)
    return path


def cascade_of(channels: int = 3, gate: dict[str, Any] | None = None) -> Network:
    base = as_cascade(fresh(channels=channels))
    for seed in (1, 2):
        member = new_member(ModelSpec.parse("lenet5,width=0.5"), base, seed)
        with torch.no_grad():
            member.model.get_classifier().weight.normal_()
        base = joined(base, member)
    assert isinstance(base.model, ResidualCascade)
    if gate is not None:
        base.model.gate, base.model_args = Gate.from_dict(gate), {**base.model_args, "gate": gate}
    return base


def images(channels: int = 3, size: tuple[int, int] = (8, 8)) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(6, channels, *size)


@torch.no_grad()
def same(network: Network, other: nn.Module, **shape: Any) -> bool:
    x = images(**shape)
    return torch.equal(network.model(x), other.eval()(x))


def refused(reference: str | Path, arch: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        load_network(str(reference), arch)
    return caught.value


# --- run folders and timm's own folders


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_run_folder_comes_back_whole(tmp_path: Path, prefix: str) -> None:
    """Every command after the first starts from this."""
    network = fresh(f"{SPEC},mean=0.1/0.2/0.3,std=0.4/0.5/0.6,crop_pct=0.9", size=(8, 12))
    folder = saved(tmp_path / "run", network)
    found = load_network(f"{prefix}{folder}")
    assert same(found, network.model, size=(8, 12))
    assert found.prep == network.prep
    assert found.prep.mean == (0.1, 0.2, 0.3)
    assert found.input_size == (3, 8, 12)
    assert found.class_names == NAMES
    assert found.num_classes == len(NAMES)
    assert (found.architecture, found.model_args) == ("resnet8_cifar", {"in_chans": 3, "width": 0.25})
    assert found.path == folder
    assert found.fingerprint() == network.fingerprint()
    assert not found.model.training


def test_a_reference_holds_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """run.json keeps the teacher's reference; a relative one would be lost with the next cd."""
    saved(tmp_path / "run", fresh())
    save_file(fresh().model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    one, two = load_network("run"), load_network("weights.safetensors", SPEC)
    monkeypatch.chdir("/")
    assert same(load_network(one.reference, one.arch), one.model)
    assert same(load_network(two.reference, two.arch), two.model)


@pytest.mark.parametrize("gate", [None, {"measure": "margin", "thresholds": [0.3, None]}])
def test_a_cascade_comes_back_with_its_gate(tmp_path: Path, gate: dict[str, Any] | None) -> None:
    """A cascade that lost its gate costs several times what the user was promised."""
    network = cascade_of(gate=gate)
    found = load_network(str(saved(tmp_path / "run", network)))
    assert isinstance(found.model, ResidualCascade)
    assert found.model.gate == network.model.gate
    assert (found.model.gate is None) == (gate is None)
    assert same(found, network.model)
    assert found.staged("") is found.model


def test_a_single_network_is_no_cascade() -> None:
    """A gate asked of a single network needs the way to a cascade, not an attribute error."""
    with pytest.raises(UserError, match="single network") as caught:
        fresh().staged("so there is no gate to calibrate")
    assert "reskd" in caught.value.remedy


def test_label_names_are_where_timm_looks(tmp_path: Path) -> None:
    """timm, the Hub's widgets and check_classes read them from the top of config.json."""
    config = json.loads((saved(tmp_path / "run", fresh()) / CONFIG).read_text())
    assert config["label_names"] == list(NAMES)
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == len(NAMES)
    assert "label_names" not in json.loads((saved(tmp_path / "other", fresh(), None) / CONFIG).read_text())


EXPORTS_ITS_ARGUMENTS = pytest.mark.skipif(
    tuple(int(part) for part in timm.__version__.split(".")[:3]) < (1, 0, 31),
    reason="this timm cannot load its own export of a network with other channels or another size",
)


@EXPORTS_ITS_ARGUMENTS
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_folder_that_timm_made(tmp_path: Path, name: str) -> None:
    """Teachers come from other people's timm scripts."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=len(NAMES), in_chans=1).eval()
    save_for_hf(model, str(tmp_path / "theirs"), model_config={"label_names": list(NAMES)}, safe_serialization=True)
    found = load_network(str(tmp_path / "theirs"))
    assert same(found, model, channels=1, size=(32, 32))
    assert found.class_names == NAMES
    assert found.num_classes == len(NAMES)
    assert found.prep.channels == 1
    assert found.record == {}


@EXPORTS_ITS_ARGUMENTS
def test_a_transformer_that_timm_made(tmp_path: Path) -> None:
    """Its size is fixed by the weights, and stands in the arguments."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=len(NAMES), img_size=64).eval()
    save_for_hf(model, str(tmp_path / "theirs"), safe_serialization=True)
    assert same(load_network(f"local-dir:{tmp_path / 'theirs'}"), model, size=(64, 64))


def test_damaged_folders_are_explained(tmp_path: Path) -> None:
    """Each has its own remedy; a traceback has none."""
    assert "no run folder" in refused(f"local-dir:{tmp_path / 'nothing'}").problem
    folder = saved(tmp_path / "run", fresh())
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text("{")
    assert "cannot be read" in refused(folder).problem
    (folder / CONFIG).write_text(json.dumps({**config, "architecture": None}))
    assert "names no architecture" in refused(folder).problem
    (folder / CONFIG).write_text(json.dumps({**config, "model_args": {"in_chans": 3, "width": 0.5}}))
    assert "[4, 3, 3, 3]" in refused(folder).problem
    (folder / CONFIG).unlink()
    assert CONFIG in refused(folder).problem
    (folder / WEIGHTS).unlink()
    assert "no weights" in refused(folder).problem


# --- bare checkpoints


def wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """The ways in which people save a network."""
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    foreign = {key.replace("fc.", "linear."): value for key, value in state.items()}
    return {
        "plain": state,
        "module": {f"module.{key}": value for key, value in state.items()},
        "state_dict": {"epoch": 3, "best": 1.5, "state_dict": state},
        "model": {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        "net": {"net": state, "acc": 93.1, "epoch": 3},
        "linear": {"state_dict": {f"module.{key}": value for key, value in foreign.items()}},
        "ema first": {"state_dict": other, "state_dict_ema": state},
        "no counters": {key: value for key, value in state.items() if "num_batches" not in key},
    }


@pytest.mark.parametrize("way", list(wrapped({})))
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th"])
def test_a_checkpoint_in_any_wrapping(tmp_path: Path, way: str, suffix: str) -> None:
    """Public CIFAR checkpoints come in all of these; a user has no wish to rewrite them."""
    network = fresh()
    path = tmp_path / f"net{suffix}"
    torch.save(wrapped(network.model.state_dict())[way], path)
    found = load_network(str(path), SPEC)
    assert same(found, network.model)
    assert found.num_classes == len(NAMES)  # from the file, not the architecture's own 10
    assert found.arch == SPEC


@pytest.mark.parametrize("channels", [1, 3])
def test_classes_and_channels_are_read_from_the_file(tmp_path: Path, channels: int) -> None:
    """A safetensors file of a grey network with five classes needs no more than its architecture."""
    network = fresh(channels=channels)
    path = tmp_path / "net.safetensors"
    save_file({f"module.{key}": value for key, value in network.model.state_dict().items()}, path)
    found = load_network(str(path), f"{SPEC},input_size=8x8")
    assert same(found, network.model, channels=channels)
    assert found.input_size == (channels, 8, 8)
    assert found.model_args["in_chans"] == channels


def test_a_checkpoint_of_timms_own_architecture(tmp_path: Path) -> None:
    """timm's translation of foreign names must be used, here the position embedding of another size."""
    model = timm.create_model("test_vit", num_classes=7, img_size=64).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    found = load_network(str(tmp_path / "vit.pth"), "test_vit,img_size=64")
    assert same(found, model, size=(64, 64))
    assert found.num_classes == 7
    assert found.input_size == (3, 64, 64)
    larger = load_network(str(tmp_path / "vit.pth"), "test_vit,img_size=96")
    assert larger.model(images(size=(96, 96))).shape == (6, 7)


def test_a_bare_checkpoint_asks_for_its_architecture(tmp_path: Path) -> None:
    """Wrong usage with the flag that mends it."""
    torch.save(fresh().model.state_dict(), tmp_path / "net.pth")
    error = refused(tmp_path / "net.pth")
    assert "--arch" in error.remedy
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet8_cifar,width=0.5", ["conv1.weight", "[4, 3, 3, 3]", "[8, 3, 3, 3]"]),
        ("resnet8_cifar,width=0.25,num_classes=6", ["fc.weight", "[5, 16]", "[6, 16]"]),
        ("resnet14_cifar,width=0.25", ["layer1.1.conv1.weight", "not in it"]),
        ("resnet8_cifar,width=0.25,shortcut=A", ["layer2.0.downsample.0.weight", "not in the model"]),
    ],
)
def test_a_misfit_names_the_first_tensor(tmp_path: Path, arch: str, words: list[str]) -> None:
    """Which key, which shapes: that is what tells the user the right --arch."""
    torch.save(fresh().model.state_dict(), tmp_path / "net.pth")
    error = refused(tmp_path / "net.pth", arch)
    assert all(word in error.problem for word in words), error.problem
    assert "--arch" in error.remedy


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_told(tmp_path: Path, suffix: str, share: float) -> None:
    """A broken download must not look like a wrong architecture, or load in part."""
    path = tmp_path / f"net{suffix}"
    state = fresh().model.state_dict()
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    error = refused(path, SPEC)
    assert str(path) in error.problem
    assert "cut off" in error.remedy


class Bomb:
    """Pickled, it would write a file on loading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_never_run(tmp_path: Path, zipped: bool) -> None:
    """A checkpoint from the web could otherwise take over the machine."""
    mark, path = tmp_path / "ran", tmp_path / "net.pth"
    torch.save({"state_dict": fresh().model.state_dict(), "x": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    assert "pickled code" in refused(path, SPEC).problem
    path.write_bytes(pickle.dumps(Bomb(mark), protocol=2))
    refused(path, SPEC)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()  # the bomb is a live one


@pytest.mark.parametrize("content", [b"<html>Not found</html>", b'{"message": "gone"}'])
def test_a_file_that_is_no_checkpoint_is_not_called_malicious(tmp_path: Path, content: bytes) -> None:
    """A saved error page is the commonest bad download; talk of pickled code sends the user the wrong way."""
    (tmp_path / "net.pth").write_bytes(content)
    assert "not a checkpoint" in refused(tmp_path / "net.pth", SPEC).problem


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    """torch.save(model) is common, and is code."""
    torch.save(fresh().model, tmp_path / "net.pth")
    error = refused(tmp_path / "net.pth", SPEC)
    assert "pickled code" in error.problem
    assert "state_dict" in error.remedy


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2]])
def test_a_file_without_weights_is_told(tmp_path: Path, content: Any) -> None:
    """An optimiser's state or a log saved by mistake."""
    torch.save(content, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", SPEC)
    with pytest.raises(UserError):
        read_weights(tmp_path / "net.pth")


# --- specs


def test_a_spec_without_weights_is_no_teacher() -> None:
    """An untrained teacher would quietly ruin the student."""
    error = refused("resnet8_cifar,width=0.25")
    assert "no pretrained weights" in error.problem
    assert "train-teacher" in error.remedy


def test_weights_are_not_taken_for_other_classes() -> None:
    """timm leaves out the classifier, and a student would learn from the noise of a random one."""
    with pytest.raises(UserError, match="are for 1000 classes, not 10") as caught:
        load_network("resnet18,num_classes=10")
    assert "train-teacher --model resnet18 --pretrained" in caught.value.remedy
    assert load_network("resnet18,num_classes=10", weights=False).num_classes == 10


def test_a_spec_to_profile_needs_no_weights() -> None:
    """profile-flops resnet50 must work offline."""
    network = load_network("test_resnet", weights=False, num_classes=3, in_chans=1)
    assert network.num_classes == 3
    assert network.prep.channels == 1


@pytest.mark.parametrize("reference", ["nothing/here", "runs/teacher", "gone.pth", "gone.safetensors"])
def test_a_path_that_is_not_there_is_no_model_name(reference: str) -> None:
    """ "There is no model runs/teacher" would send the user looking for architectures."""
    assert f"no file or folder {reference}" in refused(reference).problem


def test_a_network_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that only the user's code can build; its classes are a guess to nobody."""
    code = "from torch import nn\n\ndef net(num_classes=5, in_chans=3):\n    "
    code += "return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))\n"
    (tmp_path / "loading_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    trust.typed("py:loading_of_mine:net")
    network = load_network("py:loading_of_mine:net,num_classes=5,input_size=8x8")
    assert network.num_classes == 5
    assert network.model(images()).shape == (6, 5)
    with pytest.raises(UserError, match="num_classes=") as caught:
        _ = load_network("py:loading_of_mine:net").num_classes
    assert caught.value.exit_code == 2
    trained = new_network(ModelSpec("py:loading_of_mine:net"), num_classes=5, channels=3, size=(8, 8), seed=0)
    assert same(load_network(str(saved(tmp_path / "run", trained))), trained.model)


# --- what we save, in a process that never heard of us

# a fork each from a process that has done the slow part, importing torch
LOAD = """
import json, os, sys
import torch
torch.set_num_threads(1)
for first, folders in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        assert not {"timm", "kdcompress"} & set(sys.modules)
        exec(first)
        import timm
        for folder in folders:
            model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
            x = torch.load(folder + "/x.pt", weights_only=True)
            with torch.no_grad():
                out = {"logits": model(x), "cfg": repr(sorted(model.pretrained_cfg.items()))}
            torch.save(out, folder + "/out.pt")
        os.write(1, (json.dumps([first, "kdcompress" in sys.modules]) + chr(10)).encode())
        os._exit(0)
    os.wait()
"""
ALONE = "import timm"
TOGETHER = ("import kdcompress", "import timm, kdcompress")


def with_expected(folder: Path, network: Network) -> Path:
    x = images(network.prep.channels, network.prep.size)
    torch.save(x, folder / "x.pt")
    with torch.no_grad():
        torch.save(network.model(x), folder / "expected.pt")
    return folder


def bit_equal(folder: Path) -> bool:
    out = torch.load(folder / "out.pt", weights_only=True)
    return torch.equal(out["logits"], torch.load(folder / "expected.pt", weights_only=True))


def students() -> dict[str, Network]:
    return {
        "colour": fresh("test_resnet", size=(32, 32)),
        "grey": fresh("test_resnet", channels=1, size=(32, 40)),
        "tagged": fresh("test_resnet.r160_in1k", channels=1, size=(32, 32)),
        "vit": fresh("test_vit", size=(32, 48)),
        "grey vit": fresh("test_vit", channels=1, size=(32, 32)),
        "arguments": fresh("test_efficientnet,drop_rate=0.1", size=(32, 32)),
    }


def ours() -> dict[str, Network]:
    return {
        "cascade": cascade_of(),
        "gated": cascade_of(1, {"measure": "confidence", "thresholds": [0.4, 0.5]}),
        "ours": fresh(channels=1),
        "pair": fresh_pair(),
        "gated pair": fresh_pair({"measure": "margin", "thresholds": [0.5]}),
    }


@dataclass(frozen=True)
class Elsewhere:
    """What processes that begin with such an import have loaded, and whether they know kdcompress afterwards."""

    folders: dict[str, list[Path]]
    known: dict[str, bool]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    root = tmp_path_factory.mktemp("elsewhere")
    folders = {
        first: [
            with_expected(saved(root / f"{number} {name}", network), network)
            for name, network in (students() if first == ALONE else ours()).items()
        ]
        for number, first in enumerate((ALONE, *TOGETHER))
    }
    told = json.dumps({first: list(map(str, each)) for first, each in folders.items()})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, told],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd="/",
    )  # fmt: skip
    known = dict(json.loads(line) for line in done.stdout.splitlines())
    assert known.keys() == folders.keys(), done.stderr
    return Elsewhere(folders, known)


def test_timm_alone_loads_a_student_of_its_own(elsewhere: Elsewhere) -> None:
    """The promise of the hand-over: no kdcompress where the model is served."""
    assert not elsewhere.known[ALONE]
    for folder in elsewhere.folders[ALONE]:
        assert bit_equal(folder), folder.name
        assert repr(list(NAMES)) in torch.load(folder / "out.pt", weights_only=True)["cfg"]


@pytest.mark.parametrize("first", TOGETHER)
def test_after_import_kdcompress_timm_loads_everything(elsewhere: Elsewhere, first: str) -> None:
    """One import, before or after timm's, is all a server of cascades needs."""
    assert elsewhere.known[first]
    for folder in elsewhere.folders[first]:
        assert bit_equal(folder), folder.name


def test_config_of_a_saved_network_is_plain_json() -> None:
    """Tuples and None would come back as something else, or not at all."""
    network = fresh("test_vit", size=(32, 48))
    config = model_config(network.model, network.architecture, network.model_args, NAMES)
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert config["model_args"] == {"in_chans": 3, "img_size": [32, 48]}
    assert config["architecture"] == "test_vit"
    assert not {"url", "file", "hf_hub_id", "source"} & set(config["pretrained_cfg"])
    assert config_of(network.model)["num_classes"] == len(NAMES)
