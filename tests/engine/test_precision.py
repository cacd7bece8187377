"""Whether a processor takes bf16, found out by a child that may die of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdcompress.engine import precision
from kdcompress.engine.precision import ISA_VARIABLE, WITHOUT_AMX, Process, cache_dir, cpu_precision
from kdcompress.errors import UserError

REAL = """
import sys
from kdcompress.engine.precision import cpu_precision
found = cpu_precision("auto")
import torch
from torch import nn
if found == "bf16":
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 3, 8, 8)).float().sum().backward()
print(found)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; oneDNN's variable is restored afterwards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(ISA_VARIABLE, "")
    monkeypatch.delenv(ISA_VARIABLE)
    return tmp_path


def child(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> Path:
    """A stand-in for the child; says how often it ran."""
    calls, file = folder / "calls", folder / "child"
    file.write_text(f"#!/bin/sh\necho ran >> {calls}\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(precision.sys, "executable", str(file))
    return calls


def runs(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_the_chosen_precision_works_on_this_processor(cache: Path) -> None:
    """Machines that announce AMX and refuse it kill the process: no error message, no saved state."""
    environment = {key: value for key, value in os.environ.items() if key != ISA_VARIABLE}
    done = subprocess.run([sys.executable, "-c", REAL], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.strip() in ("fp32", "bf16")
    assert len(list(cache_dir().glob("bf16-*.json"))) <= 1  # none where the machine was too busy to be sure
    assert cache_dir().is_relative_to(cache)


def test_the_result_of_a_trial_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial takes seconds; every command would pay them."""
    calls = child(monkeypatch, cache, "echo 1.5 1.5")
    assert [cpu_precision("auto") for _ in range(3)] == ["bf16"] * 3
    assert runs(calls) == 1
    assert ISA_VARIABLE not in os.environ


def test_a_trial_that_timed_out_is_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial that was too slow would disable bf16 on a processor for good."""

    def late(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 120)

    with monkeypatch.context() as busy:
        busy.setattr(subprocess, "run", late)
        assert cpu_precision("auto") == "fp32"
    child(monkeypatch, cache, "echo 1.5 1.5")
    assert cpu_precision("auto") == "bf16"


def test_halves_that_disagree_are_not_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the trial was a coin toss, whose first answer was kept for good."""
    calls = child(monkeypatch, cache, "echo 2.1 1.0")
    assert cpu_precision("auto") == "fp32"
    assert cpu_precision("auto") == "fp32"
    assert runs(calls) == 2


def test_another_processor_has_its_own_trial(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a home folder shared by two machines, one must not use the result of the other."""
    calls = child(monkeypatch, cache, "echo 1.5 1.5")
    cpu_precision("auto")
    monkeypatch.setattr(precision, "_processor_flags", lambda: "another")
    cpu_precision("auto")
    assert runs(calls) == 2


def test_bf16_that_is_not_faster_is_not_chosen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bf16 runs at a fraction of the speed."""
    child(monkeypatch, cache, "echo 0.4 0.4")
    assert cpu_precision("auto") == "fp32"
    assert cpu_precision("bf16") == "bf16"  # the user's word


@pytest.mark.parametrize("death", ["kill -ILL $$", "exit 1", "echo nonsense"])
def test_broken_bf16_falls_back_to_fp32(cache: Path, monkeypatch: pytest.MonkeyPatch, death: str) -> None:
    """Asked for, it is refused with a line; by itself it is not chosen."""
    calls = child(monkeypatch, cache, death)
    assert cpu_precision("auto") == "fp32"
    assert runs(calls) == 2  # also without AMX
    with pytest.raises(UserError, match="bf16") as caught:
        cpu_precision("bf16")
    assert caught.value.exit_code == 2
    assert runs(calls) == 2
    assert ISA_VARIABLE not in os.environ


def test_amx_is_disabled_where_bf16_only_works_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is what keeps this very process alive."""
    calls = child(monkeypatch, cache, f'[ "${ISA_VARIABLE}" = {WITHOUT_AMX} ] || kill -ILL $$\necho 1.8 1.8')
    monkeypatch.setattr(Process, "is_ours", True)
    assert cpu_precision("auto") == "bf16"
    assert runs(calls) == 2
    assert os.environ[ISA_VARIABLE] == WITHOUT_AMX


def test_bf16_is_refused_where_it_is_too_late_to_disable_amx(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN chooses its instructions with the first network that runs: in a notebook bf16 would then kill it."""
    child(monkeypatch, cache, f'[ "${ISA_VARIABLE}" = {WITHOUT_AMX} ] || kill -ILL $$\necho 1.8 1.8')
    assert cpu_precision("auto") == "fp32"
    assert ISA_VARIABLE not in os.environ
    with pytest.raises(UserError, match="bf16") as caught:
        cpu_precision("bf16")
    assert ISA_VARIABLE in caught.value.remedy
    monkeypatch.setenv(ISA_VARIABLE, WITHOUT_AMX)
    assert cpu_precision("auto") == "bf16"


def test_the_users_own_limit_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who sets oneDNN's variable has a reason."""
    monkeypatch.setenv(ISA_VARIABLE, "AVX2")
    child(monkeypatch, cache, f'[ "${ISA_VARIABLE}" = {WITHOUT_AMX} ] || exit 1\necho 1.8 1.8')
    cpu_precision("auto")
    assert os.environ[ISA_VARIABLE] == "AVX2"


def test_fp32_needs_no_trial(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--precision fp32 must not cost a trial."""
    calls = child(monkeypatch, cache, "echo 9")
    assert cpu_precision("fp32") == "fp32"
    assert runs(calls) == 0


def test_a_damaged_cache_file_is_ignored(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-written cache file must not stop every training from now on."""
    calls = child(monkeypatch, cache, "echo 1.5 1.5")
    cpu_precision("auto")
    (file,) = cache_dir().glob("bf16-*.json")
    for content in ("", "[]", '{"runs": "native"}'):
        file.write_text(content)
        assert cpu_precision("auto") == "bf16"
    assert runs(calls) == 4


def test_a_read_only_cache_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have read-only home folders."""
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    child(monkeypatch, cache, "echo 1.5 1.5")
    assert cpu_precision("auto") == "bf16"


def test_the_trial_does_not_join_torchruns_processes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With RANK set it would wait for peers, until the time limit."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    child(monkeypatch, cache, '[ -z "$RANK$WORLD_SIZE$LOCAL_RANK" ] || exit 1\necho 1.5 1.5')
    began = time.perf_counter()
    assert cpu_precision("auto") == "bf16"
    assert time.perf_counter() - began < 20
