"""Trainings that start from trained weights, by every reference that a command takes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import kdcompress
from chains import COMMON, TINY, WHERE, Chain, record_of, same_weights, stopped, weights_of
from heard import Heard
from kdcompress.errors import UserError
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.models.saving import model_config, save_network
from kdcompress.options import AddResStudentOptions, DistillOptions, EvalOptions, TrainTeacherOptions
from kdcompress.runs import RunFolder

FROZEN: dict[str, Any] = {**COMMON, "lr": 1e-12, "weight_decay": 0, "batch_size": 256}  # what comes out is what went in


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights in every form: a network for digits that nobody trained on them."""
    folder = tmp_path_factory.mktemp("given")
    network = new_network(ModelSpec.parse(TINY), num_classes=10, channels=1, size=(8, 8), seed=11)
    (folder / "run").mkdir()
    config = model_config(network.model, network.architecture, network.model_args, tuple("abcdefghij"))
    save_network(RunFolder(folder / "run"), network.model, config)
    save_file(network.model.state_dict(), folder / "net.safetensors")
    torch.save({"state_dict": network.model.state_dict()}, folder / "net.pth")
    other = new_network(ModelSpec.parse(TINY), num_classes=7, channels=3, size=(8, 8), seed=12)
    save_file(other.model.state_dict(), folder / "seven.safetensors")
    return folder


def first_layer(run: str | None, name: str = "layer1.0.conv1.weight") -> torch.Tensor:
    return weights_of(run)[name]


@pytest.mark.parametrize("reference", ["run", "local-dir:run", "net.safetensors", "net.pth"])
def test_a_teacher_is_fine_tuned_from_any_reference(reference: str, given: Path, tmp_path: Path) -> None:
    """People have a file or a folder; told that there is no such model, they give up."""
    prefix, _, name = reference.rpartition(":")
    arch = {} if name == "run" else {"arch": TINY}
    heard = Heard()
    text = f"{prefix}:{given / name}" if prefix else str(given / name)
    options = TrainTeacherOptions(model=text, out=str(tmp_path / "run"), **arch, **FROZEN)
    done = kdcompress.train_teacher(options, reporter=heard)
    torch.testing.assert_close(first_layer(done.run), first_layer(str(given / "run")))
    assert done.input_size == (1, 8, 8)
    start = record_of(done.run)["start"]
    assert Path(start["reference"]) == given / name
    assert start["fingerprint"]
    assert any("classifier is kept" in note for note in heard.notes) == (name == "run")
    assert any("does not record its input" in note for note in heard.notes) == (name != "run")
    assert not any("replaced" in note for note in heard.notes)


def test_other_classes_and_channels_are_said(given: Path, tmp_path: Path) -> None:
    """A classifier of other classes is worthless; that it was replaced explains the first epoch's accuracy."""
    heard = Heard()
    model = str(given / "seven.safetensors")
    options = TrainTeacherOptions(model=model, arch=TINY, out=str(tmp_path / "run"), **FROZEN)
    done = kdcompress.train_teacher(options, reporter=heard)
    assert done.num_classes == 10
    assert any("7 classes" in note and "replaced" in note for note in heard.notes)
    assert any("3 channel" in note and "converted" in note for note in heard.notes)
    assert not done.calibration_seen  # of other classes, so of other images


@pytest.mark.parametrize("classes", [10, 7])
def test_a_backbone_gets_a_new_classifier(given: Path, tmp_path: Path, classes: int) -> None:
    """Bodies without a classifier are what self-supervised learning leaves; "fine-tune it" was the advice."""
    own = new_network(ModelSpec.parse(TINY), num_classes=classes, channels=1, size=(8, 8), seed=11).model.state_dict()
    torch.save({key: value for key, value in own.items() if not key.startswith("fc.")}, tmp_path / "body.pth")
    heard = Heard()
    options = {"model": str(tmp_path / "body.pth"), "arch": TINY, **FROZEN}
    done = kdcompress.train_teacher(**options, out=str(tmp_path / "run"), reporter=heard)
    assert done.num_classes == 10
    torch.testing.assert_close(first_layer(done.run), own["layer1.0.conv1.weight"])
    assert any("has no classifier: a new one" in note for note in heard.notes)
    assert weights_of(done.run)["fc.weight"].std() < 0.02
    assert same_weights(done.run, kdcompress.train_teacher(**options, out=str(tmp_path / "again")).run)
    with pytest.raises(UserError, match="is not in it"):
        kdcompress.evaluate(run=str(tmp_path / "body.pth"), arch=TINY, data="digits")


