"""What networks of the user's own return: logits are taken where the meaning is plain."""

from __future__ import annotations

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
        ({"a": LOGITS, "b": LOGITS}, "a dict of a, b"),
        ({"feature": FEATURES}, "a dict of feature"),
        ({"logits": "text"}, "a dict of logits"),
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


CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, kind, num_classes, in_chans):
        super().__init__()
        self.fc, self.kind = nn.Linear(in_chans * 64, num_classes), kind

    def forward(self, x):
        y = self.fc(x.flatten(1))
        return {"dict": {"logits": y}, "tuple": (y, x), "plain": y, "nothing": None}[self.kind]

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


def test_profiling_passes_on_what_is_wrong_with_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advice about input sizes and tracing sends people to the wrong place."""
    (tmp_path / "no_outputs_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    trust.typed("py:no_outputs_of_mine:net")
    network = load_network("py:no_outputs_of_mine:net,kind=nothing,num_classes=3,in_chans=1,input_size=1x8x8")
    with pytest.raises(UserError, match=r"^py:no_outputs_of_mine:net.* returned a NoneType") as caught:
        profile(network.model, network.input_size)
    assert "'logits'" in caught.value.remedy
