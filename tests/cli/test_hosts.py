"""Two hosts that share nothing but ``--out``, if that; what they do when one is slow, stopped, killed or cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cli.ranks import Host, Job, cut, two_hosts
from cli.shell import TINY

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
PATIENCE = 5  # seconds
LONG = f"--model {TINY} --epochs 4000 --dist-timeout {PATIENCE} --sync-bn off --out run"

# the second host takes longer over its images than anybody would wait, and both count what the teacher sees
SLOW_AND_COUNTED = """
import json, os, sys, time
from kdcompress import data
from kdcompress.cli import run
from kdcompress.engine import targets

rank, seen = os.environ["RANK"], [0]
training, gather_rows = data.Data.training, targets.gather_rows

def slow(self, *args, **given):
    if rank == "1":
        time.sleep(float(os.environ["SLOW"]))
    return training(self, *args, **given)

def counted(rows, *args):  # the teachers outputs, on their way to the other process
    seen[0] += len(rows)
    with open(f"seen-{rank}", "w") as file:
        json.dump(seen[0], file)
    return gather_rows(rows, *args)

data.Data.training, targets.gather_rows = slow, counted
sys.exit(run(sys.argv[1:]))
"""


OTHER_IMAGES = """
import os
import torch
from torch.utils.data import TensorDataset

def make():
    count = 40 - 4 * int(os.environ["RANK"])
    images = torch.randint(0, 255, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = TensorDataset(images, torch.arange(count) % 2)
    return split, split
"""


@pytest.fixture
def hosts(here: Path) -> Iterator[list[Host]]:
    try:
        with two_hosts(here / "private") as made:
            yield made
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no two hosts here: {error}")


def test_hosts_with_caches_of_their_own(hosts: list[Host], here: Path, runs: Path) -> None:
    """Else the slower host is given up, or the teacher is asked about each image by both hosts, or in every epoch."""
    (here / "slow.py").write_text(SLOW_AND_COUNTED)
    settings = (
        f"--student {TINY} --precision fp32 --target-views 2 --cache-dir private/cache --dist-timeout 5 --sync-bn off"
    )
    command = f"distill {runs}/teacher --epochs 3 {settings} --out run"
    done = Job(command.split(), here, "slow.py", hosts, SLOW="7").finished()
    result = done.result
    assert "targets cannot be cached" not in done.err
    seen = [json.loads((here / f"seen-{rank}").read_text()) for rank in (0, 1)]
    assert sum(seen) == 2 * (1437 - result["n"]), "two views of the images that it fits on"
    assert abs(seen[0] - seen[1]) < 100
    assert len(list((here / "private").iterdir())) == 0, "the hosts were no hosts"


@pytest.mark.attack("hosts that share no folder")
def test_hosts_without_a_shared_folder(hosts: list[Host], here: Path, runs: Path) -> None:
    """Else each trains for itself, or they wait for each other for ever once one of them resumes."""
    command = f"train-teacher --model {TINY} --epochs 1 --out private/run"
    done = Job(command.split(), here, hosts=hosts).finished()
    assert done.status == 1
    problem = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    assert "is not the same folder on kd-2-" in problem
    assert done.err.count("Give --out on a file system that all hosts share.") == 2
    assert "epoch 1" not in done.err
    assert done.out == ""


@pytest.mark.attack("hosts with different images")
def test_hosts_with_other_images(here: Path) -> None:
    """Else they train on something else each, or wait for a step that one of them does not have."""
    (here / "other.py").write_text(OTHER_IMAGES)
    done = Job(f"train-teacher --model {TINY} --epochs 1 --data py:other:make".split(), here).finished()
    assert done.status == 1
    assert "Error: The processes differ: the fit split is 32 images" in done.err
    assert "Traceback" not in done.err
    assert not (here / "runs").exists()


@pytest.mark.attack("a broken connection between two hosts")
def test_a_cut_link_ends_both_hosts(hosts: list[Host], here: Path) -> None:
    """Else both stand still for a quarter of an hour, and PyTorch's own words say nothing of what to do."""
    job = Job(["train-teacher", *LONG.split()], here, hosts=hosts)
    job.wait_for("epoch 2/")
    cut(hosts[1])
    began = time.monotonic()
    done = job.finished(60)
    assert time.monotonic() - began < 4 * PATIENCE + 5
    assert job.statuses == [1, 1], done.err
    assert done.err.count(f"Error: Lost contact with process 1 on {hosts[1].name}: ") == 1
    assert done.err.count(f"Error: Lost contact with process 0 on {hosts[0].name}: ") == 1
    assert (
        done.err.count(f"The last saved state is in {here}/run: run the same command with --resume --out {here}/run")
        == 2
    )
    assert "Traceback" not in done.err
    assert (here / "run" / "checkpoint.pt").is_file()


@pytest.mark.attack("one of several processes killed or stopped")
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGSTOP), (1, signal.SIGKILL)])
def test_a_lost_process_ends_the_other(here: Path, victim: int, number: int) -> None:
    """Else a process waits for a dead or stopped one until somebody looks."""
    job = Job(["train-teacher", *LONG.split()], here)
    job.wait_for("epoch 2/")
    lost = job.processes[victim]
    assert lost.pid is not None
    os.kill(lost.pid, number)
    began = time.monotonic()
    job.processes[1 - victim].join(60)
    took = time.monotonic() - began
    lost.kill()
    done = job.finished()
    assert job.statuses[1 - victim] == 1, done.err
    assert took < 4 * PATIENCE + 5
    assert done.err.count("Error: ") == done.err.count(f"Error: Lost contact with process {victim} on ") == 1
    assert "--resume --out" in done.err
    assert "Traceback" not in done.err
