"""``report`` of real runs: its numbers are those of ``eval``, and it says what it could not show."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kdcompress
from chains import COMMON, SMALL, TEST, Chain, record_of
from heard import Heard
from kdcompress.api.reporting import commands, lineage, times
from kdcompress.api.reporting.classes import paired_interval
from kdcompress.api.reporting.examples import SIDE, picture
from kdcompress.api.reporting.measured import Measured
from kdcompress.data import load_source
from kdcompress.engine.distributed import Place
from kdcompress.errors import UserError
from kdcompress.option_set import flag
from report.conftest import HOSTILE
from report.reading import Reading

LARGEST = 3 * 2**20  # bytes of a report
QUICK: dict[str, Any] = {"device": "cpu", "time": False}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "SECONDS", 0.02)
    monkeypatch.setattr(times, "IMAGES", 8)


def read(found: Any) -> Reading:
    return Reading(Path(found.file).read_text(encoding="utf-8"))


def test_a_gated_cascade(chain: Chain, tmp_path: Path) -> None:
    """The report would show other numbers than eval, or a share of the costs of the wrong network."""
    file, heard = tmp_path / "report.html", Heard()
    found = kdcompress.write_report(
        runs=[chain.gated.run, chain.student.run], out=str(file), device="cpu", reporter=heard
    )
    scored = kdcompress.evaluate(run=chain.gated.run, device="cpu")
    same = ("top1", "top5", "ece", "n", "split", "data", "macs", "params", "macs_ratio", "teacher_top1", "points_lost",
            "measure", "thresholds", "exit_rates", "expected_macs", "expected_macs_ratio", "full_top1", "gated_top1",
            "stage_top1", "members")  # fmt: skip
    for key in same:
        assert getattr(found, key) == getattr(scored, key), key
    assert found.teacher_ece == kdcompress.evaluate(run=chain.teacher.run, device="cpu").ece
    assert [(row["network"], row["role"]) for row in found.networks] == [
        ("gated", "subject"), ("teacher", "teacher"), ("student", "single"),
    ]  # fmt: skip
    single = kdcompress.evaluate(run=chain.student.run, device="cpu")
    assert (found.networks[2]["top1"], found.networks[2]["macs"]) == (single.top1, single.macs)
    assert found.oracle_top1 >= max(found.stage_top1)
    assert found.stage_top1[0] <= found.oracle_top1
    assert found.members[0]["macs"] <= found.oracle_macs <= found.macs
    low, high = found.points_lost_interval
    assert low <= found.points_lost <= high
    assert all(row["ms"] > 0 for row in found.networks)
    page = read(found)
    assert page.values == found.to_dict()
    assert page.keys["top1"][0] == f"{scored.top1:.2f} %"
    assert file.stat().st_size < LARGEST
    assert page.text.count("exit ") >= 3
    rates = [f"{100 * rate:.1f} % of the images" for rate in scored.exit_rates]
    assert all(rate in page.text for rate in rates)
    for name in ("teacher", "student", "cascade", "longer", "gated"):
        assert f"{name} " in page.text.split("How it was made")[1]
    assert "kdcompress gate-calibrate" in page.text
    assert any("Running" in note for note in heard.notes)


def test_the_run_stays_whole(chain: Chain, tmp_path: Path) -> None:
    """A report in the folder of a run would make verify fail, or the run another one."""
    run = Path(shutil.copytree(chain.gated.run, tmp_path / "gated"))
    first = kdcompress.write_report(runs=str(run), **QUICK)
    assert Path(first.file) == run / "report.html"
    assert kdcompress.verify(run=run).whole
    again = kdcompress.write_report(runs=str(run), split="calibration", examples=0, **QUICK)
    assert again.file == first.file
    assert read(again).values["split"] == "calibration"
    assert again.gated_top1 == chain.gated.gated_top1
    card = kdcompress.write_report(runs=str(run), format="md", **QUICK)
    assert Path(card.file) == run / "README.md"
    assert f"reaches {card.top1:.2f} % top-1" in Path(card.file).read_text()
    assert kdcompress.verify(run=run).whole
    assert not list(run.glob(".*"))


@pytest.mark.parametrize("name", ["teacher", "student", "cascade"])
def test_other_kinds_of_runs(chain: Chain, tmp_path: Path, name: str) -> None:
    """A user who has not calibrated a gate yet would get an error."""
    run = getattr(chain, name).run
    found = kdcompress.write_report(runs=run, out=str(tmp_path / "report.html"), **QUICK)
    scored = kdcompress.evaluate(run=run, device="cpu")
    assert (found.top1, found.macs, found.teacher_top1) == (scored.top1, scored.macs, scored.teacher_top1)
    assert found.measure is None
    text = read(found).text
    assert "this run has none" in text
    assert ("names none" in text) == (name == "teacher")


def test_a_teacher_that_is_gone(chain: Chain, tmp_path: Path) -> None:
    """A run that was moved to another machine could not be looked at."""
    run = Path(shutil.copytree(chain.student.run, tmp_path / "student"))
    record = {key: value for key, value in record_of(run).items() if not key.startswith("digest")}
    record["teacher"] = {**record["teacher"], "reference": str(tmp_path / "nowhere")}
    (run / "run.json").write_text(json.dumps(record))
    found = kdcompress.write_report(runs=str(run), **QUICK)
    assert found.teacher_top1 is None
    assert found.macs_ratio == chain.student.macs_ratio
    text = read(found).text
    assert "is not on this disk" in text
    assert "It is no longer there" in text
    assert "% of the teacher’s MACs." in text
    with pytest.raises(UserError, match="nowhere"):
        kdcompress.write_report(runs=str(run), score_teacher=True, **QUICK)


def test_a_changed_parent_is_said(chain: Chain, tmp_path: Path) -> None:
    """The lineage would describe networks that this one was not made from."""
    run = Path(shutil.copytree(chain.gated.run, tmp_path / "gated"))
    record = {key: value for key, value in record_of(run).items() if not key.startswith("digest")}
    (run / "run.json").write_text(json.dumps({**record, "parent_fingerprint": "0" * 16}))
    text = read(kdcompress.write_report(runs=str(run), **QUICK)).text
    assert text.count("It has changed since") == 1


def test_records_that_were_edited(chain: Chain, tmp_path: Path) -> None:
    """One wrong value in run.json would end in a traceback."""
    run = Path(shutil.copytree(chain.gated.run, tmp_path / "gated"))
    record = {key: value for key, value in record_of(run).items() if not key.startswith("digest")}
    result = {
        **record["result"],
        "curve": [3, {"thresholds": ["x"]}, {"thresholds": [2.0, 0.5]}, {}],
        "promise": {"a": 1},
    }
    (run / "run.json").write_text(json.dumps({**record, "result": result, "versions": 3, "options": {}}))
    found = kdcompress.write_report(runs=str(run), data="digits", **QUICK)
    assert "No guarantee was asked for" in read(found).text


def test_class_names_are_text(tmp_path: Path) -> None:
    """A folder of images named like this would run in the reader's browser."""
    names, random = ["a", HOSTILE.replace("/", "∕"), "b|`c`"], np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(names):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 80, (128, 120, 3), dtype=np.uint8)
                pixels[:, :, label] += 150
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    run = tmp_path / "run"
    kdcompress.train_teacher(
        model="resnet8_cifar,width=0.25",
        data=str(tmp_path / "photos"),
        input_size="16",
        batch_size=6,
        out=str(run),
        **COMMON,
    )
    found = kdcompress.write_report(runs=str(run), device="cpu")
    page = read(found)
    assert names[1] in page.text
    assert page.scripts == []
    assert "<script>alert" not in Path(found.file).read_text()
    assert sum(address.startswith("data:image/jpeg") for address in page.loads) >= 4
    card = kdcompress.write_report(runs=str(run), format="md", **QUICK)
    assert "<script>alert" not in Path(card.file).read_text().split("---\n", 2)[2].split("```")[0]


