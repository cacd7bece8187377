"""Residual KD with an assistant: the losses are those of its docstrings, and that what should stay does stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import small_networks
import torch
from small_networks import CLASSES
from torch import Tensor, nn
from torch.nn import functional as F

import kdcompress.models  # noqa: F401 - registers our networks
from kdcompress.errors import UserError
from kdcompress.methods.base import Frozen, FrozenMaps
from kdcompress.methods.features import (
    TRANSFERS,
    FeatureStage,
    at_common_size,
    attention,
    feature_size,
    feature_stages,
    fitnets,
    matched,
    observe,
)
from kdcompress.methods.rkd_assistant import Divided, RkdAssistantTask, TransferTask, Undivided
from kdcompress.models.build import ModelSpec, build, config_of
from kdcompress.models.student_assistant import ARCHITECTURE, StudentAssistant

SIZE = (1, 8, 8)  # of the images
MODEL = {"architecture": "resnet8_cifar", "model_args": {"width": 0.5}}


def network(seed: int, spec: str = "resnet14_cifar,width=0.5") -> nn.Module:
    return small_networks.network(seed, spec)


def divided(teacher: nn.Module, seed: int = 0, **given: Any) -> tuple[Divided, list[tuple[FeatureStage, FeatureStage]]]:
    torch.manual_seed(seed)
    spec = ModelSpec(ARCHITECTURE, {"model": MODEL, "widths": (0.9, 0.5), "features": feature_size(teacher)})
    model, _ = build(spec, num_classes=CLASSES, in_chans=1, size=(8, 8))
    assert isinstance(model, StudentAssistant)
    nn.init.normal_(model.assistant_projection.weight, std=0.1)
    goal = feature_stages(teacher, "teacher")
    pairs = matched(goal, feature_stages(model.student, "S"))
    return Divided(model, pairs, matched(goal, feature_stages(model.assistant, "A")), **given), pairs


def task_of(part: str, transfer: str = "fitnets", **given: Any) -> RkdAssistantTask:
    teacher = network(1)
    keep, features = given.pop("keep_classifier", False), given.pop("mimic_features", False)
    module, pairs = divided(teacher, keep_classifier=keep, connected=TRANSFERS[transfer].connected)
    stages = [] if part == "classifier" else [stage for stage, _ in pairs]
    shown = FrozenMaps(Frozen(teacher), stages, SIZE, features)
    return RkdAssistantTask(module, shown, TRANSFERS[transfer], part=part, **given)


def test_fitnets_is_l2_in_units_of_the_teacher() -> None:
    """Stages and teachers of another scale would weigh more or less than the cross-entropy."""
    found, wanted, teacher = torch.randn(3, 4, 6, 5, 5).unbind(0)
    expected = ((found - wanted) ** 2).sum() / (teacher**2).sum()
    torch.testing.assert_close(fitnets(found, wanted, teacher), expected)
    torch.testing.assert_close(fitnets(7 * found, 7 * wanted, 7 * teacher), expected)
    assert fitnets(wanted, wanted, teacher) == 0


def test_attention_ignores_the_scale_of_maps() -> None:
    """AT's maps are normalised: the same pattern at another scale, or in other channels, is no difference."""
    found, wanted = torch.rand(4, 6, 5, 5), torch.rand(4, 6, 5, 5)
    expected = 0.0
    for one, other in zip(found, wanted, strict=True):
        a, b = ((z**2).mean(0).flatten() for z in (one, other))
        expected += 1000 * float(((a / a.norm() - b / b.norm()) ** 2).mean())
    assert float(attention(found, wanted, wanted)) == pytest.approx(expected / 4, rel=1e-5)
    assert float(attention(3 * found, found[:, torch.randperm(6)], found)) == pytest.approx(0, abs=1e-6)


def test_smaller_maps_weigh_more() -> None:
    """A mean over pixels: a quarter of them, four times the loss for maps that do not overlap."""

    def apart(side: int) -> float:
        found, wanted = torch.zeros(2, 1, side, side), torch.zeros(2, 1, side, side)
        found[:, :, 0, 0] = wanted[:, :, -1, -1] = 1.0
        return float(attention(found, wanted, wanted))

    assert apart(8) == pytest.approx(1000 * 2 / 64)
    assert apart(4) == pytest.approx(4 * apart(8))


def test_maps_are_compared_at_the_smaller_size() -> None:
    """A teacher at another resolution could not be used."""
    large, small = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    first, second = at_common_size(large, small)
    torch.testing.assert_close(first, F.avg_pool2d(large, 2))
    assert second is small
    assert at_common_size(small, large)[1].shape == small.shape


