"""Two processes that want the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Cli
from cli.forked import Forked
from cli.shell import TINY, finished
from kdcompress.runs import WEIGHTS

pytestmark = pytest.mark.attack("two processes, one --out")

TRAIN = ["train-teacher", "--model", TINY, "--epochs", "2", "--quiet"]


def test_started_at_the_same_moment(cli: Cli, here: Path, many: Callable[[int, int], int]) -> None:
    """A run would end with the record of one seed and the weights of the other."""
    expected = {}
    for seed in (1, 2):
        assert cli(*TRAIN, "--seed", seed, "--out", here / f"alone-{seed}").status == 0
        expected[seed] = (here / f"alone-{seed}" / WEIGHTS).read_bytes()
    for number in range(many(1, 12)):
        out = here / f"both-{number}"
        both = [Forked([*TRAIN, "--seed", str(seed), "--out", str(out)], here) for seed in (1, 2)]
        done = [finished(process) for process in both]
        assert sorted(each.status for each in done)[0] == 0, done
        (loser,) = [each for each in done if each.status]
        assert "is being written by process" in loser.err or "exists already" in loser.err
        record = json.loads((out / "run.json").read_text())
        assert (out / WEIGHTS).read_bytes() == expected[record["seed"]]
        assert record["result"]["seed"] == record["seed"]
        assert cli("verify", out).result["whole"]


def test_a_resume_beside_the_living(cli: Cli, here: Path, many: Callable[[int, int], int]) -> None:
    """Whoever resumes a run that another terminal still trains would destroy both."""
    times = many(0, 6)
    if not times:
        pytest.skip("tests/test_runs.py does it in a process of its own; examples/benchmarks/attacks.py does this")
    alone = cli(*TRAIN, "--out", here / "alone").result
    for number in range(times):
        out = here / f"run-{number}"
        process = Forked([*TRAIN, "--out", str(out)], here)
        while not (out / "checkpoint.pt").exists():
            assert process.poll() is None
        refused = cli(*TRAIN, "--out", out, "--resume")
        done = finished(process)
        assert done.result["loss"] == alone["loss"]
        if refused.status:  # else it was finished already
            refused.error(f"is being written by process {process.pid}")
        assert (out / WEIGHTS).read_bytes() == (here / "alone" / WEIGHTS).read_bytes()
