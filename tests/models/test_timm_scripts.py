"""Our networks under timm's own training and evaluation scripts: made, trained, saved, resumed, given a new head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.task import FeatureDistillationTask, LogitDistillationTask
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from kdcompress.models import residual_cascade, student_assistant

OURS: dict[str, dict[str, Any]] = {
    "resnet8_cifar": {"width": 0.25},
    "wrn_16_1_cifar": {"width": 0.5},
    "lenet5": {},
    residual_cascade.ARCHITECTURE: {
        "members": [{"architecture": "lenet5"}, {"architecture": "resnet8_cifar", "model_args": {"width": 0.25}}]
    },
    student_assistant.ARCHITECTURE: {"model": {"architecture": "resnet8_cifar"}, "widths": (0.5, 0.25), "features": 8},
}
SINGLE = list(OURS)[:3]


def made(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **OURS[name], **arguments)


@pytest.mark.parametrize("name", list(OURS))
def test_what_train_py_passes_is_accepted(name: str) -> None:
    """timm's train.py gives all of these to any architecture; one that is refused ends it."""
    drop_path = 0.1 if "lenet" not in name else None
    network = made(
        name,
        pretrained=False,
        in_chans=1,
        num_classes=4,
        drop_rate=0.0,
        drop_path_rate=drop_path if name in SINGLE else None,
        drop_block_rate=None,
        global_pool=None,
        bn_momentum=None,
        bn_eps=None,
        scriptable=False,
        exportable=True,
        checkpoint_path="",
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert (network.num_classes, network.in_chans) == (4, 1)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    assert resolve_data_config({}, model=network)["input_size"][1:] == (32, 32)


@pytest.mark.parametrize("name", list(OURS))
def test_device_and_type_hold_for_all_weights(name: str) -> None:
    """On a GPU, a part left on the CPU would end the first step; the weights of a seed must not change."""
    assert all(parameter.is_meta for parameter in made(name, device="meta").parameters())
    half = made(name, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    plain = made(name).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in made(name, device="cpu").state_dict().items())


@pytest.mark.parametrize("name", ["resnet8_cifar", "wrn_16_1_cifar"])
def test_drop_path_acts_in_training_only(name: str) -> None:
    """Stochastic depth would be ignored, or make the evaluation random."""
    plain, network = made(name).eval(), made(name, drop_path_rate=0.5)
    assert network.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(network.eval()(images), plain(images))
    for module in network.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(network(images), network(images))
    with pytest.raises(ValueError, match="drop_path_rate=1"):
        made(name, drop_path_rate=1.0)


def test_a_network_without_blocks_refuses_drop_path() -> None:
    """It would be ignored without a word."""
    with pytest.raises(ValueError, match=r"drop_path_rate=0\.1"):
        made("lenet5", drop_path_rate=0.1)


@pytest.mark.parametrize("name", list(OURS))
def test_train_save_resume_and_validate(tmp_path: Path, name: str) -> None:
    """The whole of train.py's loop, its EMA and its checkpoints, and validate.py on what it saved."""
    network = made(name, num_classes=4)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3)
    average = ModelEmaV3(network, decay=0.5)
    saver = CheckpointSaver(network, optimizer, model_ema=average, checkpoint_dir=str(tmp_path), max_history=1)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    for epoch in range(2):
        loss = nn.functional.cross_entropy(network.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(network)
        saver.save_checkpoint(epoch, metric=float(loss))
    again = made(name, num_classes=4)
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), create_optimizer_v2(again, opt="adamw")) == 2
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    load_checkpoint(again, str(tmp_path / "last.pth.tar"), use_ema=True)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), average.module.eval()(images))


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("coarse", [False, True])
def test_layer_decay_gives_later_layers_higher_rates(name: str, coarse: bool) -> None:
    """Fine-tuning with layer decay would fail, or treat all layers alike."""
    network = made(name)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    scale = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale.keys() == set(names.values())
    assert scale["fc.weight"] == 1
    assert scale["conv1.weight"] == min(scale.values()) < 0.5
    layers = timm.models.group_modules(network, network.group_matcher(coarse=coarse))
    assert len(layers) >= 3


@pytest.mark.parametrize("name", list(OURS))
def test_a_new_head(name: str) -> None:
    """Fine-tuning starts with it; the head must be where the network is."""
    network = made(name, dtype=torch.bfloat16)
    network.reset_classifier(7)
    assert network.num_classes == 7
    logits = network(torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", SINGLE)
def test_features_and_classifier_as_in_timm(name: str) -> None:
    """Detection and segmentation code asks for the maps, training code for the classifier's name."""
    network = made(name, features_only=True, out_indices=(1, 2), device="cpu")
    maps = network(torch.zeros(1, 3, 32, 32))
    assert [each.shape[1] for each in maps] == network.feature_info.channels()
    whole = made(name)
    assert whole.get_submodule(whole.get_classifier(name_only=True)) is whole.get_classifier()


@pytest.mark.parametrize("name", SINGLE)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    """``--grad-checkpointing`` would fail, or change the training."""
    gradients = []
    for enable in (False, True):
        network = made(name)
        network.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        network(torch.randn(2, 3, 32, 32)).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.allclose(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("task", [LogitDistillationTask, FeatureDistillationTask])
@pytest.mark.parametrize("name", SINGLE)
def test_timms_own_distillation_takes_our_networks(task: Any, name: str) -> None:
    """timm builds and asks student and teacher in its own ways."""
    student, teacher = made(name, num_classes=4), made("resnet8_cifar", num_classes=4)
    distillation = task(student, teacher_model=teacher, criterion=nn.CrossEntropyLoss(), verbose=False)
    result = distillation(torch.randn(4, 3, 32, 32), torch.arange(4))
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
