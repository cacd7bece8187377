"""A student and an assistant never cost more than the model that they are made of, and hardly less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kdcompress.models  # noqa: F401 - registers our networks
from kdcompress.errors import UserError
from kdcompress.flops import profile
from kdcompress.models.build import ModelSpec, build, config_of
from kdcompress.models.narrow import narrow
from kdcompress.models.separate import Separation, measured, separate
from kdcompress.models.student_assistant import ARCHITECTURE, StudentAssistant, embedding_size

# at 0.25 of its width the first ResNet has so few channels that other assistants than that of the share are tried
OURS = ["resnet8_cifar", "resnet8_cifar,width=0.25", "wrn_16_1_cifar"]
TIMMS = ["resnet10t", "test_resnet", "convnext_zepto_rms", "test_efficientnet"]
LARGE = ("resnet10t", "convnext_zepto_rms")  # at their own 224 x 224 pixels each count takes long


def pair(spec: str, found: Separation, features: int, classes: int = 10, **shape: Any) -> StudentAssistant:
    parsed = ModelSpec.parse(spec)
    model = {"architecture": parsed.name, "model_args": parsed.args}
    args = {"model": model, "widths": list(found.widths), "features": features}
    made, _ = build(ModelSpec(ARCHITECTURE, args), num_classes=classes, in_chans=3, **shape)
    assert isinstance(made, StudentAssistant)
    return made.eval()


def independent_macs(model: nn.Module, size: tuple[int, ...]) -> int:
    """Convolutions and matrix products as torch itself counts them."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("spec", [*OURS, *TIMMS])
def test_the_two_cost_what_the_one_did(spec: str) -> None:
    """At a higher cost any gain of the method would be bought; far below it, it would be given away."""
    features = 32
    shape: dict[str, Any] = {"size": (64, 64)} if spec in LARGE else {}
    found = separate(ModelSpec.parse(spec), 0.2, features=features, num_classes=10, **shape)
    whole, _ = build(ModelSpec.parse(spec), num_classes=10, **shape)
    size = config_of(whole)["input_size"]
    assert found.undivided_macs == profile(whole, size).macs
    assert 0.97 <= found.macs / found.undivided_macs <= 1
    assert found.student_macs > found.assistant_macs
    made = pair(spec, found, features, **shape)
    assert sum(profile(stage, size).macs for stage in made.stages()) == found.macs
    share = independent_macs(made, size) / independent_macs(whole, size)
    assert 0.95 <= share <= 1, "torch counts neither BatchNorm nor pooling, so its shares differ a little"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_assistant_gets_its_share(share: float) -> None:
    """--assistant-share would be a wish."""
    found = separate(ModelSpec.parse("wrn_16_2_cifar"), share, features=64, num_classes=10)
    assert found.assistant_macs / found.undivided_macs == pytest.approx(share, rel=0.1)
    assert 0.97 <= found.macs / found.undivided_macs <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_shares_outside_are_refused(share: float) -> None:
    """Else the search would end in a network without channels."""
    with pytest.raises(UserError, match="outside"):
        separate(ModelSpec.parse("resnet8_cifar"), share, features=8, num_classes=10)


@pytest.mark.parametrize(("spec", "share"), [("resnet8_cifar", 1e-4), ("resnet8_cifar,width=0.05", 0.1)])
def test_widths_that_round_to_nothing_are_refused(spec: str, share: float) -> None:
    """A user would get two networks that cost half of what was paid for, or one with no channels."""
    with pytest.raises(UserError, match=f"^{spec} cannot be separated at --assistant-share") as caught:
        separate(ModelSpec.parse(spec), share, features=64, num_classes=10)
    assert "--assistant-share" in caught.value.remedy


@pytest.mark.parametrize("spec", ["resnet8_cifar,width=2", "resnet10t", "convnext_zepto_rms", "mobilenetv3_small_050"])
def test_a_narrow_network_is_rebuilt_from_its_spec(spec: str) -> None:
    """Else a saved student could not be loaded again."""
    shapes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = narrow(ModelSpec.parse(spec), 0.4, num_classes=0)
        shapes.append({key: tuple(value.shape) for key, value in network.state_dict().items()})
    assert shapes[0] == shapes[1]
    whole = narrow(ModelSpec.parse(spec), 1, num_classes=0)
    size = config_of(whole)["input_size"]
    assert embedding_size(network) < embedding_size(whole)
    assert profile(network, size).macs < 0.4 * profile(whole, size).macs