def stage(index: int, reduction: int) -> FeatureStage:
    return FeatureStage(index, 8, reduction)


def test_stages_are_matched_one_by_one_by_resolution_or_at_the_end() -> None:
    """Matching a stem with a last stage would be meaningless."""
    four, three = [stage(i, 2 ** (i + 1)) for i in range(4)], [stage(i, 2**i) for i in range(3)]
    assert matched(four, [stage(i, 2 ** (i + 3)) for i in range(4)]) == list(
        zip(four, [stage(i, 2 ** (i + 3)) for i in range(4)], strict=True)
    )
    five = [stage(i, 2**i) for i in range(5)]
    assert [(t.reduction, s.reduction) for t, s in matched(five, four)] == [(2, 2), (4, 4), (8, 8), (16, 16)]
    assert matched(five, three) == [(five[-1], three[-1])]


FAMILIES = ["resnet8_cifar", "wrn_16_1_cifar", "test_resnet", "test_efficientnet", "test_convnext"]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_stages_are_the_last_maps_of_each_resolution(name: str) -> None:
    """Earlier maps of a stage carry less information."""
    model, _ = build(ModelSpec.parse(name), num_classes=CLASSES)
    model.eval()
    stages = feature_stages(model, name)
    reductions = [one.reduction for one in stages]
    assert reductions == sorted(set(reductions))
    x = torch.randn(2, *model.pretrained_cfg["input_size"])  # type: ignore[index]
    logits, maps = observe(model, x, stages)
    torch.testing.assert_close(logits, model(x), rtol=1e-3, atol=1e-4)
    assert [found.shape[1] for found in maps] == [one.channels for one in stages]


def test_padding_hides_no_stage() -> None:
    """Where 32 does not divide the side, one network crops and another pads: all but one stage was unmatched."""
    teacher, student = (build(ModelSpec(name), size=(240, 240))[0] for name in ("convnext_atto", "resnet18"))
    for network in (teacher, student):
        config_of(network)["input_size"] = (3, 240, 240)
    pairs = matched(feature_stages(teacher, "teacher"), feature_stages(student, "student"))
    assert [(own.reduction, goal.reduction) for goal, own in pairs] == [(4, 4), (8, 8), (16, 16), (32, 32)]


def test_small_images_hide_no_stage() -> None:
    """At 8 x 8 the last stages of a ResNet-18 are one pixel each; its stem would be matched with a second stage."""
    small, _ = build(ModelSpec.parse("resnet18"), num_classes=CLASSES, size=(8, 8))
    large, _ = build(ModelSpec.parse("resnet18"), num_classes=CLASSES, size=(64, 64))
    assert feature_stages(small, "small") == feature_stages(large, "large")


def test_images_too_small_for_a_network_are_named() -> None:
    """With an error about feature maps, a user would look for another network, not for larger images."""
    model, _ = build(ModelSpec.parse("test_convnext"), num_classes=CLASSES, size=(4, 4))
    with pytest.raises(UserError, match="cannot process images of 4x4") as caught:
        feature_stages(model, "test_convnext")
    assert "--input-size" in caught.value.remedy


