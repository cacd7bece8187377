"""Without a network, pretrained weights are refused within seconds, or come from the cache."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants

from kdcompress.errors import UserError
from kdcompress.models import hub
from kdcompress.models.build import ModelSpec, build
from kdcompress.models.loading import load_network

REPOSITORY = "timm/test_resnet.r160_in1k"


class Asked:
    """Stands in for a hub that accepts connections and never answers; counts them."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.held: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.held.append(self.socket.accept()[0])
            except OSError:
                return

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    asked = Asked()
    monkeypatch.setattr(constants, "ENDPOINT", asked.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    yield asked
    asked.socket.close()
    for each in asked.held:
        each.close()


def test_a_hub_that_never_answers_is_asked_once(silent_hub: Asked) -> None:
    """Its client would try six times for each of several files: minutes of silence, then no way out."""
    with pytest.raises(UserError) as caught:
        build(ModelSpec("test_resnet"), pretrained=True)
    assert silent_hub.address in caught.value.problem
    assert all(way in caught.value.remedy for way in (REPOSITORY, "HF_HOME", "folder"))
    assert len(silent_hub.held) == 1
    assert not constants.HF_HUB_OFFLINE


def test_a_model_folder_of_a_hub_that_never_answers(silent_hub: Asked) -> None:
    """The same for a reference to the hub."""
    with pytest.raises(UserError) as caught:
        load_network(f"hf-hub:{REPOSITORY}")
    assert silent_hub.address in caught.value.problem
    assert REPOSITORY in caught.value.remedy
    assert len(silent_hub.held) == 1


def test_a_closed_port_is_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is final, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=address):
        build(ModelSpec("test_resnet"), pretrained=True)


def test_the_cache_serves_without_a_network(silent_hub: Asked) -> None:
    """Weights that were downloaded before are there on a train or a compute node."""
    from safetensors.torch import save_file

    folder = Path(constants.HF_HUB_CACHE) / f"models--{REPOSITORY.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    torch.manual_seed(3)
    cached = timm.create_model("test_resnet")
    save_file(cached.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model: Any = build(ModelSpec("test_resnet"), pretrained=True)[0]
    assert torch.equal(model.conv1[0].weight, cached.state_dict()["conv1.0.weight"])