def test_an_architecture_without_weights_is_told_where_it_belongs(tmp_path: Path) -> None:
    """--arch alone would train the default model after "leave it out"."""
    with pytest.raises(UserError, match="without a checkpoint file") as caught:
        kdcompress.train_teacher(arch=TINY, out=str(tmp_path / "run"), **COMMON)
    assert f'model="{TINY}"' in caught.value.remedy
    with pytest.raises(UserError, match=r"no file or folder nothere\.pth"):
        kdcompress.train_teacher(model="nothere.pth", arch=TINY, out=str(tmp_path / "run"), **COMMON)


def test_the_input_of_a_checkpoint_as_res_student_is_said(given: Path, chain: Chain, tmp_path: Path) -> None:
    heard = Heard()
    arch = (str(given / "net.pth"), TINY)
    kdcompress.add_res_student(run=chain.student.run, arch=arch, out=str(tmp_path / "r1"), reporter=heard, **FROZEN)
    assert any("does not record its input" in note and "8x8" in note for note in heard.notes)


def test_a_student_and_a_res_student_start_from_weights(given: Path, chain: Chain, tmp_path: Path) -> None:
    """The same references serve wherever a network is about to be trained."""
    student = DistillOptions(
        teacher=chain.teacher.run, method="reskd", student=str(given / "net.pth"), student_arch=TINY,
        out=str(tmp_path / "s0"), **FROZEN,
    )  # fmt: skip
    s0 = kdcompress.distill(student)
    own = first_layer(str(given / "run"))
    torch.testing.assert_close(first_layer(s0.run, "members.0.layer1.0.conv1.weight"), own)
    heard = Heard()
    options = AddResStudentOptions(
        run=str(chain.student.run), arch=(str(given / "net.pth"), TINY), out=str(tmp_path / "r1"), **FROZEN
    )
    r1 = kdcompress.add_res_student(options, reporter=heard)
    torch.testing.assert_close(first_layer(r1.run, "members.1.layer1.0.conv1.weight"), own)
    assert record_of(r1.run)["start"]["reference"] == str(given / "net.pth")
    # a cascade of one member is one network
    again = kdcompress.train_teacher(model=str(s0.run), out=str(tmp_path / "again"), **FROZEN)
    torch.testing.assert_close(first_layer(again.run), own)


