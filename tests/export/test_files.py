"""Exported files: their metadata, their preprocessing, and files that are something else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from kdcompress.data.preprocess import Preprocess
from kdcompress.errors import UserError
from kdcompress.export import onnx_network
from kdcompress.export.metadata import KEY, read_facts
from kdcompress.export.onnx_network import new_session, open_onnx
from kdcompress.export.preprocess import INPUT, check_pixels, check_preprocess, transform_model
from kdcompress.schema import Malformed

FACTS: dict[str, Any] = {
    "architecture": "residual_cascade",
    "num_classes": 3,
    "label_names": ["a", "b", "c"],
    "input_size": [1, 4, 4],
    "mean": [0.5],
    "std": [0.25],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "precision": "fp32",
    "preprocess": False,
    "params": 10,
    "macs": 30,
    "teacher_macs": None,
    "members": [
        {"architecture": "lenet5", "params": 5, "macs": 10},
        {"architecture": "lenet5", "params": 5, "macs": 20},
    ],
    "gate": {"measure": "margin", "thresholds": [0.5]},
    "exit_rates": [0.75, 0.25],
    "source": {"data": "digits", "holdout": 0.1},
    "run_fingerprint": None,
    "data_fingerprint": None,
    "versions": {},
}


def model(facts: dict[str, Any] | None = None, classes: int = 3) -> onnx.ModelProto:
    """Inputs and outputs as ours, and next to nothing between."""
    weight = numpy_helper.from_array(np.zeros((16, classes), np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["exit_stage"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("exit_stage", TensorProto.INT64, ["batch"]),
        ],
        initializer=[weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if facts is not None:
        helper.set_model_props(made, {KEY: json.dumps(facts)})
    return made


def saved(folder: Path, made: onnx.ModelProto, **how: Any) -> Path:
    onnx.save(made, str(folder / "made.onnx"), **how)
    return folder / "made.onnx"


def test_a_file_of_ours_opens(tmp_path: Path) -> None:
    """The refusals below would hold for any file."""
    network = open_onnx(saved(tmp_path, model(FACTS)))
    assert network.class_names == ("a", "b", "c")
    assert network.prep == Preprocess((4, 4), 1, (0.5,), (0.25,))
    logits, exits = network.run(np.zeros((2, 1, 4, 4), np.float32))
    assert (logits.shape, exits.shape) == ((2, 3), (2,))


@pytest.mark.attack("files that are no exported network")
def test_files_that_are_something_else(tmp_path: Path) -> None:
    """A user gives the wrong file, and gets a stack trace, or the answers of some other network."""
    with pytest.raises(UserError, match="There is no file"):
        open_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("none of it")
    with pytest.raises(UserError, match="cannot be loaded"):
        open_onnx(tmp_path / "text.onnx")
    whole = saved(tmp_path, model(FACTS))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be loaded"):
        open_onnx(whole)
    with pytest.raises(UserError, match="has no metadata 'kdcompress'"):
        open_onnx(saved(tmp_path, model()))
    with pytest.raises(UserError, match="not what its metadata say"):
        open_onnx(saved(tmp_path, model(FACTS, classes=4)))


def test_external_data_that_are_missing(tmp_path: Path) -> None:
    """Only one of two files was copied, and nothing says so."""
    file = saved(tmp_path, model(FACTS), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert open_onnx(file).num_classes == 3
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UserError) as raised:
        open_onnx(file)
    assert "weights are in another file" in raised.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("std", [0.0]),
        ("mean", [0.5, 0.5, 0.5]),
        ("gate", {"measure": "margin", "thresholds": [0.5, 0.5]}),
        ("gate", {"measure": "margin", "thresholds": [7]}),
        ("gate", {"measure": "sum", "thresholds": [0.5]}),
        ("exit_rates", [1.0]),
        ("input_size", [1, 4]),
        ("label_names", ["a"]),
        ("macs", -1),
        ("members", [{"architecture": "lenet5"}, {}]),
    ],
)
@pytest.mark.attack("metadata of a file that was altered")
def test_metadata_out_of_bounds(key: str, value: Any) -> None:
    """A file that was altered makes predictions with another normalisation, or a stack trace."""
    read_facts(json.dumps(FACTS))
    with pytest.raises(Malformed, match=key):
        read_facts(json.dumps({**FACTS, key: value}))
    without = copy.deepcopy(FACTS)
    del without[key]
    with pytest.raises(Malformed, match=key):
        read_facts(json.dumps(without))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who has not installed it meets an ImportError."""
    monkeypatch.setattr(onnx_network, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnxruntime") as raised:
        open_onnx(tmp_path / "any.onnx")
    assert raised.value.remedy == "pip install 'kdcompress[onnx]'"


def picture(height: int, width: int, channels: int) -> Image.Image:
    noise = np.random.default_rng(height + width).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return (
        Image.fromarray(noise)
        .resize((width, height), Image.Resampling.BICUBIC)
        .convert("RGB" if channels == 3 else "L")
    )


@pytest.mark.parametrize("size", [(32, 32), (57, 75), (333, 200), (29, 90), (61, 60)], ids=str)
@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation", "channels"),
    [(32, 1.0, "bilinear", 1), (48, 0.875, "bicubic", 3), (96, 0.95, "bicubic", 3)],
)
def test_the_graph_prepares_images_as_the_run_does(
    size: tuple[int, int], side: int, crop_pct: float, interpolation: str, channels: int
) -> None:
    """A service that sends photos gets other predictions than eval."""
    prep = Preprocess((side, side), channels, (0.4,) * channels, (0.2,) * channels, interpolation, crop_pct)
    image = picture(*size, channels)
    expected = (np.asarray(prep.eval_transform()(image)).astype(np.float32) / 255 - 0.4) / 0.2
    pixels = np.asarray(image).reshape(1, *size, channels)
    transform = new_session(transform_model(prep, 20).SerializeToString(), 1)
    (found,) = transform.run(None, {INPUT: pixels})
    check_pixels(found, expected[None], prep)
    with pytest.raises(UserError, match="not the run's"):
        check_pixels(np.roll(found, 1, -1), expected[None], prep)


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "lanczos"}, {"size": (24, 40)}, {"crop_pct": 1.2}],
    ids=lambda change: next(iter(change)),
)
def test_preprocessing_that_the_graph_cannot_do_is_refused(change: dict[str, Any]) -> None:
    """Images are prepared in another way than the network was trained with."""
    usual = {"size": (32, 32), "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    check_preprocess(Preprocess(**usual))
    with pytest.raises(UserError, match="--preprocess"):
        check_preprocess(Preprocess(**{**usual, **change}))
