"""``predict`` as a function, and ``load``: the classes that ``eval`` finds, image by image."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import kdcompress
from chains import CPU, TINY, WHERE, Chain
from kdcompress import UserError
from kdcompress.api import predictions
from kdcompress.data import Data, load_source
from kdcompress.data.exif import ORIENTATION
from kdcompress.models.loading import load_network
from kdcompress.options import EvalOptions
from kdcompress.results import Prediction


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a folder of PNG files; 360 of them are the test split, and some for training that nobody reads."""
    root, source = tmp_path_factory.mktemp("digits"), load_source("digits")
    for name, images, most in (("train", source.train, 60), ("test", source.test, 360)):
        assert images is not None
        for index, label in enumerate(images.labels[:most]):
            file = root / name / str(label) / f"{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            images.image(index).save(file)
    return root


def as_eval_sees_it(run: str | None, data: Path) -> list[tuple[str, torch.Tensor, int | None]]:
    """Path, logits and exit of each test image, by the batches that ``eval`` scores."""
    network = load_network(str(run))
    source = load_source(str(data))
    batches = Data(source, network.prep, EvalOptions(), CPU.device).evaluation("test", 128)
    assert source.test is not None
    paths = [Path(source.test.name(int(index))) for index in batches.images.ids]
    found: list[tuple[str, torch.Tensor, int | None]] = []
    with torch.inference_mode():
        for x, _ in batches:
            gated = getattr(network.model, "gate", None) is not None
            logits, exits = network.model.forward_gated(x) if gated else (network.model(x), None)  # type: ignore[operator]
            stages = [None] * len(x) if exits is None else exits.tolist()
            found += [(str(paths[len(found) + at]), logits[at], stages[at]) for at in range(len(x))]
    return found


@pytest.mark.parametrize("kind", ["teacher", "longer", "gated"])
def test_predictions_are_those_that_eval_scores(kind: str, chain: Chain, digits: Path) -> None:
    """The accuracy that eval reports is not that of what a user gets for the same images."""
    run = getattr(chain, kind).run
    rows = kdcompress.predict(run, digits / "test", device="cpu")
    expected = as_eval_sees_it(run, digits)
    assert [row.path for row in rows] == [path for path, _, _ in expected]
    for row, (_, logits, stage) in zip(rows, expected, strict=True):
        assert row.index == int(logits.argmax())
        assert row.exit_stage == stage
        assert row.probability == pytest.approx(float(logits.softmax(0).max()), abs=2e-6)
        best = logits.softmax(0).topk(5)
        assert [each.probability for each in row.top5] == pytest.approx(best.values.tolist(), abs=2e-6)
        assert row.top5[0].index == row.index
        assert row.label == str(row.index)
    scored = kdcompress.evaluate(run=run, data=str(digits), **WHERE)
    right = sum(row.label == Path(row.path).parent.name for row in rows)
    assert scored.top1 == pytest.approx(100 * right / len(rows), abs=1e-3)
    if scored.exit_rates is not None:
        shares = [sum(row.exit_stage == stage for row in rows) / len(rows) for stage in range(3)]
        assert scored.exit_rates == pytest.approx(shares, abs=1e-6)
        assert 0 < shares[0] < 1, "the test needs images of both kinds"


