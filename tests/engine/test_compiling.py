"""Compiled training: the same weights by the same names, and nothing of it left afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kdcompress
from heard import Heard
from kdcompress.engine.compiling import check_compiler, compiled
from kdcompress.errors import UserError
from kdcompress.models.loading import load_network

TINY = "resnet8_cifar,width=0.25"


@torch.no_grad()  # the compiler would be asked for the backward pass, too
def test_a_compiled_module_is_the_same_module() -> None:
    """Its weights would be saved under other names, or batches of another size fail."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    names, batches = list(module.state_dict()), [torch.randn(size, 4) for size in (5, 6, 3)]
    expected = [module(x) for x in batches]
    with compiled([module]):
        assert module._compiled_call_impl is not None
        for x, wanted in zip(batches, expected, strict=True):
            torch.testing.assert_close(module(x), wanted)
        assert list(module.state_dict()) == names
    assert module._compiled_call_impl is None


def test_without_a_compiler_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's error is a page long and names no way out."""

    def fails(*args: Any, **given: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore\nlines")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match="No working C\\+\\+ compiler") as caught:
        check_compiler()
    assert "leave out --compile" in caught.value.remedy
    with compiled([]):
        pass
    with pytest.raises(UserError, match="No working"):
        kdcompress.train_teacher(model=TINY, compile=True, epochs=1, device="cpu", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists(), "it is said before anything is made"


def test_student_and_teacher_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option would do nothing, or change the saved files."""
    made: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **given: made.append(module))
    common: dict[str, Any] = {"device": "cpu", "precision": "fp32", "epochs": 1}
    teacher = kdcompress.train_teacher(model=TINY, out=str(tmp_path / "teacher"), **common)
    assert made == []
    heard = Heard()
    student = kdcompress.distill(
        teacher=teacher.run, student=TINY, compile=True, out=str(tmp_path / "student"), reporter=heard, **common
    )
    assert len(made) == 2
    assert any("--compile may take longer" in note for note in heard.notes)
    assert load_network(str(student.run)).num_classes == 10
