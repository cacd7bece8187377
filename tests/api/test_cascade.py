"""``cascade``: networks that exist, joined without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import kdcompress
from chains import CALIBRATION, COMMON, TINY, WHERE, Chain, logits_on, record_of, source_and_data, top1
from heard import Heard
from kdcompress.data import InputAdapter, Preprocess
from kdcompress.data.preprocess import conversion
from kdcompress.errors import UserError
from kdcompress.models.build import config_of


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of another input size and normalisation than those of the chain."""
    out = tmp_path_factory.mktemp("other") / "larger"
    model = "resnet8_cifar,width=0.25,mean=0.2,std=0.4"
    made = kdcompress.train_teacher(model=model, data="digits", input_size="12", **{**COMMON, "out": str(out)})
    return str(made.run)


def test_members_answer_as_they_did_alone(chain: Chain, tmp_path: Path) -> None:
    """Weights, or the order of the members, would be mixed up."""
    made = kdcompress.cascade(members=[chain.student.run, chain.teacher.run], out=str(tmp_path / "pair"), **WHERE)
    alone = [top1(*logits_on(kdcompress.load(str(each.run)), "calibration")) for each in (chain.student, chain.teacher)]
    assert made.stage_top1 == pytest.approx(alone, abs=1e-3)
    assert (made.top1, made.n, made.split) == (made.stage_top1[-1], CALIBRATION, "calibration")
    assert made.macs == chain.student.macs + chain.teacher.macs
    assert (made.teacher, made.teacher_macs) == (chain.teacher.run, chain.teacher.macs)
    assert made.teacher_top1 == chain.teacher.top1
    assert not made.calibration_seen
    assert record_of(made.run)["parents"] == [chain.student.run, chain.teacher.run]


def test_a_gate_hands_over_to_the_teacher(chain: Chain, tmp_path: Path) -> None:
    """The control that a residual member has to beat could not be measured."""
    made = kdcompress.cascade(members=[chain.student.run, chain.teacher.run], out=str(tmp_path / "pair"), **WHERE)
    gated = kdcompress.gate_calibrate(run=made.run, threshold=[0.25], out=str(tmp_path / "gated"), **WHERE)
    network = kdcompress.load(str(gated.run))
    images = torch.cat([batch for batch, _ in _calibration(network)])
    with torch.inference_mode():
        logits, stopped = network.model.forward_gated(images)
        student, teacher = (kdcompress.load(str(each.run)).model(images) for each in (chain.student, chain.teacher))
    assert set(stopped.tolist()) == {0, 1}
    assert torch.allclose(logits, torch.where((stopped == 0)[:, None], student, teacher), atol=1e-5)


def _calibration(network: Any) -> Any:
    return source_and_data(network.prep).evaluation("calibration", 64)


def test_each_member_keeps_its_own_input(chain: Chain, other: str, tmp_path: Path) -> None:
    """A network that sees images normalised for another one is far less accurate, and nobody knows why."""
    made = kdcompress.cascade(members=[chain.student.run, other], out=str(tmp_path / "two"), **WHERE)
    assert made.input_size == (1, 12, 12)  # the larger of the two
    network, student, larger = (kdcompress.load(str(each)) for each in (made.run, chain.student.run, other))
    images = torch.cat([batch for batch, _ in _calibration(network)])
    with torch.inference_mode():
        first, second = network.model.forward_stages(images)
        assert torch.allclose(second, larger.model(images), atol=1e-5)
        adapted = InputAdapter.between(larger.prep, student.prep)(images)
        assert torch.allclose(first, student.model(adapted), atol=1e-4)
    gated = kdcompress.gate_calibrate(run=made.run, threshold=[0.4], out=str(tmp_path / "gated"), **WHERE)
    scored = kdcompress.evaluate(run=gated.run, **WHERE)
    assert scored.full_top1 == pytest.approx(kdcompress.evaluate(run=other, **WHERE).top1, abs=1e-3)


