"""What a student takes of a deeper teacher."""

import pytest
import timm
import torch
from torch import nn

from kdcompress.models.transplant import transplant


def made(name: str, seed: int = 0, **args: object) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, **args)
    for buffer in model.buffers():
        buffer.add_(seed + 1)  # as after some training
    return model


def test_blocks_are_spread_over_those_of_the_teacher() -> None:
    """The first blocks alone would leave out all that the teacher does late."""
    teacher = made("resnet56_cifar", 1, shortcut="A")
    student = made("resnet20_cifar", shortcut="A")
    assert transplant(student, teacher) == 1.0
    for own, given in zip((0, 1, 2), (0, 4, 8), strict=True):
        taken = student.get_submodule(f"layer2.{own}").state_dict()
        theirs = teacher.get_submodule(f"layer2.{given}").state_dict()
        assert all(torch.equal(taken[name], theirs[name]) for name in theirs)
    assert torch.equal(student.get_classifier().weight, teacher.get_classifier().weight)
    assert torch.equal(student.get_submodule("bn1").running_mean, teacher.get_submodule("bn1").running_mean)


def test_a_network_like_the_teacher_becomes_it() -> None:
    """Also one with weights beside its modules: positions and class token of a transformer."""
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    teacher, student = (made("vit_tiny_patch16_224", seed, depth=3, **args) for seed in (1, 0))
    assert transplant(student, teacher) == 1.0
    assert all(torch.equal(one, other) for one, other in zip(student.parameters(), teacher.parameters(), strict=True))
    shallow = made("vit_tiny_patch16_224", depth=2, **args)
    assert transplant(shallow, teacher) == 1.0
    last, its = shallow.get_submodule("blocks.1.attn.qkv"), teacher.get_submodule("blocks.2.attn.qkv")
    assert torch.equal(last.weight, its.weight)


def test_what_does_not_fit_stays_as_it_is() -> None:
    """Half a layer, or one of another shape, would be noise."""
    teacher = made("resnet20_cifar", 1)
    narrow = made("resnet20_cifar", width=0.5)
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    assert transplant(narrow, teacher) == 0
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())
    other = made("resnet20_cifar", num_classes=7)
    share = transplant(other, teacher)
    classifier = sum(p.numel() for p in other.get_classifier().parameters())
    assert share == pytest.approx(1 - classifier / sum(p.numel() for p in other.parameters()))


def test_the_student_can_be_trained_without_the_teacher() -> None:
    """Shared memory would move the teacher with every step."""
    teacher, student = made("resnet14_cifar", 1), made("resnet8_cifar")
    transplant(student, teacher)
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert all(p.requires_grad and p.grad_fn is None for p in student.parameters())


def test_a_student_of_which_little_fits_starts_at_random() -> None:
    """Layers without those that they were trained with are noise with a teacher's name."""
    teacher, student = made("resnet20_cifar", 1), made("resnet20_cifar", width=1.0)
    for layer in (student.get_submodule("layer3"), student.get_submodule("layer2")):
        for block in list(layer.children()):
            block.conv1, block.conv2 = nn.Conv2d(1, 64, 7), nn.Conv2d(1, 64, 7)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert 0 < transplant(student, teacher) < 0.5
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
