"""Two processes under torchrun: the same work, one run folder, one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli.conftest import Cli
from cli.shell import TINY, Done, shell, tree

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
TORCHRUN = "torchrun --standalone --nproc-per-node 2 -m kdcompress"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> tuple[Path, Done]:
    """A folder in which two processes distilled a student, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    done = shell(f"{TORCHRUN} distill {runs}/teacher --student {TINY} --method reskd --epochs 3 --seed 4", folder)
    return folder, done


def test_distill_by_two_processes(shared: tuple[Path, Done], cli: Cli, here: Path, runs: Path) -> None:
    """Else more hardware gives another result, two results, or two folders."""
    folder, done = shared
    result = done.result
    assert [path.name for path in (folder / "runs").iterdir()] == [Path(result["run"]).name]
    assert done.err.count("epoch 3/3") == 1, "both processes report"
    command = ["distill", runs / "teacher", "--student", TINY, "--method", "reskd", "--epochs", 3, "--seed", 4]
    alone = cli(*command, "--verbose").result
    record, other = (json.loads((Path(run["run"]) / "run.json").read_text()) for run in (result, alone))
    assert record["data_fingerprint"] == other["data_fingerprint"]
    assert (result["n"], result["macs"], result["params"]) == (alone["n"], alone["macs"], alone["params"])
    # BatchNorm sees half a batch in each process, so the numbers are near, not equal
    assert result["loss"] == pytest.approx(alone["loss"], rel=0.15)
    assert result["top1"] == pytest.approx(alone["top1"], abs=15)
    assert result.keys() == alone.keys()


def test_same_images_per_epoch(shared: tuple[Path, Done], cli: Cli, here: Path, runs: Path) -> None:
    """Else an epoch of two processes is half an epoch, or has images twice."""
    folder, done = shared
    steps = f"{result_title(done)}: 3 epochs of 41 steps"
    assert steps in done.err
    (here / "count.py").write_text(COUNT)
    arguments = "train-teacher --model py:count:make --epochs 2 --out run"
    two = shell(f"{TORCHRUN} {arguments} --seed 1", here)
    assert two.status == 0, two.err
    seen = sorted(here.glob("seen-*"))
    assert len(seen) == 2
    per_process = [json.loads(path.read_text()) for path in seen]
    fit = 1437 - two.result["n"]
    assert sum(per_process) == 2 * fit
    assert abs(per_process[0] - per_process[1]) <= 2 * 41


COUNT = """
import json, os
import timm

def make(num_classes=10, in_chans=3):
    model = timm.create_model("resnet8_cifar", width=0.25, num_classes=num_classes, in_chans=in_chans)
    images = [0]

    def count(module, args):
        if module.training:
            images[0] += len(args[0])
            with open(f"seen-{os.environ['RANK']}", "w") as file:
                json.dump(images[0], file)

    model.register_forward_pre_hook(count)
    return model
"""


def result_title(done: Done) -> str:
    return f"distill {TINY.split(',')[0]}"


def test_pipeline_of_two_processes(shared: tuple[Path, Done], here: Path, cli: Cli) -> None:
    """Else only the first link of the pipeline can use the hardware."""
    folder, done = shared
    (here / "distilled.json").write_text(done.out)
    line = f"{TORCHRUN} add-res-student - --arch {TINY} --epochs 1 <distilled.json | tee added.json | {TORCHRUN} eval -"
    two = shell(f"set -o pipefail; {line}", here)
    result = two.result
    added = json.loads((here / "added.json").read_text())
    assert len(added["members"]) == 2
    assert (result["run"], result["n"]) == (added["run"], 360)
    one = cli("eval", added["run"]).result
    assert result["top1"] == one["top1"]
    assert result["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_error_of_two_processes(here: Path, runs: Path) -> None:
    """Else the cause of a failed job is lost among torchrun's own lines."""
    before = tree(here, runs)
    done = shell(f"{TORCHRUN} distill {runs}/teacher --student resnet8_cifer --epochs 1", here)
    assert done.status != 0
    assert done.out == ""
    assert "Error: There is no model 'resnet8_cifer'." in done.err
    ours = done.err.split("torch/distributed")[0]
    assert "Traceback" not in ours
    assert tree(here, runs) == before
