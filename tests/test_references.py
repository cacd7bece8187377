"""What a reference names, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdcompress.options import AddResStudentOptions, DistillOptions, TrainTeacherOptions
from kdcompress.references import Reference, has_weights, paired, unpaired


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("resnet32_cifar", False),
        ("resnet50.a1_in1k", False),
        ("convnext_atto,dims=40/80/160/320", False),
        ("py:mine.models:net,num_classes=3", False),
        ("-", True),
        ("local-dir:somewhere", True),
        ("hf-hub:timm/resnet18.a1_in1k", True),
        ("nothing.pth", True),
        ("runs/nothing", True),
        ("./lenet5", True),
        ("run", True),
        ("lenet5", False),
        ("plain-file", True),
    ],
)
def test_weights_are_told_from_architectures(
    text: str, weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights taken for an architecture are trained at ten times their rate; a folder must not hide an architecture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lenet5").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "plain-file").touch()
    assert has_weights(text) == weights


def test_a_checkpoint_is_followed_by_its_architecture() -> None:
    """Else the spec of a res-student's checkpoint would be trained as a res-student of its own."""
    texts = ("lenet5", "mine.pth", "resnet8_cifar,width=0.5", "resnet14_cifar")
    found = paired(texts)
    assert found == [Reference("lenet5"), Reference(texts[1], texts[2]), Reference(texts[3])]
    assert tuple(text for each in found for text in unpaired(each)) == texts


def test_starting_weights_are_fine_tuned() -> None:
    """At a full learning rate an epoch destroys what the weights know."""
    assert TrainTeacherOptions(model="mine.pth", arch="lenet5").fine_tunes
    assert TrainTeacherOptions(model="resnet18", pretrained=True).fine_tunes
    assert DistillOptions(student="local-dir:folder").fine_tunes
    assert AddResStudentOptions(arch=("mine.pth", "lenet5")).fine_tunes
    assert not TrainTeacherOptions(model="resnet18").fine_tunes
    assert not DistillOptions(teacher="mine.pth", student="lenet5").fine_tunes
    assert not AddResStudentOptions(arch=("lenet5",)).fine_tunes
    assert not AddResStudentOptions(search=True).fine_tunes


def test_options_are_judged_without_torch() -> None:
    """--help and every refusal of an option would take seconds."""
    code = "import sys; from kdcompress.options import TrainTeacherOptions as T; "
    code += "assert T(model='mine.pth').fine_tunes and not T().fine_tunes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
