"""The cascade: sums of logits, and members that are really not run."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcompress.gating import MEASURES, Gate
from kdcompress.models.residual_cascade import ResidualCascade

CLASSES = 4
MEMBERS = [
    {"architecture": "resnet8_cifar", "model_args": {"width": 0.25}},
    {"architecture": "lenet5", "model_args": {"width": 0.5}, "sum_weight": 0.5},
    {"architecture": "resnet8_cifar", "model_args": {"width": 0.125, "shortcut": "A"}},
]

WEIGHTS = (1.0, 0.5, 1.0)


def make(gate: dict[str, Any] | None = None, members: list[dict[str, Any]] | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    cascade = timm.create_model(
        "residual_cascade", members=members or MEMBERS, gate=gate, num_classes=CLASSES, in_chans=1
    )
    for member in cascade.members:  # spread the certainties, or all samples would stop at one stage
        with torch.no_grad():
            member.get_classifier().weight.mul_(4)
    return cascade.eval()


def gate_at(cascade: ResidualCascade, x: Tensor, measure: str = "confidence", quantile: float = 0.5) -> dict[str, Any]:
    """Thresholds that part the samples at every stage, halfway between two of them."""
    logits, thresholds = cascade.forward_stages(x), []
    for stage, sums in enumerate(logits[:-1]):
        values = MEASURES[measure].value(sums, *logits[:stage]).sort().values
        at = int(quantile * (len(values) - 1))
        thresholds.append(float((values[at] + values[at + 1]) / 2))
    return {"measure": measure, "thresholds": thresholds}


@contextmanager
def samples_seen(cascade: ResidualCascade) -> Iterator[list[int]]:
    """How many samples each member gets."""
    seen = [0] * len(cascade.members)

    def count(number: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[number] += len(inputs[0])

        return hook

    hooks = [member.register_forward_pre_hook(count(number)) for number, member in enumerate(cascade.members)]
    yield seen
    for hook in hooks:
        hook.remove()


def simulate(cascade: ResidualCascade, x: Tensor, measure: str, thresholds: list[float | None]) -> Any:
    """One sample at a time, straight from the definition."""
    logits, stages = [], []
    for image in x:
        total, earlier = cascade.members[0](image[None]), []
        for stage, member in enumerate(cascade.members[1:]):
            limit = thresholds[stage]
            value = float(MEASURES[measure].value(total, *earlier))
            if limit is not None and (value <= limit if measure == "entropy" else value >= limit):
                break
            earlier.append(total)
            total = WEIGHTS[stage + 1] * total + member(image[None])
            stages.append(stage)
        logits.append(total)
        stages.append(-1)
    counts = "".join("." if stage == -1 else "x" for stage in stages).split(".")[:-1]
    return torch.cat(logits), torch.tensor([len(part) for part in counts])


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(7)
    return torch.randn(64, 1, 8, 8)


@torch.no_grad()
def test_full_is_the_sum_of_its_members(x: Tensor) -> None:
    """Every number reported for a cascade is about this sum."""
    cascade = make()
    first, second, third = (member(x) for member in cascade.members)
    expected = 0.5 * first + second + third
    torch.testing.assert_close(cascade(x), expected)
    torch.testing.assert_close(cascade.forward_full(x), expected)
    torch.testing.assert_close(cascade.forward_stages(x)[-1], expected)
    assert cascade.forward_stages(x).shape == (3, 64, CLASSES)


@pytest.mark.parametrize("measure", sorted(MEASURES))
@torch.no_grad()
def test_gated_is_the_definition_sample_by_sample(x: Tensor, measure: str) -> None:
    """A user would deploy predictions that belong to other samples, or stop at the wrong ones."""
    cascade = make()
    gate = gate_at(cascade, x, measure)
    cascade.gate = Gate.from_dict(gate)
    expected, stages = simulate(cascade, x, measure, gate["thresholds"])
    assert set(stages.tolist()) == {0, 1, 2}  # else this would test nothing
    logits, stopped = cascade.forward_gated(x)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(stopped, stages)
    torch.testing.assert_close(cascade(x), logits)


@torch.no_grad()
def test_members_behind_the_stop_are_not_run(x: Tensor) -> None:
    """The whole saving: computing and then throwing away would cost the full cascade."""
    cascade = make()
    cascade.gate = Gate.from_dict(gate_at(cascade, x))
    with samples_seen(cascade) as seen:
        _, stopped = cascade.forward_gated(x)
    assert seen == [64, int((stopped >= 1).sum()), int((stopped >= 2).sum())]
    assert 64 > seen[1] > seen[2] > 0


@torch.no_grad()
def test_batch_size_does_not_change_predictions() -> None:
    """A service that answers one request at a time must give what the test split was scored with."""
    cascade = make()
    torch.manual_seed(1)
    x = torch.randn(1000, 1, 8, 8)
    cascade.gate = Gate.from_dict(gate_at(cascade, x))
    logits, stopped = cascade.forward_gated(x)
    ones = [cascade.forward_gated(image[None]) for image in x]
    assert torch.equal(torch.cat([one[1] for one in ones]), stopped)
    assert torch.equal(torch.cat([one[0] for one in ones]).argmax(1), logits.argmax(1))
    torch.testing.assert_close(torch.cat([one[0] for one in ones]), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("thresholds", "seen_expected"),
    [([0.0, 0.0], [64, 0, 0]), ([None, None], [64, 64, 64]), ([1.0, 1.0], [64, 64, 64]), ([None, 0.0], [64, 64, 0])],
)
@torch.no_grad()
def test_all_stop_or_none_stops(x: Tensor, thresholds: list[float | None], seen_expected: list[int]) -> None:
    """At the ends of the gate's range an empty sub-batch must neither crash a member nor be run."""
    cascade = make({"measure": "confidence", "thresholds": thresholds})
    with samples_seen(cascade) as seen:
        logits, stopped = cascade.forward_gated(x)
    assert seen == seen_expected
    ran = sum(count > 0 for count in seen)
    assert stopped.tolist() == [ran - 1] * 64
    torch.testing.assert_close(logits, cascade.forward_stages(x)[ran - 1])


