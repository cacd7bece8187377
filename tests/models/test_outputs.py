"""What networks of the user's own return: logits are taken where the meaning is plain."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcompress import trust
from kdcompress.errors import UserError
from kdcompress.flops import profile
from kdcompress.models.loading import load_network
from kdcompress.models.outputs import logits_of

LOGITS, FEATURES = torch.ones(2, 3), torch.zeros(2, 8, 4, 4)
Aux = namedtuple("Aux", "logits aux_logits")


@pytest.mark.parametrize(
    "output",
    [
        {"logits": LOGITS, "loss": None, "embedding": torch.zeros(2, 8)},
        {"out": LOGITS},
        {"out": LOGITS, "feature": FEATURES},
        (LOGITS, FEATURES),
        [LOGITS, LOGITS],
        (LOGITS, None),
        Aux(LOGITS, None),
        SimpleNamespace(logits=LOGITS, hidden_states=(FEATURES,)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found(output: Any) -> None:
    """A network of transformers, or one with auxiliary outputs, could be no teacher."""
    assert logits_of(output, "py:mine:net") is LOGITS


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"a": LOGITS, "b": LOGITS}, "a dict of a [2, 3], b [2, 3]"),
        ({"feature": FEATURES}, "a dict of feature [2, 8, 4, 4]"),
        ({"logits": "text"}, "a dict of logits str"),
        ({}, "an empty dict"),
        ((FEATURES, LOGITS), "a tuple of [2, 8, 4, 4], [2, 3]"),
        ((), "an empty tuple"),
        (SimpleNamespace(pred=LOGITS), "a SimpleNamespace"),
        (None, "a NoneType"),
    ],
)
def test_what_is_not_plain_is_refused(output: Any, words: str) -> None:
    """A guess would distill from features, or score the wrong head."""
    with pytest.raises(UserError) as caught:
        logits_of(output, "py:mine:net")
    assert words in caught.value.problem
    assert "'logits'" in caught.value.remedy


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((torch.zeros(2, 7), LOGITS), "a tuple of [2, 7], [2, 3]"),
        ({"features": torch.zeros(2, 8)}, "a dict of features [2, 8]"),
        ({"logits": torch.zeros(2, 7), "out": LOGITS}, "a dict of logits [2, 7], out [2, 3]"),
        (torch.zeros(2, 7), "a tensor [2, 7]"),
        (torch.zeros(2), "a tensor [2]"),
        (FEATURES, "a tensor [2, 8, 4, 4]"),
    ],
)
def test_logits_have_a_column_for_each_class(output: Any, words: str) -> None:
    """Embeddings beside the logits, or a network made for other data, would be distilled from."""
    with pytest.raises(UserError) as caught:
        logits_of(output, "py:mine:net", 3)
    assert caught.value.problem == f"py:mine:net returned {words}, without logits [B, 3]."


@pytest.mark.parametrize(
    ("output", "num_classes", "notice"),
    [
        ((LOGITS, LOGITS + 1), 3, "a tuple of [2, 3], [2, 3]; the first is taken as logits"),
        ((LOGITS, torch.zeros(2, 8)), None, "a tuple of [2, 3], [2, 8]; the first is taken as logits"),
        ({"out": LOGITS}, None, "a dict of out [2, 3]; out is taken as logits"),
        ((LOGITS, torch.zeros(2, 8)), 3, None),
        ({"out": LOGITS, "features": torch.zeros(2, 8)}, 3, None),
        ({"logits": LOGITS, "aux": LOGITS + 1}, 3, None),
        (torch.zeros(2, 8), 0, None),
    ],
)
def test_what_is_assumed_is_said(output: Any, num_classes: int | None, notice: str | None) -> None:
    """The wrong one of two heads would be scored and distilled from in silence."""
    heard = list[str]()
    logits = logits_of(output, "py:mine:net", num_classes, heard.append)
    assert logits is LOGITS or not num_classes
    assert heard == ([] if notice is None else [f"Notice: py:mine:net returns {notice}."])


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, kind, num_classes, in_chans):
        super().__init__()
        self.fc, self.kind = nn.Linear(in_chans * 64, num_classes), kind

    def forward(self, x):
        y = self.fc(x.flatten(1))
        made = {"dict": {"logits": y}, "tuple": (y, x), "heads": (y, -y), "plain": y, "flat": y[:, 0], "nothing": None}
        return made[self.kind]

def net(kind="dict", num_classes=3, in_chans=1):
    return Net(kind, num_classes, in_chans)
"""


@pytest.mark.parametrize("kind", ["dict", "tuple", "plain"])
def test_a_network_of_the_users_own_gives_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its outputs go to losses and to fvcore, its weights keep their names."""
    (tmp_path / "outputs_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    trust.typed("py:outputs_of_mine:net")
    network = load_network(f"py:outputs_of_mine:net,kind={kind},num_classes=3,in_chans=1,input_size=1x8x8")
    assert network.model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert list(network.model.state_dict()) == ["fc.weight", "fc.bias"]
    assert profile(network.model, network.input_size).macs == 64 * 3


def test_a_notice_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for each batch would bury the rest."""
    (tmp_path / "heads_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    trust.typed("py:heads_of_mine:net")
    heard = list[str]()
    spec = "py:heads_of_mine:net,kind=heads,num_classes=3,in_chans=1,input_size=1x8x8"
    network = load_network(spec, note=heard.append)
    for _ in range(2):
        network.model(torch.zeros(2, 1, 8, 8))
    assert len(heard) == 1
    assert "the first is taken as logits" in heard[0]


@pytest.mark.parametrize(("kind", "words"), [("nothing", "a NoneType"), ("flat", "a tensor [1]")])
def test_profiling_passes_on_what_is_wrong_with_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    """Advice about input sizes and tracing sends people to the wrong place."""
    (tmp_path / "no_outputs_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    trust.typed("py:no_outputs_of_mine:net")
    network = load_network(f"py:no_outputs_of_mine:net,kind={kind},num_classes=3,in_chans=1,input_size=1x8x8")
    with pytest.raises(UserError, match=rf"^py:no_outputs_of_mine:net.* returned {re.escape(words)}") as caught:
        profile(network.model, network.input_size)
    assert "'logits'" in caught.value.remedy
