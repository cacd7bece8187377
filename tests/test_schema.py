"""JSON from outside: what fits passes with all its keys, all else is one line that says where."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from kdcompress.results import ProfileResult, TrainResult
from kdcompress.schema import MAX_DEPTH, Malformed, finite, is_finite, read_config, read_record

pytestmark = pytest.mark.attack("invalid JSON, and invalid values in JSON")

CONFIG: dict[str, Any] = {
    "architecture": "resnet8_cifar",
    "num_classes": 3,
    "model_args": {"width": 0.25},
    "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0, 0.5, 1], "std": [1, 0.5, 0.2], "crop_pct": 1, "tag": None},
    "label_names": ["ant", "bee", "cät"],
    "somebody": {"elses": ["key"]},
}
RECORD: dict[str, Any] = {
    "command": "distill",
    "options": {"data": "digits", "holdout": 0.1, "epochs": 3, "not_yet_known": [1]},
    "teacher": {"reference": "/runs/teacher", "macs": 1000, "entropy": 0.5},
    "status": "finished",
    "result": {"top1": 50.0, "exit_rates": [0.5, 0.5], "energies": [1.0, None]},
    "versions": {"python": "3.10"},
}


def content(base: dict[str, Any], path: str, value: Any) -> bytes:
    """``base`` with one value changed; the path has dots between its keys."""
    changed = json.loads(json.dumps(base))
    *parents, key = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[key] = value
    return json.dumps(changed).encode()


@pytest.mark.parametrize("config", [CONFIG, {}, {"architecture": "vit", "num_classes": 0, "pretrained_cfg": None}])
def test_foreign_files_keep_all_their_keys(config: dict[str, Any]) -> None:
    """Else folders from the hub, or of an older version, no longer load."""
    assert read_config(json.dumps(config).encode()) == config


@pytest.mark.parametrize("record", [RECORD, {}, {"teacher": None, "training": None, "parents": []}])
def test_old_records_pass(record: dict[str, Any]) -> None:
    """Else an update makes all earlier runs unreadable."""
    assert read_record(json.dumps(record).encode()) == record


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("label_names", [1, 2, 3]),
        ("label_names", ["ant", "bee"]),
        ("label_names", "ant"),
        ("num_classes", 10**9),
        ("num_classes", -1),
        ("num_classes", 2.5),
        ("num_classes", True),
        ("architecture", ["resnet8_cifar"]),
        ("model_args", [1]),
        ("pretrained_cfg", "none"),
        ("pretrained_cfg.std", [1, 0, 1]),
        ("pretrained_cfg.std", [1e-300]),
        ("pretrained_cfg.std", [-1]),
        ("pretrained_cfg.std", [math.nan]),
        ("pretrained_cfg.std", []),
        ("pretrained_cfg.std", "0.5"),
        ("pretrained_cfg.mean", [0.5] * 2),
        ("pretrained_cfg.mean", [math.inf]),
        ("pretrained_cfg.mean", [0.5] * 1000),
        ("pretrained_cfg.input_size", [3, 0, 8]),
        ("pretrained_cfg.input_size", [3, 8]),
        ("pretrained_cfg.input_size", [3, 10**9, 8]),
        ("pretrained_cfg.crop_pct", 0),
        ("pretrained_cfg.interpolation", 3),
        ("pretrained_cfg.label_names", [["ant"], "bee", "cat"]),
    ],
)
def test_an_impossible_config_is_refused(path: str, value: Any) -> None:
    """Else it ends as a traceback, as hours of NaN, or as 64 GB of memory."""
    with pytest.raises(Malformed) as caught:
        read_config(content(CONFIG, path, value))
    message = str(caught.value)
    assert "\n" not in message
    assert path.split(".")[-1] in message or "is not valid JSON" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("options", []),
        ("options.holdout", 1.5),
        ("options.holdout", "0.1"),
        ("options.data", 3),
        ("options.data", "a\0b"),
        ("options.data", "x" * 5000),
        ("teacher", "runs/teacher"),
        ("teacher.macs", 0),
        ("teacher.macs", 10**400),
        ("teacher.reference", None),
        ("result", None),
        ("result.exit_rates", [2.0]),
        ("result.energies", ["low"]),
        ("status", 1),
        ("calibration_seen", "no"),
        ("parents", "runs/teacher"),
    ],
)
def test_an_impossible_record_is_refused(path: str, value: Any) -> None:
    """Else the next command ends in a traceback, or computes with a teacher that costs nothing."""
    with pytest.raises(Malformed) as caught:
        read_record(content(RECORD, path, value))
    assert path.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b"\xff\xfe{\x00}\x00",
        b"\x00\x01\x02",
        b'{"a": NaN}',
        b'{"a": [-Infinity]}',
        b'{"a": [1e999]}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
        b'{"a": ' * 500 + b"1" + b"}" * 500,
    ],
)
def test_input_that_is_not_a_json_object_is_refused(bad: bytes) -> None:
    """Else a damaged or hostile file ends in a traceback, or in Python's recursion limit."""
    for read in (read_config, read_record):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read(bad)
        assert "\n" not in str(caught.value)


def test_names_that_are_not_utf8_pass() -> None:
    """Else a class folder with a name of another encoding can be trained on, and then not be evaluated."""
    names = ["ant", "bee", "caf\udce9"]
    assert read_config(content(CONFIG, "label_names", names))["label_names"] == names


def result(**values: Any) -> TrainResult:
    more: dict[str, Any] = {
        "command": "distill", "run": "/run", "seconds": 1.0, "architecture": "lenet5", "num_classes": 10,
        "input_size": (1, 8, 8), "params": 1, "macs": 1, "flops": 2, "method": "kd", "data": "digits", "epochs": 1,
        "seed": 0, "device": "cpu", "precision": "fp32", "split": "calibration", "n": 1, "top1": 50.0, "loss": 1.0,
    }  # fmt: skip
    return TrainResult(**{**more, **values})


def test_results_are_always_valid_json() -> None:
    """Else every reader but Python's refuses the result, after the work is done."""
    odd = result(loss=math.nan, energies=[1.0, math.inf], members=[{"macs": -math.inf}])
    assert set(odd.not_finite()) == {"loss", "energies", "members"}
    text = json.dumps(odd.to_dict(), allow_nan=False)
    found = json.loads(text)
    assert found["loss"] is None
    assert found["energies"] == [1.0, None]
    assert found["members"] == [{"macs": None}]
    back = TrainResult.from_dict({**found, "energies": [1.0]})
    assert math.isnan(back.loss)
    assert result().not_finite() == []
    assert TrainResult.from_dict(json.loads(json.dumps(result().to_dict()))) == result()
    assert is_finite(finite({"a": [math.nan, {"b": (math.inf,)}]}))


@pytest.mark.parametrize("change", [{"macs": "many"}, {"input_size": [1, 8]}, {"top1": [3]}, {"loss": "low"}])
def test_a_result_that_was_altered_is_not_taken(change: dict[str, Any]) -> None:
    """Else --resume prints whatever somebody wrote into run.json."""
    with pytest.raises(Malformed, match=next(iter(change))):
        TrainResult.from_dict({**result().to_dict(), **change})
    with pytest.raises(Malformed, match="architecture"):
        ProfileResult.from_dict({"command": "profile-flops", "run": None, "seconds": 1.0})