@torch.no_grad()
def test_training_mode_ignores_the_gate(x: Tensor) -> None:
    """Fine-tuning through the gate would train the later members on the hard samples alone."""
    cascade = make({"measure": "confidence", "thresholds": [0.0, 0.0]})
    cascade.train()
    with samples_seen(cascade) as seen:
        cascade(x)
    assert seen == [64, 64, 64]
    cascade.eval()
    with samples_seen(cascade) as seen:
        cascade(x)
    assert seen == [64, 0, 0]


@torch.no_grad()
def test_a_gate_of_nobody_equals_no_gate(x: Tensor) -> None:
    """Forward with a gate must not disturb the members' own outputs in place."""
    cascade = make()
    full = cascade(x)
    cascade.gate = Gate("confidence", (None, None))
    assert torch.equal(cascade(x), full)
    assert torch.equal(cascade(x), full)
    assert torch.equal(cascade.forward_full(x), full)


@torch.no_grad()
def test_half_precision_members_are_summed_in_float32(x: Tensor) -> None:
    """Thresholds are calibrated on sums in float32; sums in bf16 would stop other samples."""

    class Told(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), CLASSES), self.value, dtype=torch.bfloat16)

    cascade = make()
    cascade.members = nn.ModuleList([Told(512.0), Told(0.5), Told(0.5)])
    for gate in (None, Gate("confidence", (None, None))):
        cascade.gate = gate
        assert cascade(x).dtype == torch.float32
        assert cascade(x).unique().tolist() == [257.0]


def test_state_dict_keys_are_the_members_own() -> None:
    """Tools that read the file find each member's timm names below members.N, and nothing else."""
    cascade = make({"measure": "confidence", "thresholds": [0.5, 0.5]})
    expected = [f"members.{i}.{key}" for i, member in enumerate(cascade.members) for key in member.state_dict()]
    assert list(cascade.state_dict()) == expected
    assert "members.0.layer1.0.conv1.weight" in expected


@torch.no_grad()
def test_channels_last_gives_the_same(x: Tensor) -> None:
    """The memory layout that is fastest must not change an answer, and sub-batches must keep it."""
    cascade = make()
    cascade.gate = Gate.from_dict(gate_at(cascade, x))
    expected = cascade.forward_gated(x)
    layouts = []
    cascade.members[1].register_forward_pre_hook(
        lambda _module, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    fast = cascade.to(memory_format=torch.channels_last)
    got = fast.forward_gated(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(got[1], expected[1])
    assert layouts == [True]


@torch.no_grad()
def test_a_deep_copy_is_whole(x: Tensor) -> None:
    """EMA and quantisation tools copy models; a copy has to keep the gate and share no weight."""
    cascade = make()
    cascade.gate = Gate.from_dict(gate_at(cascade, x))
    expected = cascade(x)
    twin = copy.deepcopy(cascade)
    for parameter in cascade.parameters():
        parameter.zero_()
    torch.testing.assert_close(twin(x), expected)
    assert twin.gate == cascade.gate


@torch.no_grad()
def test_model_args_alone_rebuild_it(x: Tensor) -> None:
    """A saved cascade has nothing else than config.json to be rebuilt from, by JSON's types."""
    gate = {"measure": "margin", "thresholds": [0.25, None]}
    cascade = make(gate)
    args = json.loads(json.dumps({"members": MEMBERS, "gate": gate, "in_chans": 1}))
    again = timm.create_model("residual_cascade", num_classes=CLASSES, **args).eval()
    again.load_state_dict(cascade.state_dict())
    assert torch.equal(again(x), cascade(x))
    assert again.gate == cascade.gate == Gate("margin", (0.25, None))
    assert [type(member).__name__ for member in again.members] == ["CifarResNet", "LeNet5", "CifarResNet"]


def test_gradients_reach_every_member(x: Tensor) -> None:
    """A user who fine-tunes the whole cascade would otherwise train a part of it."""
    cascade = make().train()
    cascade(x).square().mean().backward()
    for member in cascade.members:
        assert all(parameter.grad is not None for parameter in member.parameters())


def test_the_classifier_is_that_of_every_member() -> None:
    """timm's tools (and a zero start) look the classifier up here."""
    assert [layer.out_features for layer in make().get_classifier()] == [CLASSES] * 3


def test_no_members_is_refused() -> None:
    """An empty cascade would fail later with an index error."""
    with pytest.raises(Exception, match="member"):
        timm.create_model("residual_cascade", members=[])
