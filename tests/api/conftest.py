"""One pipeline for all tests of the commands as functions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

import kdcompress
import once
from chains import COMMON, SMALL, TINY, WHERE, Chain
from kdcompress.api.recipes import rkd_assistant
from kdcompress.models.separate import Separation, separate


@pytest.fixture(autouse=True, scope="session")
def _separated_once() -> Iterator[None]:
    """The widths of a student and its assistant are searched for seconds, and found anew by each training of the two.

    tests/models/test_separate.py tries the search.
    """
    found: dict[str, Separation] = {}

    def once(*given: Any, **more: Any) -> Separation:
        key = repr((given, sorted(more.items())))
        if key not in found:
            found[key] = separate(*given, **more)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rkd_assistant, "separate", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _exported_once() -> Iterator[None]:
    """The same three members would be exported by tests of export, predict and benchmark.

    tests/export exports for itself.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("onnxscript") is not None:
            from kdcompress.api import exported_members

            patch.setattr(exported_members, "export_member", once.exported_once(exported_members.export_member))
        yield


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")

    def out(name: str) -> dict[str, Any]:
        return {**COMMON, "out": str(folder / name)}

    teacher = kdcompress.train_teacher(model="resnet8_cifar", data="digits", **{**out("teacher"), "epochs": 2})
    student = kdcompress.distill(teacher=teacher.run, method="reskd", student=SMALL, **out("student"))
    cascade = kdcompress.add_res_student(run=student.run, arch=TINY, **out("cascade"))
    longer = kdcompress.add_res_student(run=cascade.run, arch="lenet5,width=0.5", opt="sgd", **out("longer"))
    gated = kdcompress.gate_calibrate(run=longer.run, max_drop=2.0, out=str(folder / "gated"), **WHERE)
    return Chain(folder, teacher, student, cascade, longer, gated)