def test_a_res_student_starts_from_pretrained_weights(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a pair would learn from scratch what its weights, there for the taking, know already."""
    create, asked = timm.create_model, []

    def download(name: str, pretrained: bool = False, **args: Any) -> torch.nn.Module:  # no network here
        model: torch.nn.Module = create(name, **args)
        if pretrained:
            asked.append(name)
            torch.nn.init.constant_(model.get_submodule("layer1.0.conv1").weight, 0.5)  # type: ignore[arg-type]
        return model

    monkeypatch.setattr(timm, "create_model", download)
    run, arch = str(chain.student.run), "resnet8_cifar,width=0.25"
    given: dict[str, Any] = {"run": run, "arch": arch, "pretrained": True}
    r1 = kdcompress.add_res_student(**given, out=str(tmp_path / "r1"), **FROZEN)
    assert asked == ["resnet8_cifar"]
    assert (first_layer(r1.run, "members.1.layer1.0.conv1.weight") == 0.5).all()
    for odd in ({"from_teacher": True}, {"arch": str(chain.student.run)}):
        with pytest.raises(UserError, match=r"one network only|has its own"):
            kdcompress.add_res_student(**{**given, **odd}, out=str(tmp_path / "r2"), **FROZEN)


def test_a_finished_run_is_not_taken_for_one_of_other_weights(given: Path, tmp_path: Path) -> None:
    """--resume would hand out the result of weights that are no longer there."""
    shutil.copy(given / "net.safetensors", tmp_path / "net.safetensors")
    options: dict[str, Any] = {"model": str(tmp_path / "net.safetensors"), "arch": TINY, "out": str(tmp_path / "run")}
    first = kdcompress.train_teacher(**options, **COMMON)
    assert kdcompress.train_teacher(**options, resume=True, **COMMON) == first
    state = weights_of(str(given / "run"))
    save_file({key: 2 * value if value.is_floating_point() else value for key, value in state.items()},
              tmp_path / "net.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"net\.safetensors has changed"):
        kdcompress.train_teacher(**options, resume=True, **COMMON)


def test_an_interrupted_run_refuses_other_weights(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the training from one start and half from another would be neither's."""
    shutil.copytree(given / "run", tmp_path / "start")
    options: dict[str, Any] = {**COMMON, "model": str(tmp_path / "start"), "out": str(tmp_path / "run"), "epochs": 2}
    with stopped(SupervisedTask, 45, signal.SIGTERM, monkeypatch):
        kdcompress.train_teacher(**options)
    state = weights_of(str(tmp_path / "start"))
    save_file({key: 2 * value if value.is_floating_point() else value for key, value in state.items()},
              tmp_path / "start" / "model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match="other starting weights"):
        kdcompress.train_teacher(**options, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nothing.pth"}, "no file or folder nothing.pth"),
        ({"model": "GIVEN/net.pth"}, "bare checkpoint"),
        ({"model": "GIVEN/run", "pretrained": True}, "has its own"),
        ({"model": "GIVEN/run", "arch": TINY}, "names its own"),
        ({"model": "lenet5", "arch": TINY}, "names its own"),
        ({"model": "GIVEN/run", "weights_key": "ema"}, "not a checkpoint"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str, given: Path, tmp_path: Path) -> None:
    """One of two sources of weights would win without a word."""
    told = {
        key: value.replace("GIVEN", str(given)) if isinstance(value, str) else value for key, value in options.items()
    }
    with pytest.raises(UserError, match=words):
        kdcompress.train_teacher(**told, out=str(tmp_path / "run"), **COMMON)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"teacher": "GIVEN/net.pth"}, "teacher_arch="),
        ({"method": "ce", "student": "GIVEN/net.pth"}, "student_arch="),
        ({"teacher": "GIVEN/run", "method": "reskd", "res_students": 1, "arch": ["GIVEN/net.pth"]}, "net.pth"),
    ],
)
def test_advice_names_the_option_of_this_command(options: dict[str, Any], flag: str, given: Path) -> None:
    """A list of the flags of all commands sends a user from one error to the next."""
    told = {
        key: [part.replace("GIVEN", str(given)) for part in value] if isinstance(value, list) else value
        if not isinstance(value, str) else value.replace("GIVEN", str(given))
        for key, value in options.items()
    }  # fmt: skip
    with pytest.raises(UserError, match="bare checkpoint") as caught:
        kdcompress.distill(**told, **COMMON)
    assert flag in caught.value.remedy
    assert caught.value.remedy.count("arch=") == 1 or flag == "net.pth"


def test_standard_input_serves_one_option(chain: Chain) -> None:
    """The second reader would find it empty, and blame the command before."""
    with pytest.raises(UserError, match="Both teacher and student"):
        kdcompress.distill(teacher="-", student="-", **COMMON)


def test_a_checkpoint_sees_the_images_at_their_own_size(chain: Chain, tmp_path: Path) -> None:
    """Images of 8 pixels were enlarged to the architecture's 32: 10 % instead of 67, and 16 times the MACs."""
    weights, arch = str(Path(str(chain.teacher.run)) / "model.safetensors"), "resnet8_cifar"
    run = kdcompress.evaluate(run=chain.teacher.run, **WHERE)
    heard = Heard()
    bare = kdcompress.evaluate(run=weights, arch=arch, data="digits", **WHERE)
    assert (bare.top1, bare.macs, bare.input_size) == (run.top1, run.macs, (1, 8, 8))
    options = DistillOptions(
        teacher=weights, teacher_arch=arch, student="resnet8_cifar", data="digits", out=str(tmp_path / "s"), **COMMON
    )
    student = kdcompress.distill(options, reporter=heard)
    assert student.teacher_macs == run.macs
    assert student.macs_ratio == 1
    (notice,) = [note for note in heard.notes if "does not record its input" in note]
    assert "8x8 pixels (the size of the images)" in notice
    assert "mean=0.449,std=0.226" in notice
    assert f"--teacher-arch {arch},input_size=HxW,mean=…,std=…" in notice
    # a later command takes it as it was
    assert record_of(student.run)["teacher"]["input_size"] == [1, 8, 8]


