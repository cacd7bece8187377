"""Model folders of timm, transformers and others: loaded, or called what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from kdcompress.errors import UserError
from kdcompress.models.loading import load_network

NAMES = ("cat", "dog", "fox")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=len(NAMES)).eval()


@torch.no_grad()
def same(folder: Path, expected: nn.Module) -> bool:
    images = torch.randn(2, 3, 64, 64)
    return torch.equal(load_network(str(folder)).model(images), expected(images))


def refused(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        load_network(str(folder))
    return caught.value


def written(folder: Path, config: dict[str, Any], network: nn.Module, prefix: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({prefix + name: value for name, value in network.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    ("label_names", "expected"),
    [
        (list(NAMES), NAMES),
        (dict(enumerate(NAMES)), NAMES),
        ({0: "cat", 2: "dog", 4: "fox"}, None),  # numbered with gaps, as timm allows
        (None, None),
    ],
)
def test_a_folder_that_timm_saved(
    tmp_path: Path, network: nn.Module, safe: bool, label_names: Any, expected: tuple[str, ...] | None
) -> None:
    """timm's own defaults (pytorch_model.bin, names by number) were taken for a broken run."""
    config = {"label_names": label_names} if label_names else {}
    save_for_hf(network, str(tmp_path / "theirs"), model_config=config, safe_serialization=safe)
    for reference in (str(tmp_path / "theirs"), f"local-dir:{tmp_path / 'theirs'}"):
        found = load_network(reference)
        assert found.class_names == expected
        assert found.num_classes == len(NAMES)
        assert "num_classes" not in found.model_args
    assert same(tmp_path / "theirs", network)


def test_a_folder_of_transformers_around_timm(tmp_path: Path, network: nn.Module) -> None:
    """What TimmWrapper saves is a network of timm's, with a prefix before its names."""
    config = {"architecture": "test_resnet", "num_classes": 3, "model_type": "timm_wrapper", "label_names": list(NAMES)}
    folder = written(tmp_path / "wrapped", config, network, "timm_model.")
    assert same(folder, network)
    assert load_network(str(folder)).class_names == NAMES


def test_a_folder_of_transformers_is_called_that(tmp_path: Path, network: nn.Module) -> None:
    """ "KeyError: architecture" tells nobody that it is another library's network, nor the way out."""
    config = {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
    error = refused(written(tmp_path / "vit", config, network))
    assert "transformers (ViTForImageClassification)" in error.problem
    assert "py:module:function" in error.remedy


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("adapter_config.json", "PEFT"),
        ("saved_model.pb", "TensorFlow"),
        (".metadata", "distributed checkpoint"),
        ("model_index.json", "diffusers"),
    ],
)
def test_folders_of_other_tools_are_called_what_they_are(tmp_path: Path, file: str, what: str) -> None:
    """ "Has no weights" would send the user to fetch the folder again."""
    (tmp_path / file).write_text("{}")
    assert what in refused(tmp_path).problem


def sharded(folder: Path, network: nn.Module, suffix: str) -> Path:
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"num_classes": 3}}
    written(folder, config, network)
    (folder / "model.safetensors").unlink()
    state = network.state_dict()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    weight_map = {name: files[number % 2] for number, name in enumerate(state)}
    for file in files:
        part = {name: state[name] for name in state if weight_map[name] == file}
        save_file(part, folder / file) if suffix == "safetensors" else torch.save(part, folder / file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_in_several_files(tmp_path: Path, network: nn.Module, suffix: str) -> None:
    """Large networks are saved in shards."""
    folder = sharded(tmp_path / "shards", network, suffix)
    assert same(folder, network)
    [index] = folder.glob("*.index.json")
    found = load_network(str(index), "test_resnet")
    assert found.num_classes == len(NAMES)
    shard = next(folder.glob("*-00001-*"))
    with pytest.raises(UserError, match="one of several files"):
        load_network(str(shard), "test_resnet")
    shard.unlink()
    assert "missing" in refused(folder).problem


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", ".hidden"])
def test_an_index_cannot_name_files_elsewhere(tmp_path: Path, network: nn.Module, name: str) -> None:
    """A downloaded folder must not choose which of the user's files are read."""
    folder = sharded(tmp_path / "shards", network, "safetensors")
    [index] = folder.glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {"conv1.weight": name}}))
    assert "outside its folder" in refused(folder).problem


def test_a_pointer_in_place_of_the_weights(tmp_path: Path, network: nn.Module) -> None:
    """A clone without git-lfs is the commonest broken folder."""
    config = {"architecture": "test_resnet", "num_classes": 3, "model_type": "timm_wrapper"}
    folder = written(tmp_path / "clone", config, network)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert "git lfs pull" in refused(folder).remedy
