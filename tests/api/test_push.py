"""``push``: what arrives at the hub is what timm loads from there. A folder stands for the hub."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import RepoUrl

import kdcompress
from chains import Chain, logits_on
from kdcompress.api.push import _without_places
from kdcompress.errors import UserError
from kdcompress.models.hub import Connection
from kdcompress.runs import RunFolder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a repository a folder, written by the client's own calls."""
    root = tmp_path / "hub"

    def create(self: Any, repo_id: str, **_: Any) -> RepoUrl:
        (root / repo_id).mkdir(parents=True, exist_ok=True)
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_file(self: Any, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, **_: Any) -> None:
        (root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(self: Any, *, repo_id: str, folder_path: str, **_: Any) -> None:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", create)
    monkeypatch.setattr(api, "file_exists", lambda self, repo_id, filename, **_: (root / repo_id / filename).is_file())
    monkeypatch.setattr(api, "upload_file", upload_file)
    monkeypatch.setattr(api, "upload_folder", upload_folder)

    @contextlib.contextmanager
    def connected() -> Iterator[Connection]:
        yield Connection()

    monkeypatch.setattr(sys.modules["kdcompress.api.push"], "brief_downloads", connected)
    return root


@pytest.mark.parametrize("which", ["student", "gated"])
def test_timm_loads_what_was_pushed(chain: Chain, hub: Path, which: str) -> None:
    """Someone who takes it from the hub would get other predictions, or nothing that loads."""
    run = getattr(chain, which).run
    pushed = kdcompress.push(run=run, repository="hf-hub:me/small")
    assert (pushed.repository, pushed.url) == ("me/small", "https://huggingface.co/me/small")
    there = timm.create_model(f"local-dir:{hub / 'me/small'}", pretrained=True).eval()
    here = kdcompress.load(run)
    inputs = torch.randn(5, *here.input_size)
    with torch.no_grad():
        torch.testing.assert_close(there(inputs), here.model.eval()(inputs))
    again = kdcompress.load(f"local-dir:{hub / 'me/small'}")
    assert (again.labels, again.prep) == (here.labels, here.prep)
    assert torch.equal(logits_on(again, "test")[0], logits_on(here, "test")[0])
    card = (hub / "me/small" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "top-1" in card
    assert "timm.create_model('hf-hub:me/small', pretrained=True)" in card, "readers have no folder of ours"


def test_a_card_names_no_place_on_this_machine(chain: Chain, hub: Path) -> None:
    """Whoever pushes would publish the names of folders, and of whose photos are in them."""
    kdcompress.push(run=chain.gated.run, repository="me/small")
    card = (hub / "me" / "small" / "README.md").read_text()
    assert str(chain.folder) not in card
    assert Path(str(chain.gated.run)).name in card


def test_a_card_that_report_made_names_none_either(chain: Chain, hub: Path, tmp_path: Path) -> None:
    """Where no card can be made, the advice is to make it with report; its paths were uploaded."""
    run = tmp_path / "run"
    shutil.copytree(str(chain.student.run), run)
    kdcompress.write_report(runs=[str(run)], format="md", time=False, out=str(run / "README.md"))
    with open(run / "README.md", "a") as card:
        card.write(f"--data {tmp_path}/photos")
    kdcompress.push(run=str(run), repository="me/small")
    assert str(tmp_path) not in (hub / "me" / "small" / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("--data /home/me/acme/photos --epochs 3", "--data photos --epochs 3"),
        ("name: unlabelled:/home/me/photos", "name: unlabelled:photos"),
        ("local-dir:/srv/runs/a and hf-hub:timm/b", "local-dir:a and hf-hub:timm/b"),
        ("arXiv https://arxiv.org/abs/2110.01052, runs/a, ../b/c, 3 / 4", None),
    ],
)
def test_paths_are_cut_and_addresses_are_not(text: str, told: str | None) -> None:
    assert _without_places(text) == (told or text)


@pytest.mark.parametrize("part", ["whole", "member", "assistant"])
def test_a_network_of_ones_own_code_is_refused_before_a_repository_is_made(
    chain: Chain, hub: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """An empty repository was left behind, and the token blamed."""
    network = kdcompress.load(chain.cascade.run)
    if part == "whole":
        network.architecture = "py:mine:make"
    elif part == "member":
        network.model_args["members"][-1]["architecture"] = "py:mine:make"
    else:
        network.model_args = {"model": {"architecture": "py:mine:make"}}
    monkeypatch.setattr(sys.modules["kdcompress.api.push"], "load_network", lambda *_, **__: network)
    with pytest.raises(UserError, match="py:mine:make is a function of yours"):
        kdcompress.push(run=chain.cascade.run, repository="me/small")
    assert not hub.exists()


def test_a_readme_that_is_there_stays(chain: Chain, hub: Path) -> None:
    """A page that somebody wrote by hand would be lost."""
    (hub / "me" / "small").mkdir(parents=True)
    (hub / "me" / "small" / "README.md").write_text("by hand")
    kdcompress.push(run=chain.student.run, repository="me/small")
    assert (hub / "me" / "small" / "README.md").read_text() == "by hand"


def test_without_a_card_nothing_is_made(chain: Chain, hub: Path, tmp_path: Path) -> None:
    """Where the data of a run are elsewhere, an empty repository would be left, and advice that push cannot take."""
    run = tmp_path / "moved"
    shutil.copytree(str(chain.student.run), run)
    record = json.loads((run / "run.json").read_text())
    record["options"]["data"] = "/gone/photos"
    (run / "run.json").write_text(json.dumps(record))
    RunFolder(run).accept()
    with pytest.raises(UserError, match="no model card") as caught:
        kdcompress.push(run=str(run), repository="me/small")
    assert "report" in caught.value.remedy
    assert not (hub / "me").exists()


def test_a_hub_that_refuses_is_named_in_one_line(chain: Chain, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of the HTTP client's traceback tells nobody that a token is missing."""

    def refused(self: Any, *_: Any, **__: Any) -> None:
        raise ValueError("401 Client Error: Unauthorized\nmore lines")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(UserError, match="refused me/small: 401 Client Error: Unauthorized") as caught:
        kdcompress.push(run=chain.student.run, repository="me/small")
    assert "HF_TOKEN" in caught.value.remedy
    assert not hub.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"run": "RUN"}, "needs a repository"),
        ({"run": "RUN", "repository": "small"}, "no repository of the hub"),
        ({"run": "nowhere/", "repository": "me/small"}, "nowhere"),
    ],
)
def test_mistakes(chain: Chain, hub: Path, given: dict[str, Any], words: str) -> None:
    """Something would be pushed somewhere."""
    run = {**given, "run": str(chain.student.run) if given["run"] == "RUN" else given["run"]}
    with pytest.raises(UserError, match=words):
        kdcompress.push(**run)
    assert not hub.exists()