def test_what_cannot_be_narrowed_says_what_can() -> None:
    """A stack of the pruning library's calls is no answer."""
    with pytest.raises(UserError, match="cannot be narrowed") as caught:
        narrow(ModelSpec.parse("test_vit"), 0.95, num_classes=0)
    assert "resnet20_cifar" in caught.value.remedy


@pytest.mark.parametrize(
    ("spec", "word"),
    [("test_vit", "cannot be narrowed"), ("student_assistant", "cannot be made")],
)
def test_what_cannot_be_separated_says_why(spec: str, word: str) -> None:
    """Told that its channels are too few, a user would try larger and larger networks."""
    with pytest.raises(UserError, match=word) as caught:
        separate(ModelSpec.parse(spec), 0.1, features=8, num_classes=10)
    assert caught.value.remedy


def test_a_width_of_no_channels_is_left_out() -> None:
    """timm's grouped blocks round to no channels at all, and then the profile of that network fails."""
    with pytest.raises(UserError, match="no channels left"):
        measured(ModelSpec.parse("resnext50_32x4d"), 10, num_classes=0, size=(32, 32))


def test_a_narrow_resnet_is_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of timm's ResNets have channels of their own, which those of the usual ones would replace."""
    for spec in ("test_resnet", "resnet10t"):
        sizes = [
            sum(p.numel() for p in narrow(ModelSpec.parse(spec), width, num_classes=0).parameters())
            for width in (1, 0.999, 0.9, 0.3)
        ]
        assert sizes == sorted(sizes, reverse=True), spec
        assert sizes[1] > 0.9 * sizes[0]


def test_without_torch_pruning_the_remedy_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional; who needs it has to learn of it."""
    monkeypatch.setitem(__import__("sys").modules, "torch_pruning", None)
    with pytest.raises(UserError, match="no width of its own") as caught:
        narrow(ModelSpec.parse("mobilenetv3_small_050"), 0.5, num_classes=0)
    assert "kdcompress[prune]" in caught.value.remedy


@pytest.fixture
def made() -> StudentAssistant:
    torch.manual_seed(0)
    model = pair("resnet8_cifar", Separation((0.9, 0.3), 0, 0, 0, 0), features=24)
    nn.init.normal_(model.assistant_projection.weight)
    return model


@torch.no_grad()
def test_logits_are_those_of_the_summed_feature(made: StudentAssistant) -> None:
    """The paper's form: one classifier on the sum of both features; ours adds A's part afterwards."""
    x = torch.randn(5, 3, 32, 32)
    feature = made.student_projection(made.student(x)) + made.assistant_projection(made.assistant(x))
    torch.testing.assert_close(made(x), made.fc(feature))
    torch.testing.assert_close(made.forward_stages(x)[-1], made.fc(feature))


@torch.no_grad()
def test_with_a_gate_the_assistant_runs_only_where_it_is_needed(made: StudentAssistant) -> None:
    """Else the gate only pretends to save."""
    x = torch.randn(16, 3, 32, 32)
    alone = made.student_branch()(x)
    certainty = alone.softmax(1).amax(1)
    limit = float(certainty.median())
    seen: list[Any] = []
    made.assistant.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    arguments = {"model": {"architecture": "resnet8_cifar"}, "widths": (0.9, 0.3), "features": 24}
    gated = StudentAssistant(**arguments, gate={"measure": "confidence", "thresholds": [limit]}).eval()  # type: ignore[arg-type]
    gated.load_state_dict(made.state_dict())
    made.gate = gated.gate
    logits = made(x)
    stops = certainty >= limit
    assert seen == [int((~stops).sum())]
    torch.testing.assert_close(logits[stops], alone[stops])
    torch.testing.assert_close(gated(x), logits)