class Opaque(nn.Module):
    pretrained_cfg = {"input_size": (1, 8, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_a_network_without_maps_is_refused() -> None:
    """Else the user meets an AttributeError after the data are loaded."""
    with pytest.raises(UserError, match="The teacher gives no feature maps"):
        feature_stages(Opaque(), "The teacher")


def naive_residual(task: RkdAssistantTask, x: Tensor, transfer: str) -> tuple[Tensor, Tensor]:
    """L_S and L_A, written out."""
    module, teacher = copy.deepcopy(task.trainable_module), task.teacher.model
    goals = observe(teacher, x, task.teacher.stages)[1]
    student = observe(module.model.student.train(), x, module.stages)[1]
    assistant = observe(module.model.assistant.train(), x, module.stages)[1]
    estimates = module.student_connectors(student)
    assistant = module.assistant_connectors(assistant)
    if transfer == "fitnets":  # compares in the teacher's channels; AT looks at no channels
        student = estimates
    d = {"fitnets": fitnets, "at": attention}[transfer]
    first = sum(d(s, t, t) for s, t in zip(student, goals, strict=True)) / len(goals)
    second = sum(d(s + a, t, t) for a, s, t in zip(assistant, estimates, goals, strict=True)) / len(goals)
    if transfer == "fitnets":
        residual = sum(d(a, t - s, t) for a, s, t in zip(assistant, estimates, goals, strict=True)) / len(goals)
        torch.testing.assert_close(second, residual)
    return first, second


@pytest.mark.parametrize("transfer", ["fitnets", "at"])
def test_the_residual_shrinks_in_training(x: Tensor, y: Tensor, transfer: str) -> None:
    """If nothing tied S's channels to the teacher's, their difference would be larger than the teacher's map itself."""
    task = task_of("student", transfer).train()
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        task(x, y)["loss"].backward()
        optimizer.step()
    goals = observe(task.teacher.model, x, task.teacher.stages)[1]
    with torch.no_grad():
        estimates = task.trainable_module(x).student_estimates
    for goal, estimate in zip(goals, estimates, strict=True):
        assert float((goal - estimate).norm() / goal.norm()) < 0.8


def test_connectors_of_at_do_not_disturb_the_student(x: Tensor, y: Tensor) -> None:
    """S would learn FitNets beside AT, and the control only AT."""
    task = task_of("all", "at").train()
    task(x, y)["connector_loss"].backward()
    module = task.trainable_module
    assert all(p.grad is None or not p.grad.any() for p in module.model.parameters())
    assert all(p.grad is not None and p.grad.any() for p in module.student_connectors.parameters())
    assert not Undivided(network(2), [], connected=False).connectors


@pytest.mark.parametrize("transfer", ["fitnets", "at"])
def test_losses_are_those_of_the_method(x: Tensor, y: Tensor, transfer: str) -> None:
    """An assistant that learned the teacher's maps instead of the residual would be a second student."""
    weights = {"transfer_weight": 2.0, "logit_weight": 0.5, "student_weight": 0.0}
    task = task_of("all", transfer, temperature=3.0, **weights).train()
    first, second = naive_residual(task, x, transfer)
    result = task(x, y)
    torch.testing.assert_close(result["transfer_loss"], 2 * first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["residual_loss"], 2 * second, rtol=1e-4, atol=1e-5)
    p = (task.teacher.network(x) / 3).softmax(1)
    kl = 9 * (p * (p.log() - (result["output"] / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(result["kd_loss"], 0.5 * kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["task_loss"], F.cross_entropy(result["output"], y))


def test_a_first_exit_has_its_share_of_the_cross_entropy(x: Tensor, y: Tensor) -> None:
    """With a gate most images stop at S; and the share of S must be taken from that of the sum."""
    results = {weight: task_of("all", student_weight=weight).train()(x, y) for weight in (0.0, 0.25, 1.0)}
    logits = task_of("all").train().trainable_module(x).student_logits
    own, summed = F.cross_entropy(logits, y), results[0.0]["task_loss"]
    for weight, result in results.items():
        torch.testing.assert_close(result["task_loss"], (1 - weight) * summed + weight * own, rtol=1e-4, atol=1e-5)
        parts = sum(result[name] for name in ("task_loss", "transfer_loss", "residual_loss"))
        torch.testing.assert_close(result["loss"], parts, rtol=1e-4, atol=1e-5)


def test_a_classifier_trained_on_labels_needs_no_teacher(x: Tensor, y: Tensor) -> None:
    """The teacher is most of the work, and its outputs would not be used."""
    task = task_of("classifier").train()
    with torch.no_grad():
        expected = F.cross_entropy(task.trained()(x), y)
    task.teacher.network.forward = task.teacher.network.observe = None  # type: ignore[assignment, method-assign]
    torch.testing.assert_close(task(x, y)["loss"], expected, rtol=1e-4, atol=1e-5)
    assert not task.frozen()
    assert task_of("classifier", logit_weight=0.5).frozen()
    assert task_of("classifier", mimic_features=True).frozen()
    assert task_of("student").frozen()


def test_an_assistant_does_not_start_at_zero() -> None:
    """With logits that start at zero, no gradient reached its features, and it added nothing in the end."""
    fresh = StudentAssistant(MODEL, (0.9, 0.5), in_chans=1)
    assert fresh.assistant_projection.weight.any()
    x, y = torch.randn(4, *SIZE), torch.arange(4)
    F.cross_entropy(fresh(x), y).backward()
    assert all(p.grad is not None and p.grad.any() for p in fresh.assistant.parameters() if p.ndim > 1)


@pytest.mark.parametrize("transfer", ["fitnets", "at"])
def test_the_residual_sends_no_gradient_into_the_student(x: Tensor, y: Tensor, transfer: str) -> None:
    """S would move away from the teacher to make the task of A easier."""
    task = task_of("all", transfer).train()
    task(x, y)["residual_loss"].backward()
    module = task.trainable_module
    students = [module.model.student, module.student_connectors, module.model.student_projection]
    assert all(p.grad is None or not p.grad.any() for part in students for p in part.parameters())
    assert any(p.grad is not None and p.grad.any() for p in module.model.assistant.parameters())
    connectors = list(module.assistant_connectors.parameters())
    assert all(p.grad is not None and p.grad.any() for p in connectors)


PREFIXES = {
    "student": ("model.student", "student_connectors", "model.student_projection", "model.fc"),
    "assistant": ("model.assistant", "assistant_connectors", "model.assistant_projection"),
    "classifier": ("model.student_projection", "model.assistant_projection", "model.fc"),
    "all": ("",),
}


@pytest.mark.parametrize("part", list(PREFIXES))
def test_only_the_part_in_training_changes(x: Tensor, y: Tensor, part: str) -> None:
    """In the second phase of progressive training S must stay bit-identical, BatchNorm's statistics included."""
    task = task_of(part)
    module = task.trainable_module
    before = copy.deepcopy(module.state_dict())
    learns = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learns, lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        task.train()
        optimizer.zero_grad()
        task(x, y)["loss"].backward()
        optimizer.step()
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith(tuple(f"{name}." if name else "" for name in PREFIXES[part])) for key in changed)
    assert all(any(key.startswith(name) for key in changed) for name in PREFIXES[part])


def test_a_frozen_classifier_stays_the_teachers(x: Tensor, y: Tensor) -> None:
    """--freeze-classifier would else drift by weight decay."""
    for part in PREFIXES:
        task = task_of(part, keep_classifier=True, mimic_features=True)
        model = task.trainable_module.model
        before = copy.deepcopy(model.fc.state_dict())
        optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
        result = task.train()(x, y)
        assert "feature_loss" in result
        result["loss"].backward()
        optimizer.step()
        assert all(torch.equal(value, before[key]) for key, value in model.fc.state_dict().items())


def test_the_control_learns_by_the_same_transfer(x: Tensor, y: Tensor) -> None:
    """The comparison at equal cost would compare two methods, not the separation."""
    teacher, student = network(1), network(2, "resnet8_cifar,width=0.5")
    pairs = matched(feature_stages(teacher, "teacher"), feature_stages(student, "student"))
    shown = FrozenMaps(Frozen(teacher), [stage for stage, _ in pairs], SIZE)
    task = TransferTask(Undivided(student, pairs), shown, TRANSFERS["fitnets"], transfer_weight=3.0).train()
    module = copy.deepcopy(task.trainable_module)
    logits, maps = module(x)
    goals = observe(task.teacher.model, x, [one for one, _ in pairs])[1]
    expected = sum(fitnets(s, t, t) for s, t in zip(maps, goals, strict=True)) / len(goals)
    result = task(x, y)
    torch.testing.assert_close(result["transfer_loss"], 3 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result["loss"], F.cross_entropy(logits, y) + 3 * expected, rtol=1e-4, atol=1e-5)
    assert task.trained() is student


@pytest.mark.parametrize("part", PREFIXES)
@pytest.mark.parametrize("transfer", TRANSFERS)
def test_cached_rows_give_the_same_losses_as_the_teacher(x: Tensor, y: Tensor, part: str, transfer: str) -> None:
    """Maps in another order may have the same size."""
    task = task_of(part, transfer, mimic_features=True, logit_weight=1.0).eval()
    rows = task.teacher(x)
    assert rows.shape == (len(x), task.teacher.width)
    live, kept = task(x, y), task(x, y, teacher_rows=rows)
    assert live.keys() == kept.keys()
    for key, value in live.items():
        torch.testing.assert_close(kept[key], value)


def test_scored_and_saved_networks_have_no_connectors() -> None:
    """Connectors would cost MACs at every inference."""
    task = task_of("all")
    assert isinstance(task.trained(), StudentAssistant)
    assert task.get_eval_model() is task.trained()
    assert not any("connector" in key for key in task.trained().state_dict())


def test_a_student_that_trains_alone_is_scored_alone(x: Tensor) -> None:
    """Its epochs would be scored with the untrained assistant's logits."""
    task = task_of("student").eval()
    pair = task.trained()
    alone, both = pair.student_branch()(x), pair(x)
    torch.testing.assert_close(task.get_eval_model()(x), alone)
    assert not torch.allclose(alone, both)
    torch.testing.assert_close(task_of("assistant").eval().get_eval_model()(x), both)
