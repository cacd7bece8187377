"""One pipeline for all tests of the commands as functions."""

from __future__ import annotations

from typing import Any

import pytest

import kdcompress
from chains import COMMON, SMALL, TINY, WHERE, Chain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")

    def out(name: str) -> dict[str, Any]:
        return {**COMMON, "out": str(folder / name)}

    teacher = kdcompress.train_teacher(model="resnet8_cifar", data="digits", **{**out("teacher"), "epochs": 2})
    student = kdcompress.distill(teacher=teacher.run, method="reskd", student=SMALL, **out("student"))
    cascade = kdcompress.add_res_student(run=student.run, arch=TINY, **out("cascade"))
    longer = kdcompress.add_res_student(run=cascade.run, arch="lenet5,width=0.5", **out("longer"))
    gated = kdcompress.gate_calibrate(run=longer.run, max_drop=2.0, out=str(folder / "gated"), **WHERE)
    return Chain(folder, teacher, student, cascade, longer, gated)
