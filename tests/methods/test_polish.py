"""The soft gate of the joint polish, and what it trains."""

from __future__ import annotations

import pytest
import torch

from kdcompress.gating import MEASURES, Gate
from kdcompress.methods.base import Frozen
from kdcompress.methods.polish import PolishTask, SoftlyGated, stop_probabilities
from kdcompress.models.residual_cascade import ResidualCascade


def cascade(*thresholds: float | None, measure: str = "confidence") -> ResidualCascade:
    torch.manual_seed(0)
    members = [{"architecture": "lenet5", "sum_weight": 0.5}] * (len(thresholds) + 1)
    return ResidualCascade(members, {"measure": measure, "thresholds": list(thresholds)})


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_soft_gate_agrees_with_the_hard_one(measure: str) -> None:
    """Members would train on images that never reach them."""
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 3
    earlier = [torch.randn(200, 10, generator=torch.Generator().manual_seed(1))]
    middle = float(MEASURES[measure].value(logits, *earlier).median())
    gate = Gate(measure, (None, middle))
    chances = stop_probabilities(gate, logits, 1, earlier)
    assert torch.equal(chances >= 0.5, gate.stops(logits, 1, earlier))
    assert not bool(stop_probabilities(gate, logits, 0, []).any())


def test_no_gradient_goes_through_the_gate() -> None:
    """The cascade could lower its loss by being confident on images that it gets wrong."""
    logits = torch.randn(4, 10, requires_grad=True)
    assert not stop_probabilities(Gate("confidence", (0.5,)), logits, 0, []).requires_grad


def test_members_are_weighted_by_their_probability_to_run(x: torch.Tensor) -> None:
    """By hand, with three members."""
    model = cascade(0.2, 0.3).eval()
    first, second, third = model.forward_stages(x)
    goes_on = 1 - stop_probabilities(model.gate, first, 0, [])  # type: ignore[arg-type]
    further = goes_on * (1 - stop_probabilities(model.gate, second, 1, [first]))  # type: ignore[arg-type]
    expected = first + goes_on[:, None] * (second - first) + further[:, None] * (third - second)
    soft = SoftlyGated(model).train()
    torch.testing.assert_close(soft(x), expected)  # LeNet has no layer that differs in training mode
    assert torch.equal(soft.eval()(x), model(x))


@pytest.mark.parametrize(("threshold", "whole"), [(0.0, False), (1.0, True), (None, True)])
def test_a_gate_that_is_certain(threshold: float | None, whole: bool, x: torch.Tensor) -> None:
    """At thresholds 0 and 1 it must neither be NaN nor train a member that never runs."""
    model = cascade(threshold)
    soft = SoftlyGated(model).train()
    expected = model.forward_full(x) if whole else model.stages()[0](x)
    torch.testing.assert_close(soft(x), expected, rtol=0, atol=1e-5)


def test_all_members_learn_and_the_cascade_is_kept(x: torch.Tensor) -> None:
    """The saved network is the one that timm knows, with its gate; the wrapper is only for training."""
    model = cascade(0.2)
    task = PolishTask(SoftlyGated(model), Frozen(cascade(None)))
    task.train()(x, torch.arange(16) % 10)["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
    assert task.trained() is model
    assert task.get_eval_model() is model
