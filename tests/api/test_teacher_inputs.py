"""Teachers of another family, input size and normalisation than the student's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import kdcompress
from chains import (
    COMMON,
    SMALL,
    TINY,
    WHERE,
    Chain,
    logits_on,
    source_and_data,
    weights_of,
)
from kdcompress.api.recipes import prepare
from kdcompress.api.teacher import Teacher
from kdcompress.data import Preprocess, load_source
from kdcompress.errors import UserError
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec


def pair(student: str, teacher: str, size: tuple[int, int] = (8, 8)) -> tuple[Any, Any, Any]:
    """A student for 8x8 and a teacher, frozen as the API freezes it, and the batches' preprocessing."""
    ours = new_network(ModelSpec.parse(student), num_classes=10, channels=1, size=(8, 8), seed=0)
    theirs = new_network(ModelSpec.parse(teacher), num_classes=10, channels=1, size=size, seed=1)
    with torch.no_grad():
        theirs.model.train()(torch.randn(64, 1, *size))
    theirs.model.eval()
    prep = prepare.shared(ours.prep, theirs.prep, load_source("digits"))
    frozen = Teacher(theirs, {}).freeze(prepare.adapter(prep, theirs.prep))
    return ours, (theirs, frozen), prep


@torch.no_grad()
def test_other_normalisation_is_translated_exactly() -> None:
    """A teacher that sees wrongly normalised images teaches nonsense with great confidence."""
    student, (teacher, frozen), prep = pair(f"{TINY},mean=0.1,std=0.3", "resnet8_cifar,width=0.5,mean=0.6,std=0.15")
    assert prep == student.prep
    direct, _ = logits_on(teacher, "test")
    batches = source_and_data(prep).evaluation("test", 1000)
    adapted = frozen(next(iter(batches))[0])
    torch.testing.assert_close(adapted, direct, rtol=1e-3, atol=1e-4)
    assert direct.std() > 0.01


@torch.no_grad()
def test_other_size_and_family_are_translated_closely() -> None:
    """LeNet-5 at 28x28 as the teacher of a ResNet at 8x8; resizing rounds to whole grey levels, no more."""
    _student, (teacher, frozen), prep = pair(TINY, "lenet5,mean=0.13,std=0.3", (28, 28))
    direct, _ = logits_on(teacher, "test")
    adapted = frozen(next(iter(source_and_data(prep).evaluation("test", 1000)))[0])
    assert (adapted - direct).abs().max() < 0.02 * (direct.max() - direct.min())
    assert (adapted.argmax(1) == direct.argmax(1)).float().mean() > 0.98


@torch.no_grad()
def test_the_student_keeps_its_own_images() -> None:
    """Enlarged for the teacher and shrunk again, 8x8 digits arrive blurred: other images than those of eval."""
    student, _, prep = pair(TINY, "lenet5", (28, 28))
    adapter = prepare.adapter(prep, student.prep)
    x = next(iter(source_and_data(prep).evaluation("test", 1000)))[0]
    own = next(iter(source_and_data(student.prep).evaluation("test", 1000)))[0]
    torch.testing.assert_close(x if adapter is None else adapter(x), own, rtol=1e-3, atol=1e-4)


def test_a_teacher_of_another_family_size_and_normalisation(tmp_path: Path) -> None:
    """End to end: what training reports is what eval then finds, at the student's own size."""
    teacher = kdcompress.train_teacher(
        model="lenet5,mean=0.13,std=0.3", input_size="28", out=str(tmp_path / "teacher"), **COMMON
    )
    assert teacher.input_size == (1, 28, 28)
    for method in ("kd", "reskd"):
        out = str(tmp_path / method)
        student = kdcompress.distill(teacher=teacher.run, method=method, student=TINY, out=out, **COMMON)
        assert student.input_size == (1, 8, 8)
        found = kdcompress.evaluate(run=student.run, split="calibration", **WHERE)
        assert found.top1 == pytest.approx(student.top1, abs=1e-3)
        assert found.loss == pytest.approx(student.loss, abs=1e-4)


