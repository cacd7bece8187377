"""kill -9 at any moment, in every kind of training: --resume ends with the very same weights."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import Cli
from cli.shell import TINY, finished, spawn
from kdcompress.runs import WEIGHTS

pytestmark = pytest.mark.attack("kill -9, then --resume")

KINDS: dict[str, list[Any]] = {
    "ce": ["train-teacher", "--model", TINY, "--mixup", 0.2, "--ema-decay", 0.99],
    "kd": ["distill", "teacher", "--student", TINY],
    "views": ["distill", "teacher", "--student", TINY, "--target-views", 2],
    "adamw": ["train-teacher", "--model", TINY, "--opt", "adamw", "--grad-accum", 2],
    "step": ["train-teacher", "--model", TINY, "--sched", "step", "--clip-grad", 1],
    "tf-kd": ["distill", "--method", "tf-kd", "--student", TINY],
    "grown": ["distill", "teacher", "--method", "reskd", "--student", TINY, "--res-students", 1, "--arch", TINY],
    "res-student": ["add-res-student", "single", "--arch", TINY],
    "pair": ["distill", "teacher", "--method", "rkd-assistant", "--student", "resnet8_cifar,width=0.5"],
    "progressive": ["distill", "teacher", "--method", "rkd-assistant", "--scheme", "progressive",
                    "--student", "resnet8_cifar,width=0.5"],
    "lwkd": ["distill", "--method", "lwkd", "--student", TINY, "--teacher-top1", 20],
    "polish": ["polish", "gated"],
}  # fmt: skip
NO_CACHE = ("ce", "adamw", "step")


@pytest.mark.parametrize("kind", KINDS)
def test_kill_and_resume(
    kind: str, cli: Cli, here: Path, runs: Path, many: Callable[[int, int], int], tmp_path: Path
) -> None:
    """A crash would cost the run, or a resumed result could not be compared with any other."""
    kills = many(0, 4)
    if not kills:
        pytest.skip("takes minutes; tests/cli/test_interrupt.py kills a few, examples/benchmarks/attacks.py all")
    common = ["--epochs", 3, "--cache-dir", tmp_path / "cache"]
    taken = [runs / word if isinstance(word, str) and (runs / word).is_dir() else word for word in KINDS[kind]]
    command = [str(word) for word in (*taken, *common[: 2 if kind in NO_CACHE else 4])]
    assert cli(*command, "--out", here / "unbroken").status == 0
    draw = random.Random(kind)
    for number in range(kills):
        out = here / f"killed-{number}"
        process = spawn([*command, "--out", str(out)], here)
        while not out.exists():
            assert process.poll() is None
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        finished(process)
        done = cli(*command, "--out", out, "--resume")
        assert done.status == 0, done.err
        assert (out / WEIGHTS).read_bytes() == (here / "unbroken" / WEIGHTS).read_bytes()
        assert cli("verify", out).result["whole"]