def test_it_is_exported_with_its_inputs(chain: Chain, other: str, tmp_path: Path) -> None:
    """The file would skip the conversion, or round it otherwise."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    made = kdcompress.cascade(members=[chain.student.run, other], out=str(tmp_path / "two"), **WHERE)
    gated = kdcompress.gate_calibrate(run=made.run, threshold=[0.4], out=str(tmp_path / "gated"), **WHERE)
    file = kdcompress.export_network(run=gated.run, out=str(tmp_path / "two.onnx"))
    assert file.largest_difference <= 1e-4
    assert file.exit_rates == gated.exit_rates


def test_members_of_cascades_and_weights_of_sums(chain: Chain, tmp_path: Path) -> None:
    """S0 + R1 handing over to the teacher is what people ask for first."""
    heard = Heard()
    made = kdcompress.cascade(
        members=[chain.gated.run, chain.teacher.run], out=str(tmp_path / "all"), reporter=heard, **WHERE
    )
    assert [member.get("sum_weight") for member in made.members][-1] == 0
    assert any("gate" in note and "dropped" in note for note in heard.notes)
    summed = [top for top, _ in zip(made.stage_top1, chain.longer.members, strict=False)]
    network = kdcompress.load(str(chain.longer.run))
    images, labels = zip(*_calibration(network), strict=True)
    with torch.inference_mode():
        stages = network.model.forward_stages(torch.cat(images))
    assert summed == pytest.approx([top1(stage, torch.cat(labels)) for stage in stages], abs=1e-3)
    both = kdcompress.cascade(
        members=[chain.student.run, chain.teacher.run], sum_weight=[0.5], out=str(tmp_path / "sum"), **WHERE
    )
    network = kdcompress.load(str(both.run))
    with torch.inference_mode():
        last = network.model.forward_stages(torch.cat(images))[-1]
        student, teacher = (
            kdcompress.load(str(each.run)).model(torch.cat(images)) for each in (chain.student, chain.teacher)
        )
    assert torch.allclose(last, 0.5 * student + teacher, atol=1e-5)


def test_a_further_member_and_polish_build_on_it(chain: Chain, other: str, tmp_path: Path) -> None:
    """A cascade that no other command takes would be a dead end."""
    made = kdcompress.cascade(members=[chain.student.run, other], out=str(tmp_path / "two"), **WHERE)
    longer = kdcompress.add_res_student(run=made.run, arch="lenet5,width=0.5", out=str(tmp_path / "three"), **COMMON)
    assert len(longer.members) == 3
    gated = kdcompress.gate_calibrate(run=longer.run, max_drop=5.0, out=str(tmp_path / "gated"), **WHERE)
    polished = kdcompress.polish(run=gated.run, out=str(tmp_path / "polished"), **{**COMMON, "epochs": 1})
    assert polished.gated_top1 >= gated.gated_top1 - 1e-3


def test_without_data_it_is_made_and_not_scored(tmp_path: Path) -> None:
    """Weights from elsewhere have no data on record; a default data set would be a guess."""
    states = []
    for number, width in enumerate((0.25, 0.5)):
        torch.manual_seed(number)
        model = timm.create_model("resnet8_cifar", width=width, num_classes=10)
        states.append(tmp_path / f"{number}.pth")
        torch.save(model.state_dict(), states[-1])
    heard = Heard()
    made = kdcompress.cascade(
        members=list(map(str, states)),
        arch=["resnet8_cifar,width=0.25", "resnet8_cifar,width=0.5"],
        out=str(tmp_path / "made"),
        reporter=heard,
        **WHERE,
    )
    assert (made.top1, made.data) == (None, None)
    assert any("no data are named" in note for note in heard.notes)
    assert made.teacher_macs == made.members[1]["macs"]
    with pytest.raises(UserError, match="names no data"):
        kdcompress.gate_calibrate(run=made.run, max_drop=1.0, out=str(tmp_path / "gated"), **WHERE)
    with pytest.raises(UserError, match="channel"):  # grey digits
        kdcompress.gate_calibrate(run=made.run, data="digits", max_drop=1.0, out=str(tmp_path / "gated"), **WHERE)
    gated = kdcompress.gate_calibrate(
        run=made.run, data="digits", input_size="3x32x32", max_drop=99.0, out=str(tmp_path / "gated"), **WHERE
    )
    assert gated.calibration_seen, "nobody knows what the members were trained on"


def test_classes_have_the_names_of_the_data(chain: Chain, tmp_path: Path) -> None:
    """Networks of timm name no classes; predictions of the cascade would be numbers."""
    torch.save(timm.create_model(TINY.split(",")[0], in_chans=1).state_dict(), tmp_path / "nameless.pth")
    members, arch = [str(tmp_path / "nameless.pth"), str(chain.teacher.run)], ["resnet8_cifar,input_size=8"]
    made = kdcompress.cascade(members=[members[0]] * 2, arch=arch * 2, data="digits", out=str(tmp_path / "a"), **WHERE)
    assert kdcompress.load(str(made.run)).class_names == tuple(map(str, range(10)))


def test_made_once_with_resume(chain: Chain, tmp_path: Path) -> None:
    members = [chain.student.run, chain.teacher.run]
    made = kdcompress.cascade(members=members, out=str(tmp_path / "pair"), **WHERE)
    again = kdcompress.cascade(members=members, out=str(tmp_path / "pair"), resume=True, **WHERE)
    assert again == made
    for others in ([chain.cascade.run, chain.teacher.run], [chain.student.run, chain.cascade.run, chain.teacher.run]):
        with pytest.raises(UserError, match="its members are others, or have changed"):
            kdcompress.cascade(members=others, out=str(tmp_path / "pair"), resume=True, **WHERE)


def test_the_wrong_way_round_is_said(chain: Chain, tmp_path: Path) -> None:
    """Every image would run the teacher, and no gate could save anything."""
    heard = Heard()
    runs = [chain.student.run, chain.teacher.run]
    kdcompress.cascade(members=runs, out=str(tmp_path / "right"), reporter=heard, **WHERE)
    assert not any("costs less than" in note for note in heard.notes)
    kdcompress.cascade(members=runs[::-1], out=str(tmp_path / "wrong"), reporter=heard, **WHERE)
    assert any("costs less than" in note and "cheapest to the dearest" in note for note in heard.notes)


@pytest.mark.parametrize(
    ("members", "more", "words"),
    [
        (["STUDENT"], {}, "two members or more"),
        (["-", "-"], {}, "'-' can be given once"),
        (["STUDENT", "nowhere/run"], {}, "no file or folder"),
        (["STUDENT", "TEACHER"], {"arch": ["lenet5"]}, "1 arch= for 0 checkpoint"),
        (["STUDENT", "TEACHER"], {"sum_weight": [1.0, 2.0]}, "2 sum_weight= for 2 networks"),
        (["TEACHER", "CASCADE"], {"sum_weight": [1.0]}, "a cascade itself"),
        (["STUDENT", "TEACHER"], {"input_size": "16"}, "input_size= has no effect"),
        (["STUDENT", "FEW"], {"arch": ["resnet8_cifar,width=0.25,in_chans=1"]}, "4 classes"),
    ],
)
def test_mistakes(chain: Chain, tmp_path: Path, members: list[str], more: dict[str, Any], words: str) -> None:
    """Members that answer other questions would be taken for one network."""
    few = timm.create_model("resnet8_cifar", width=0.25, num_classes=4, in_chans=1)
    torch.save(few.state_dict(), tmp_path / "few.pth")
    known = {
        "STUDENT": chain.student.run,
        "TEACHER": chain.teacher.run,
        "CASCADE": chain.longer.run,
        "FEW": tmp_path / "few.pth",
    }
    named = [str(known.get(each, each)) for each in members]
    with pytest.raises(UserError, match=words):
        kdcompress.cascade(members=named, out=str(tmp_path / "made"), **more, **WHERE)
    assert not (tmp_path / "made").exists()


def test_names_are_compared_among_all_members(tmp_path: Path) -> None:
    """Behind a first member without names, two orders of the same classes would be added up."""
    names = (None, ("cat", "dog", "owl"), ("dog", "cat", "owl"))
    members = []
    for number, labels in enumerate(names):
        config = {"pretrained_cfg": {"label_names": labels}} if labels else {}
        network = timm.create_model("resnet8_cifar", width=0.25, num_classes=3)
        folder = tmp_path / str(number)
        folder.mkdir()
        config |= {"architecture": "resnet8_cifar", "num_classes": 3, "model_args": {"width": 0.25}}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(network.state_dict(), folder / "model.safetensors")
        members.append(str(folder))
    with pytest.raises(UserError, match="in another order"):
        kdcompress.cascade(members=members, out=str(tmp_path / "made"), **WHERE)
    kdcompress.cascade(members=members[:2], out=str(tmp_path / "made"), **WHERE)


def test_the_smallest_holdout_of_the_members_holds(chain: Chain, tmp_path: Path) -> None:
    """Images that one member was trained on would calibrate the gate, though --data was only given once more."""
    wide = kdcompress.train_teacher(model=TINY, holdout=0.3, out=str(tmp_path / "wide"), **COMMON)
    for number, more in enumerate(({}, {"data": "digits"})):
        members = [str(wide.run), str(chain.teacher.run)]
        assert kdcompress.cascade(members=members, out=str(tmp_path / str(number)), **more, **WHERE).n == CALIBRATION
    made = kdcompress.cascade(members=[wide.run, wide.run], data="digits", out=str(tmp_path / "both"), **WHERE)
    assert made.n > 2 * CALIBRATION


def test_one_conversion_after_another() -> None:
    """A member of a cascade in a cascade is converted twice."""
    inputs = [Preprocess((8, 8), 1, (mean,), (std,)) for mean, std in ((0.1, 0.5), (0.4, 0.2), (0.3, 0.7))]
    x = torch.rand(2, 1, 8, 8)
    first, second = (InputAdapter.between(inputs[k], inputs[k + 1]) for k in (0, 1))
    both = InputAdapter(**conversion(inputs[0], inputs[1], conversion(inputs[1], inputs[2])))
    assert torch.allclose(both(x), second(first(x)), atol=1e-6)


def test_the_config_is_plain_json(chain: Chain, other: str, tmp_path: Path) -> None:
    """timm must be able to build it from the folder alone."""
    made = kdcompress.cascade(members=[chain.student.run, other], out=str(tmp_path / "two"), **WHERE)
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["model_args"]["members"][0]["input"]["size"] == [8, 8]
    model = timm.create_model(f"local-dir:{made.run}", pretrained=True).eval()
    assert config_of(model)["input_size"] == (1, 12, 12) or list(config_of(model)["input_size"]) == [1, 12, 12]
    x = torch.rand(2, 1, 12, 12)
    with torch.inference_mode():
        assert torch.allclose(model(x), kdcompress.load(str(made.run)).model(x), atol=1e-6)