def test_pictures_are_small() -> None:
    """A report with a few photos would be too large to send."""
    for size in ((4000, 3000), (96, 97), (1, 500)):
        source, pixelated = picture(Image.effect_noise(size, 80).convert("RGB"))
        assert len(source) < 16 * 2**10
        assert not pixelated
    source, pixelated = picture(Image.new("L", (28, 28), 7))
    assert pixelated
    assert source.startswith("data:image/png;base64,")
    assert SIDE <= 96


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": ["-", "-"]}, "'-' can be given once"),
        ({"runs": ["nowhere/run"]}, "There is no run folder|no file or folder"),
        ({"runs": ["gated.onnx"]}, "exported file"),
        ({"out": "there.html"}, "exists already"),
        ({"out": "nowhere/report.html"}, "There is no folder"),
        ({"out": "report.pdf"}, "which format"),
        ({"runs": "timm"}, "Add --data|no run folder|has no|classes"),
        ({"arch": ["lenet5"]}, "1 arch= for 0"),
    ],
)
def test_mistakes(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    """An hour of work on a large split would be lost at its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "gated.onnx").write_text("x")
    monkeypatch.setattr(Measured, "of", lambda *_: pytest.fail("it was run"))
    if options.get("runs") == "timm":
        options = {"runs": [f"{chain.teacher.run}/model.safetensors"], "arch": ["resnet8_cifar,in_chans=1"]}
        words = "in no run folder"
    with pytest.raises(UserError, match=words):
        kdcompress.write_report(**{"runs": [chain.gated.run], **QUICK, **options})
    assert (tmp_path / "there.html").read_text() == "mine"


def test_the_teacher_is_one_row(chain: Chain, tmp_path: Path) -> None:
    """Named beside the run, as for benchmark, it was run and timed twice."""
    made = kdcompress.write_report(runs=[chain.gated.run, chain.teacher.run], out=str(tmp_path / "r.html"), **QUICK)
    assert [row["role"] for row in made.networks].count("teacher") == 1
    assert not any(row["role"] == "single" for row in made.networks)


def test_a_file_of_others_is_kept(chain: Chain, tmp_path: Path) -> None:
    """A README that somebody wrote by hand would be lost."""
    run = Path(shutil.copytree(chain.student.run, tmp_path / "student"))
    (run / "README.md").write_text("my own words")
    with pytest.raises(UserError, match="is no report of kdcompress") as caught:
        kdcompress.write_report(runs=str(run), format="md", **QUICK)
    assert "out=" in caught.value.remedy
    assert (run / "README.md").read_text() == "my own words"


def test_the_oracle_and_the_curve(chain: Chain) -> None:
    """The bound would be lower than what a gate reaches, or the curve of other images."""
    network = kdcompress.load(chain.gated.run)
    source = load_source("digits")
    from chains import source_and_data

    batches = source_and_data(network.prep).evaluation("test", 128)
    found = Measured.of(network, batches, Place(torch.device("cpu"), "fp32"))
    assert len(found.labels) == TEST
    assert source.test is not None
    points = found.oracle()
    assert points[0] == pytest.approx((found.macs[0], found.stage_top1[0]))
    assert [top1 for _, top1 in points] == sorted(top1 for _, top1 in points)
    any_right = 100 * float(found.right[: len(found.macs)].any(0).double().mean())
    assert points[-1][1] == pytest.approx(any_right)
    (own,) = found.outcomes([list(network.model.gate.thresholds)])
    assert (own.expected_macs, own.top1) == pytest.approx((found.cost, found.top1))
    assert own.exit_rates == pytest.approx(found.exit_rates)
    for macs, top1 in ((each.expected_macs, each.top1) for each in found.outcomes([[0.5, 0.5], [0.9, None]])):
        assert macs >= found.macs[0]
        assert top1 <= any_right


def test_how_surely_a_loss_is_known() -> None:
    """An interval of no width, or one that misses the truth, would end a comparison that should go on."""
    low, high = paired_interval(0, 0, 360)
    assert low == -high
    assert 0.4 < high < 0.7
    generator, n, missed = np.random.default_rng(0), 500, 0
    for _ in range(2000):
        lost, gained, _ = generator.multinomial(n, [0.05, 0.02, 0.93])
        low, high = paired_interval(int(lost), int(gained), n)
        missed += not low <= 3.0 <= high
    assert 0.03 < missed / 2000 < 0.07


def test_commands_are_those_that_were_typed(chain: Chain) -> None:
    """A run could not be repeated from its report."""
    line = commands.command_line(record_of(chain.cascade.run))
    words = line.split()
    assert words[:3] == ["kdcompress", "add-res-student", chain.student.run]
    assert f"--arch {record_of(chain.cascade.run)['options']['arch'][0]}" in line
    assert flag("epochs") in words
    assert "--resume" not in words
    piped = {**record_of(chain.student.run)}
    piped["options"] = {**piped["options"], "teacher": "-"}
    assert commands.command_line(piped).split()[2] == chain.teacher.run
    assert SMALL in commands.command_line(piped)
    assert commands.command_line({"command": "of another version"}) == ""


def test_a_step_names_split_and_precision_of_its_figures() -> None:
    """An accuracy on the test split was called one on the calibration split."""
    record = {"precision": "bf16", "result": {"split": "test", "top1": 48.75, "precision": "fp32"}}
    assert {("top-1 (test)", "48.75 %"), ("precision", "fp32")} <= set(lineage._details(record, {}))
    record["result"] = {"top1": 50.0}
    assert {("top-1 (calibration)", "50.00 %"), ("precision", "bf16")} <= set(lineage._details(record, {}))


def test_a_step_names_images_without_labels() -> None:
    assert ("images without labels", "40") in lineage._details({"result": {"unlabelled": 40}}, {})
    assert "images without labels" not in dict(lineage._details({"result": {"unlabelled": None}}, {}))


def test_a_step_names_what_it_was_trained_with() -> None:
    """Which learning rate "auto" was would have to be looked for in the code of that day."""
    used = {"opt": "nmuon", "lr": 0.01, "batch_size": 1024, "alpha": 0.9, "temperature": 4.0, "label_smoothing": 0.0}
    told = "nmuon, learning rate 0.01, batch size 1024, alpha 0.9, temperature 4"
    assert ("recipe", told) in lineage._details({"recipe": {"0": {"opt": "sgd"}, "1": used}}, {})
    assert "recipe" not in dict(lineage._details({}, {}))


def test_names_that_are_not_utf8_are_written(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class folder with a name in Latin-1 cost the report, and compress its result after all trainings."""
    monkeypatch.setattr(sys.modules["kdcompress.api.report"], "card", lambda _: "caf\udce9")
    made = kdcompress.write_report(runs=(chain.student.run,), format="md", out=tmp_path / "card.md", time=False)
    assert Path(str(made.file)).read_text() == r"caf\udce9"