@pytest.mark.parametrize("preprocess", [False, True])
def test_an_exported_file_predicts_the_same(preprocess: bool, chain: Chain, digits: Path, tmp_path: Path) -> None:
    """What was tried before the export is not what the file says, or the file needs the run folder."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "gated.onnx"
    kdcompress.export_network(run=chain.gated.run, out=file, preprocess=preprocess)
    Image.new("L", (31, 20), 90).save(tmp_path / "other.png")  # a batch of several sizes
    images = [digits / "test" / "6", tmp_path / "other.png", digits / "test" / "8"]
    expected = kdcompress.predict(chain.gated.run, images, device="cpu")
    found = kdcompress.predict(file, images)
    assert [(row.path, row.label) for row in found] == [(row.path, row.label) for row in expected]
    for row, other in zip(found, expected, strict=True):
        if row.path != str(tmp_path / "other.png"):  # resized by other code, which may differ by a grey level
            assert (row.index, row.exit_stage) == (other.index, other.exit_stage)
            assert row.probability == pytest.approx(other.probability, abs=1e-5)
    with pytest.raises(UserError, match="arch"):
        kdcompress.predict(file, images, arch=TINY)


def test_the_gate_skips(chain: Chain, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every member runs on every image, and the cascade costs more than its MACs say."""
    from kdcompress.models.staged import Staged

    seen: list[int] = []
    genuine = Staged.after

    def counting(self: Any, stage: int, before: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        seen.append(len(own))
        return genuine(self, stage, before, own)

    monkeypatch.setattr("kdcompress.models.residual_cascade.ResidualCascade.after", counting)
    rows = kdcompress.predict(chain.gated.run, digits / "test", device="cpu")
    assert sum(seen) == sum(row.exit_stage or 0 for row in rows) < 2 * len(rows)


def test_images_that_were_not_cropped_in_training_are_not_cropped(digits: Path, tmp_path: Path) -> None:
    """A network of timm that was trained on small images gets them enlarged and cropped by whoever loads it."""
    spec = f"{TINY},crop_pct=0.5"
    run = kdcompress.train_teacher(model=spec, data="digits", epochs=1, out=tmp_path / "run", **WHERE).run
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == 1
    rows = kdcompress.predict(run, digits / "test", device="cpu")
    assert [row.index for row in rows] == [int(logits.argmax()) for _, logits, _ in as_eval_sees_it(run, digits)]


def test_rows_are_in_the_order_of_the_images(chain: Chain, digits: Path) -> None:
    """A user takes the row of one image for that of another."""
    some = sorted((digits / "test" / "3").iterdir())[:5]
    rows = kdcompress.predict(chain.gated.run, [*reversed(some), some[2]], batch_size=2, device="cpu")
    assert [row.path for row in rows] == [str(path) for path in (*reversed(some), some[2])]
    assert rows[2] == rows[-1]


def test_images_of_any_size_and_colour_are_read(chain: Chain, tmp_path: Path) -> None:
    """A photo from a phone is refused by a network for small grey images."""
    modes = {"RGB": "jpg", "RGBA": "png", "L": "png", "P": "png", "1": "png", "CMYK": "jpg", "I;16": "png"}
    for mode, suffix in modes.items():
        Image.new(mode, (90, 40), 0).save(tmp_path / f"{mode.replace(';', '')}.{suffix}")
    rows = kdcompress.predict(chain.gated.run, tmp_path, device="cpu")
    assert len(rows) == len(modes)


def test_photos_are_turned_upright(chain: Chain, digits: Path, tmp_path: Path) -> None:
    """A photo that a phone took upright is classified as one that lies on its side."""
    upright = next((digits / "test" / "4").iterdir())
    with Image.open(upright) as image:
        exif = image.getexif()
        exif[ORIENTATION] = 6  # viewers turn it by 90 degrees, clockwise
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    straight, turned = kdcompress.predict(chain.longer.run, [upright, tmp_path / "turned.png"], device="cpu")
    assert turned.top5 == straight.top5
    network = kdcompress.load(str(chain.longer.run))
    with Image.open(upright) as one, Image.open(tmp_path / "turned.png") as other:
        assert torch.equal(network.transform(one), network.transform(other))


def test_bad_images_are_named_and_the_rest_goes_on(chain: Chain, digits: Path, tmp_path: Path) -> None:
    """One damaged file among a million ends the work, or is left out without a word."""
    good = sorted((digits / "test" / "7").iterdir())[0]
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"cut\.png") as seen:
        rows = kdcompress.predict(chain.gated.run, [cut, good, "nowhere.png"], device="cpu")
    assert [row.path for row in rows] == [str(good)]
    assert sorted(str(each.message).split(" ")[0] for each in seen) == ["There", "Unreadable"]
    with pytest.raises(UserError, match=r"no file or folder nowhere\.png"):
        kdcompress.predict(chain.gated.run, "nowhere.png", device="cpu")


@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_top_k_classes_are_listed(top_k: int, chain: Chain, digits: Path) -> None:
    """More classes than there are end in an error, or fewer come than were asked for."""
    row = kdcompress.predict(chain.gated.run, digits / "test" / "0", top_k=top_k, device="cpu")[0]
    assert len(row.top5) == min(top_k, 10)
    assert [each.probability for each in row.top5] == sorted((each.probability for each in row.top5), reverse=True)


