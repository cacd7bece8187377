"""A learned gate: heads that predict whether going on would mend the answer."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from kdcompress.deferral import LEAST, TOP, fit_heads
from kdcompress.errors import UserError
from kdcompress.gate_search import search
from kdcompress.gating import MEASURES, Gate, Heads, Measure, MemberScores, learned, outcome
from kdcompress.halving import halves

MACS = (1, 4)


def cascade(samples: int, seed: int, classes: int = 12) -> tuple[Tensor, Tensor]:
    """Two members. On a third of the images both see four classes alike, and going on is in vain."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=random)
    truth = torch.eye(classes)[labels]
    vain = torch.rand(samples, generator=random) < 0.33
    first = 2.0 * truth + 1.2 * torch.randn(samples, classes, generator=random)
    second = 6.0 * truth + torch.randn(samples, classes, generator=random)
    alike = 5.0 * sum(truth.roll(shift, dims=1) for shift in range(4))
    noise = torch.randn(2, samples, classes, generator=random) * 0.3
    members = [torch.where(vain[:, None], alike + own, sure) for own, sure in zip(noise, (first, second), strict=True)]
    return torch.stack(members).log_softmax(-1), labels  # whose scale says nothing


def test_it_knows_where_going_on_is_in_vain() -> None:
    """A plain certainty sends images on that no member can tell apart."""
    fitted, chosen = halves(4000)
    logits, labels = cascade(4000, seed=0)
    measure = learned(fit_heads(logits[:, fitted], labels[fitted]))
    new, truth = cascade(4000, seed=1)
    costs = {}
    for each in (measure, *MEASURES.values()):
        scores = MemberScores.from_logits(logits[:, chosen], labels[chosen], MACS, each)
        gate = search(scores, each, max_drop=0.5)[0]
        costs[each.name] = outcome(MemberScores.from_logits(new, truth, MACS, each), each, gate.thresholds)
    best = min(found.expected_macs for name, found in costs.items() if name != "learned")
    assert costs["learned"].expected_macs < 0.9 * best
    assert costs["learned"].top1 > costs["confidence"].top1 - 1


def test_heads_are_fitted_on_other_images_than_thresholds() -> None:
    """On its own images a head is surer than on new ones, and the promise would not hold."""
    fitted, rest = halves(1001)
    assert len(fitted) + len(rest) == 1001
    assert not set(fitted.tolist()) & set(rest.tolist())
    assert torch.equal(fitted, halves(1001)[0])


def test_saved_and_read_again() -> None:
    """The gate that is loaded would be another one."""
    logits, labels = cascade(1000, seed=3)
    heads = fit_heads(logits, labels)
    gate = Gate.by(learned(heads), [0.5])
    again = Gate.from_dict(json.loads(json.dumps(gate.to_dict())))
    assert again == gate
    assert torch.equal(again.stops(logits[0], 0), gate.stops(logits[0], 0))
    values = gate.measured.value(logits[0])
    assert ((values >= 0) & (values <= 1)).all()
    assert values.min() < 0.5 < values.max()


@pytest.mark.parametrize("name", [*MEASURES, "learned"])
def test_lower_precision_leaves_the_gate_as_it_is(name: str) -> None:
    """Thresholds are chosen in float32; rounded by autocast, other images would stop."""
    logits, labels = cascade(1000, seed=3)
    measure = learned(fit_heads(logits, labels)) if name == "learned" else MEASURES[name]
    expected = measure.value(logits[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(measure.value(logits[0]), expected)


def test_what_is_not_a_number_goes_on() -> None:
    logits, labels = cascade(1000, seed=3)
    gate = Gate.by(learned(fit_heads(logits, labels)), [0.0])
    broken = logits[0, :4].clone()
    broken[1, 2], broken[2, 5] = float("nan"), float("inf")
    assert gate.stops(broken, 0).tolist() == [True, False, False, True]


def test_the_second_exit_sees_both_members() -> None:
    logits, labels = cascade(2000, seed=4, classes=5)
    third = logits[1] + 2 * torch.eye(5)[labels]
    heads = fit_heads(torch.stack([logits[0], logits[0] * 0.9, third]), labels)
    assert [len(own) for own in heads.mends] == [7, 13]
    assert heads.top == min(TOP, 5)
    with pytest.raises(UserError, match="do not fit"):
        dataclasses.replace(heads, spoils=heads.spoils[:1])
    with pytest.raises(UserError, match="not finite"):
        dataclasses.replace(heads, mends=(heads.mends[0], (float("nan"), *heads.mends[1][1:])))
    with pytest.raises(UserError, match="2 heads for 1 thresholds"):
        Gate.by(learned(heads), [0.5])


def test_too_few_images_are_said() -> None:
    """A head that was fitted on three examples is noise, and would be believed."""
    logits, labels = cascade(30, seed=0)
    with pytest.raises(UserError, match="too few to learn a gate") as caught:
        fit_heads(logits, labels)
    assert str(LEAST) in caught.value.remedy
    same = torch.stack([logits[0], logits[0]])
    with pytest.raises(UserError, match="mends 0"):
        fit_heads(same.repeat(1, 50, 1), labels.repeat(50))


PLAIN = {"top": 1, "mends": [[1.0, 1.0, 0.0]], "spoils": [[0.0, 0.0, 0.0]]}


@pytest.mark.parametrize(
    ("measure", "heads"),
    [("learned", None), ("margin", PLAIN), ("learned", {**PLAIN, "mends": [["x", 1.0, 1.0]]}), ("learned", {"top": 1})],
)
def test_a_damaged_gate_is_refused(measure: str, heads: dict[str, object] | None) -> None:
    data = {"measure": measure, "thresholds": [0.5], "heads": heads}
    with pytest.raises(UserError):
        Gate.from_dict(data)


def test_a_measure_can_be_looked_up_by_its_heads() -> None:
    heads = Heads(1, ((1.0, 1.0, 0.0),), ((0.0, 0.0, 0.0),))
    assert isinstance(learned(heads), Measure)
    assert {learned(heads): 1}[learned(heads)] == 1
