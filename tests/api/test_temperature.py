"""Losses that leave the scale of logits open: what comes out has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import kdcompress
from chains import COMMON, TINY, Chain, record_of
from kdcompress.api.job import Job
from kdcompress.api.temperature import best_scale, scale_classifier


@pytest.mark.parametrize("factor", [0.05, 1.0, 40.0])
def test_the_scale_is_the_best_one(factor: float) -> None:
    """Probabilities would be surer, or less sure, than the network is right."""
    torch.manual_seed(0)
    true = 2 * torch.randn(4000, 5)
    labels = torch.distributions.Categorical(logits=true).sample()
    found = best_scale(true / factor, labels)
    assert found == pytest.approx(factor, rel=0.06)
    least = F.cross_entropy(found * true / factor, labels)
    for other in (0.97, 1.03):
        assert F.cross_entropy(other * found * true / factor, labels) >= least


def test_a_network_that_is_always_right_is_not_infinitely_sure() -> None:
    """Its first mistake on a new image would cost all."""
    labels = torch.arange(5).repeat(20)
    logits = F.one_hot(labels, 5) + 0.1 * torch.randn(100, 5)
    sure = (best_scale(logits, labels) * logits).softmax(1).gather(1, labels[:, None])
    assert 0.97 < float(sure.mean()) < 0.999


def test_only_linear_layers_are_scaled() -> None:
    """A half-scaled network would predict something else."""
    layer = torch.nn.Linear(3, 2)
    x, before = torch.randn(4, 3), [each.clone() for each in layer.parameters()]
    assert not scale_classifier([layer, torch.nn.Identity()], 3.0)
    assert all(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))
    expected = 3 * layer(x)
    assert scale_classifier([layer], 3.0)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("loss", ["standardized-kl", "kl"])
def test_a_student_whose_loss_has_no_scale_is_calibrated(
    chain: Chain, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probabilities were 30 to 50 points from its accuracy, and a gate would go by them."""
    given = {**COMMON, "epochs": 3}
    done = kdcompress.distill(
        teacher=str(chain.teacher.run), student=TINY, method="kd", logit_loss=loss, out=str(tmp_path / "s"), **given
    )
    assert (done.logit_temperature is None) == (loss == "kl")
    if loss == "standardized-kl":
        assert record_of(done.run)["result"]["logit_temperature"] == done.logit_temperature != 1
        scored = kdcompress.evaluate(run=done.run, split="calibration", device="cpu")
        assert scored.loss == pytest.approx(done.loss, rel=1e-3), "what is saved is what was scored"
        monkeypatch.setattr(Job, "_fold_temperature", lambda *_: None)
        bare = kdcompress.distill(
            teacher=str(chain.teacher.run), student=TINY, method="kd", logit_loss=loss, out=str(tmp_path / "b"), **given
        )
        without = kdcompress.evaluate(run=bare.run, split="calibration", device="cpu")
        assert without.top1 == scored.top1
        assert scored.ece < without.ece - 15, "the bin counts of 142 images differ between processors by a few points"