def test_csv_holds_the_same_rows(chain: Chain, digits: Path, tmp_path: Path) -> None:
    """A spreadsheet shows other classes than the program that made it."""
    file = tmp_path / "classes.csv"
    named = tmp_path / 'a, "b"\n.png'
    named.write_bytes((digits / "test" / "0" / "0024.png").read_bytes())
    rows = kdcompress.predict(chain.gated.run, [digits / "test" / "0", named], csv=file, top_k=2, device="cpu")
    with open(file, newline="") as opened:
        table = list(csv.DictReader(opened))
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        second = row.top5[1]
        assert line == {
            "path": row.path,
            "label": row.label,
            "index": str(row.index),
            "probability": str(row.probability),
            "exit_stage": str(row.exit_stage),
            "label_2": second.label,
            "index_2": str(second.index),
            "probability_2": str(second.probability),
        }
    with pytest.raises(UserError, match="exists already"):
        kdcompress.predict(chain.gated.run, digits / "test" / "0", csv=file, device="cpu")


def test_a_csv_that_is_not_finished_is_not_left(chain: Chain, digits: Path, tmp_path: Path) -> None:
    """Half a table looks like a whole one."""
    folder = tmp_path / "out"
    folder.mkdir()
    options = {"run": chain.gated.run, "images": (str(digits / "test"),), "csv": str(folder / "a.csv")}
    batches = iter(predictions(batch_size=4, device="cpu", **options))
    next(batches)
    assert len(list(folder.iterdir())) == 1
    batches.close()  # type: ignore[attr-defined]
    assert list(folder.iterdir()) == []


def test_wrong_usage_is_refused_before_a_network_is_loaded(tmp_path: Path) -> None:
    """A mistake shows after a long download, or not at all."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": ()}, "No images"),
        ({"images": ("-",), "run": "-"}, "once"),
        ({"images": ("-", "-")}, "once"),
        ({"images": ("a.png",), "null": True}, "--null"),
        ({"images": ("a.png",), "csv": str(tmp_path / "none" / "a.csv")}, "no folder"),
    ]
    for options, words in cases:
        with pytest.raises(UserError, match=words) as found:
            predictions(**{"run": "nowhere", **options})
        assert found.value.exit_code == 2
    with pytest.raises(UserError, match="no file or folder"):
        kdcompress.predict(tmp_path / "nowhere", "a.png")


def test_a_network_of_other_channels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network for five-channel inputs ends in an error of Pillow."""
    network = kdcompress.load(f"{TINY},in_chans=5", weights=False)
    monkeypatch.setattr("kdcompress.api.classifier.load_network", lambda *_, **__: network)
    with pytest.raises(UserError, match="takes 5 channels"):
        kdcompress.predict("five", "a.png", device="cpu")
    with pytest.raises(UserError, match="takes 5 channels"):
        _ = network.transform


def test_load_gives_transform_and_labels(chain: Chain, digits: Path) -> None:
    """A service that loads a run has to write the preprocessing itself, and gets it wrong."""
    network = kdcompress.load(str(chain.gated.run))
    assert network.labels == tuple("0123456789")
    rows = kdcompress.predict(chain.gated.run, digits / "test" / "5", device="cpu")
    with torch.inference_mode():
        for row in rows:
            with Image.open(row.path) as image:
                x = network.transform(image.convert("RGB"))
            assert x.shape == network.input_size
            assert int(network.model(x[None]).argmax()) == row.index


def test_networks_of_timm_know_the_classes_of_imagenet() -> None:
    """The first thing that a newcomer tries, a pretrained network and a photo, gives numbers without names."""
    labels = kdcompress.load("resnet10t", weights=False).labels
    assert labels is not None
    assert (len(labels), labels[0]) == (1000, "tench, Tinca tinca")
    assert kdcompress.load(TINY, weights=False, num_classes=1000).labels is None


def test_rows_are_plain_json() -> None:
    """A network whose logits are NaN prints what no JSON parser reads."""
    row = Prediction("a.png", None, 3, float("nan"), None, ())
    expected = {"path": "a.png", "label": None, "index": 3, "probability": None, "exit_stage": None, "top5": []}
    assert json.loads(json.dumps(row.to_dict(), allow_nan=False)) == expected