def test_the_users_word_on_the_input_is_taken(chain: Chain) -> None:
    """Said once, it is neither changed nor questioned."""
    weights = str(Path(str(chain.teacher.run)) / "model.safetensors")
    heard = Heard()
    options = EvalOptions(
        run=weights, arch="resnet8_cifar,input_size=1x16x16,mean=0.449,std=0.226", data="digits", **WHERE
    )
    assert kdcompress.evaluate(options, reporter=heard).input_size == (1, 16, 16)
    assert not any("does not record" in note for note in heard.notes)
    options = EvalOptions(run=weights, arch="resnet8_cifar", input_size="12", data="digits", **WHERE)
    assert kdcompress.evaluate(options, reporter=heard).input_size == (1, 12, 12)
    assert not any("pixels" in note for note in heard.notes)


def test_one_of_several_sets_of_weights(given: Path, tmp_path: Path) -> None:
    """The student's weights under the teacher's name would be distilled from, to no good."""
    state = weights_of(str(given / "run"))
    other = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"student": {"state_dict": state}, "teacher": {"state_dict": other}}, tmp_path / "both.pth")
    options: dict[str, Any] = {"model": str(tmp_path / "both.pth"), **FROZEN}
    with pytest.raises(UserError, match="several sets of weights") as caught:
        kdcompress.train_teacher(arch=TINY, out=str(tmp_path / "run"), **options)
    assert "weights_key=KEY" in caught.value.remedy
    key = "student.state_dict"
    for number, told in enumerate(({"arch": TINY, "weights_key": key}, {"arch": f"{TINY},weights_key={key}"})):
        done = kdcompress.train_teacher(out=str(tmp_path / str(number)), **told, **options)
        torch.testing.assert_close(first_layer(done.run), state["layer1.0.conv1.weight"])
        assert record_of(done.run)["start"]["arch"] == f"{TINY},weights_key={key}"
    done = kdcompress.distill(
        teacher=str(tmp_path / "both.pth"), teacher_arch=TINY, weights_key="teacher", student=TINY,
        out=str(tmp_path / "student"), **COMMON,
    )  # fmt: skip
    assert record_of(done.run)["teacher"]["arch"] == f"{TINY},weights_key=teacher"


def test_a_whole_cascade_starts_from_weights(given: Path, chain: Chain, tmp_path: Path) -> None:
    """distill --res-students trains each member by a command of its own, which must be given the same."""
    done = kdcompress.distill(
        teacher=chain.teacher.run, method="reskd", student=str(given / "run"), res_students=1,
        arch=(str(given / "net.pth"), TINY), out=str(tmp_path / "run"), **FROZEN,
    )  # fmt: skip
    own = first_layer(str(given / "run"))
    for member in (0, 1):
        torch.testing.assert_close(first_layer(done.run, f"members.{member}.layer1.0.conv1.weight"), own)


CODE = """
import torch
def net(num_classes, in_chans=1): return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),
                                                            torch.nn.Linear(16 * in_chans, num_classes))
"""


def test_a_function_sees_the_images_at_their_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was run at 224 pixels: 784 times the work, on a blur."""
    (tmp_path / "seen.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    heard, reference = Heard(), "py:seen:net,num_classes=10,in_chans=1"
    options = EvalOptions.resolve({"run": reference, "data": "digits", **WHERE})
    assert kdcompress.evaluate(options, reporter=heard).input_size == (1, 8, 8)
    (notice,) = [note for note in heard.notes if "does not record its input" in note]
    assert f"{reference},input_size=HxW,mean=…,std=…" in notice
    options = EvalOptions.resolve({"run": f"{reference},input_size=1x6x6,mean=0.5,std=0.5", "data": "digits", **WHERE})
    assert kdcompress.evaluate(options, reporter=heard).input_size == (1, 6, 6)
    assert len([note for note in heard.notes if "does not record its input" in note]) == 1
