"""A bit that flips in any file of a run or of the cache never changes a result in silence."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdcompress
from cli.conftest import Cli
from cli.shell import TINY, Done
from kdcompress.api.recipes import light_teacher
from kdcompress.runs import WEIGHTS, RunFolder

pytestmark = pytest.mark.attack("a bit that flips in a file")

# what two runs of one command differ in anyway
TIMES = ("seconds", "images_per_second", "full_images_per_second", "speedup", "run", "teacher")


def facts(done: Done) -> dict[str, Any] | None:
    """What a command found out, or None where it refused."""
    return {key: value for key, value in done.result.items() if key not in TIMES} if done.status == 0 else None


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size]


def test_a_finished_run(
    cli: Cli, copied: Callable[[str], Path], many: Callable[[int, int], int], here: Path, tmp_path: Path
) -> None:
    """What is deployed would not be what was measured."""
    run = copied("gated")
    expected = facts(cli("eval", run))
    assert expected is not None
    shutil.copytree(run, tmp_path / "whole")
    draw = random.Random(0)
    for number in range(many(12, 100)):
        there = files(run)
        path = there[number % len(there)]
        flip(path, draw)
        done = cli("eval", run)
        assert facts(done) in (None, expected), path
        if done.status:
            done.error(str(run))
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "whole", run)


def test_an_unfinished_run(cli: Cli, here: Path, runs: Path, many: Callable[[int, int], int], tmp_path: Path) -> None:
    """A run of days would go on from another state, and end as if nothing had been."""
    train = ["train-teacher", "--model", TINY, "--epochs", 2, "--batch-size", 256]
    whole = cli(*train, "--out", here / "unbroken").result
    (here / "cut").mkdir()
    _cut_off(here / "cut", train)
    shutil.copytree(here / "cut", tmp_path / "whole")
    expected = RunFolder(here / "unbroken").path.joinpath(WEIGHTS).read_bytes()
    draw, names = random.Random(0), ("checkpoint.pt", "run.json", "metrics.csv")
    for number in range(many(6, 50)):
        path = here / "cut" / names[number % len(names)]
        flip(path, draw)
        done = cli(*train, "--out", here / "cut", "--resume")
        if done.status == 0:
            assert (here / "cut" / WEIGHTS).read_bytes() == expected, path
            assert done.result["loss"] == whole["loss"]
        else:
            done.error(str(here / "cut"))
        shutil.rmtree(here / "cut")
        shutil.copytree(tmp_path / "whole", here / "cut")


def _cut_off(run: Path, command: list[Any]) -> None:
    """A run after the first of its epochs."""

    class Stop:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

        def epoch(self, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kdcompress.train_teacher(
            model=TINY, epochs=2, batch_size=256, out=run, device="cpu", precision="fp32", reporter=Stop()
        )
    assert (run / "checkpoint.pt").exists()


def test_the_cache(
    cli: Cli,
    here: Path,
    runs: Path,
    many: Callable[[int, int], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A student would learn from logits that no teacher gave."""
    monkeypatch.setattr(light_teacher, "_data", lambda classes: f"synth-digits:{classes},n=2000")
    cache = here / "cache"
    kd = ["distill", runs / "teacher", "--student", TINY, "--epochs", 1, "--target-views", 1, "--cache-dir", cache]
    lwkd = ["distill", "--method", "lwkd", "--student", TINY, "--epochs", 1, "--cache-dir", cache, "--teacher-top1", 20]
    lwkd += ["--bank-size", 16]
    expected = {}
    for number, command in enumerate((kd, lwkd)):
        assert cli(*command, "--out", here / f"first-{number}").status == 0
        expected[number] = (here / f"first-{number}" / WEIGHTS).read_bytes()
    shutil.copytree(cache, tmp_path / "whole")
    draw = random.Random(0)
    for number in range(many(6, 50)):
        there = files(cache)
        path = there[number * 7 % len(there)]
        flip(path, draw)
        which = int("teachers" in path.parts)
        done = cli(*(kd, lwkd)[which], "--out", here / f"run-{number}")
        assert done.status == 0, f"the cache costs time, never a result: {path}: {done.err}"
        assert (here / f"run-{number}" / WEIGHTS).read_bytes() == expected[which], path
        if path.suffix in (".npy", ".safetensors"):
            assert "altered" in done.err, path
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "whole", cache)


def test_verify_finds_the_file(cli: Cli, copied: Callable[[str], Path], many: Callable[[int, int], int]) -> None:
    """Whoever keeps runs for years could not tell which of them still are what they were."""
    run = copied("cascade")
    assert cli("verify", run).result["whole"]
    draw = random.Random(0)
    for path in files(run):
        if path.name == "run.json":
            continue
        whole = path.read_bytes()
        flip(path, draw)
        done = cli("verify", run)
        assert done.status == 1
        states = {row["file"]: row["state"] for row in json.loads(done.out)["files"]}
        assert [name for name, state in states.items() if state != "whole"] == [path.name]
        path.write_bytes(whole)
    (run / WEIGHTS).unlink()
    assert '"missing"' in cli("verify", run).out
    assert cli("verify", run, "--accept").result["whole"]
    cli("eval", run).error("no weights")
