"""What chose a cascade by its accuracy on the calibration images, which a guarantee should be told with."""

from __future__ import annotations

from typing import Any

import pytest

from kdcompress.api.gate import _chosen_by


@pytest.mark.parametrize(
    ("record", "by"),
    [
        ({"result": {"polished": True}, "training": {"top1": 80.0}}, "polish"),
        ({"result": {"polished": False}, "training": {"top1": 80.0}}, ""),
        ({"result": {"search": {"trials": []}}}, "--search"),
        ({"training": {"search": {"trials": []}}, "result": {"polished": True}}, "polish, --search"),
        ({"result": {"stopped_by": "target"}}, "--grow"),
        ({"result": {"stopped_by": "energy"}}, ""),
        ({"options": {"stop_top1": 90.0}, "result": {}}, "--stop-top1"),
        ({}, ""),
    ],
)
def test_every_choice_is_named(record: dict[str, Any], by: str) -> None:
    """The guarantee was stated without reserve for a cascade that had been selected by the images of its test."""
    assert _chosen_by(record) == by