def test_a_checkpoint_as_teacher_is_found_again(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """add-res-student finds the teacher on record, bare file or not, from any folder."""
    weights = {f"module.{key}": value for key, value in weights_of(chain.teacher.run).items()}
    torch.save({"state_dict": weights}, tmp_path / "teacher.pth")
    monkeypatch.chdir(tmp_path)
    student = kdcompress.distill(
        teacher="teacher.pth", teacher_arch="resnet8_cifar,input_size=1x8x8", method="reskd", student=SMALL,
        data="digits", input_size="1x8x8", out="student", **COMMON,
    )  # fmt: skip
    assert student.teacher_macs == chain.teacher.macs
    assert student.energies == pytest.approx(chain.student.energies, rel=1e-3)
    monkeypatch.chdir("/")
    result = kdcompress.add_res_student(run=student.run, arch=TINY, out=str(tmp_path / "cascade"), **COMMON)
    assert result.teacher_macs == chain.teacher.macs


def test_classes_and_channels_must_agree(chain: Chain, tmp_path: Path) -> None:
    """A teacher of other classes gives soft targets for the wrong things."""
    from kdcompress.models.saving import model_config, save_network
    from kdcompress.runs import RunFolder

    def folder(name: str, classes: int, names: tuple[str, ...] | None, channels: int = 1) -> str:
        network = new_network(ModelSpec.parse(TINY), num_classes=classes, channels=channels, size=(8, 8), seed=0)
        (tmp_path / name).mkdir()
        config = model_config(network.model, network.architecture, network.model_args, names)
        save_network(RunFolder(tmp_path / name), network.model, config)
        return str(tmp_path / name)

    digits = tuple("0123456789")
    cases = [
        (folder("seven", 7, None), "has 7 classes.*10"),
        (folder("order", 10, digits[::-1]), "another order"),
        (folder("names", 10, (*digits[:9], "ten")), "9, ten"),
        (folder("colour", 10, digits, 3), "3 channels"),
    ]
    for teacher, words in cases:
        with pytest.raises(UserError, match=words):
            kdcompress.distill(teacher=teacher, student=TINY, out=str(tmp_path / "run"), **COMMON)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("student", "teacher", "images", "expected"),
    [
        ((32, 32), (32, 32), (32, 32), (32, 32)),
        ((32, 32), (224, 224), (32, 32), (32, 32)),  # the teacher enlarges: nothing is lost, and 49 times less moved
        ((16, 16), (224, 224), (32, 32), (32, 32)),
        ((16, 16), (24, 24), (32, 32), (24, 24)),
        ((32, 32), (16, 16), (32, 32), (32, 32)),
        ((64, 64), (32, 32), (8, 8), (64, 64)),
        ((128, 128), (224, 224), None, (224, 224)),  # photographs of any size
    ],
)
def test_batches_are_no_larger_than_the_images(student: Any, teacher: Any, images: Any, expected: Any) -> None:
    """CIFAR enlarged to an ImageNet teacher's size would not fit in memory, and blur the student's input."""
    source = load_source("digits")
    source.size = images
    prep = Preprocess(student, 1, (0.1,), (0.2,))
    found = prepare.shared(prep, Preprocess(teacher, 1, (0.5,), (0.5,)), source)
    assert found == dataclasses.replace(prep, size=expected)


CODE = """
import torch
from torch import nn
def ten(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def seven(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
def broken(**given): raise ValueError("boom")
"""


def test_code_without_a_number_of_classes_gets_that_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function of the documentation itself would be refused for what the data say."""
    (tmp_path / "own_networks.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = {"data": "digits", **WHERE}
    shape = "in_chans=1,input_size=8x8,mean=0.5,std=0.5"
    with pytest.raises(UserError, match="cannot be called"):
        kdcompress.evaluate(run=f"py:own_networks:ten,{shape}", **given)
    shape = "input_size=1x8x8,mean=0.5,std=0.5"
    found = kdcompress.evaluate(run=f"py:own_networks:ten,{shape}", **given)
    assert found.num_classes == 10
    with pytest.raises(UserError, match="7"):
        kdcompress.evaluate(run=f"py:own_networks:seven,{shape}", **given)
    with pytest.raises(UserError, match="broken makes no network: ValueError: boom"):
        kdcompress.evaluate(run=f"py:own_networks:broken,{shape}", **given)


def test_a_model_in_place_of_its_name_is_refused() -> None:
    """It would be looked up in timm by its repr."""
    with pytest.raises(UserError, match="takes text, not a Linear"):
        kdcompress.distill(teacher=torch.nn.Linear(3, 3), **COMMON)  # type: ignore[arg-type]
