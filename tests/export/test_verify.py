"""What makes an exported file a wrong one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcompress.errors import UserError
from kdcompress.export.verify import check_exact, check_int8, compare, gated
from kdcompress.gating import Gate
from kdcompress.models.staged import Staged

GATE = Gate("confidence", (0.75,))
SURE, UNSURE = 1.5, 0.2  # logits of the first class; the second has 0
NEAR = 1.0986123  # whose confidence is 0.75


def after_each(images: Tensor) -> Tensor:
    """Two stages of two classes, whose logits are the image."""
    first = torch.stack([images, torch.zeros_like(images)], -1)
    return torch.stack([first, first + 1])


def run(images: Tensor) -> tuple[Tensor, Tensor]:
    logits, exits, _ = gated(after_each(images), GATE)
    return logits, exits


IMAGES = torch.tensor([SURE, UNSURE, NEAR, float("nan")])
LABELS = torch.tensor([0, 0, 1, 0])


class First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return after_each(x)[0]


class Ones(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(len(x), 2)


class Two(Staged):
    def stages(self) -> list[nn.Module]:
        return [First(), Ones()]


def test_the_reference_is_the_network() -> None:
    """The file is compared with another gate than that of the network."""
    images = torch.tensor([SURE, UNSURE, 3.0])
    logits, exits = Two(GATE.to_dict()).eval().forward_gated(images)
    assert exits.tolist() == [0, 1, 0]
    assert torch.equal(exits, run(images)[1])
    assert torch.equal(logits, run(images)[0])


def test_a_file_that_does_the_same_passes() -> None:
    """Every file is refused."""
    found = compare(run, after_each, GATE, [(IMAGES, LABELS)])
    check_exact(found)
    check_int8(found)
    assert (found.n, found.exits, found.right, found.same_class, found.difference) == (4, [2, 2], 3, 4, 0.0)


@pytest.mark.parametrize("wrong", [1e-3, float("nan"), float("inf")])
def test_other_logits_are_refused(wrong: float) -> None:
    """A file with other logits is kept."""
    found = compare(lambda images: (run(images)[0] + wrong, run(images)[1]), after_each, GATE, [(IMAGES, LABELS)])
    with pytest.raises(UserError, match="is not the network"):
        check_exact(found)


def test_other_exits_are_refused_but_for_ties() -> None:
    """A file whose gate is off is kept, or one is refused for the last bit of a certainty."""

    def flipped(number: int) -> tuple[Tensor, Tensor]:
        logits, exits = run(IMAGES)
        logits, exits = logits.clone(), exits.clone()
        exits[number] = 1 - exits[number]
        return logits, exits

    tie = compare(lambda _: flipped(2), after_each, GATE, [(IMAGES, LABELS)])
    check_exact(tie)
    assert (tie.near_ties, tie.other_exits) == (1, 0)
    for number in (0, 1, 3):
        with pytest.raises(UserError, match="1 of 4 images exit"):
            check_exact(compare(lambda _, at=number: flipped(at), after_each, GATE, [(IMAGES, LABELS)]))


def test_without_a_gate_all_exit_last() -> None:
    """A plain network is compared with a gate."""
    _, exits, near = gated(after_each(IMAGES), None)
    assert (exits.tolist(), near.tolist()) == ([1] * 4, [False] * 4)
