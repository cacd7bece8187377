"""Two processes of a job: the same work, one run folder, one line of JSON.

What torchrun has a part in is tried under torchrun, which is forked; the rest in processes that are started as it
starts them, without importing torch anew in each.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from cli.conftest import Cli
from cli.forked import SIGNALLED, Forked
from cli.ranks import Job, job
from cli.shell import BIN, TINY, Done, finished, tree, wait_for

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
STANDALONE = ("--standalone", "--nproc-per-node", "2")  # several at a time would else ask for the same port
BATCH = "--batch-size 256"
SHORT = "--epochs 1 --batch-size 62"  # few enough for --sync-bn auto; in few steps rounding has no time to grow
STEPS = 21  # an epoch of digits has so many of them
CHECKED = 2 * 62  # images, those of two steps, that a student sees before, when its gradients are checked

COUNTING_STUDENT = """
import json, os
import timm

def make(num_classes=10, in_chans=3):
    model = timm.create_model("resnet8_cifar", width=0.25, num_classes=num_classes, in_chans=in_chans)
    images = [0]

    def count(module, args):
        if module.training:
            images[0] += len(args[0])
            with open(f"seen-{os.environ.get('RANK', 'alone')}", "w") as file:
                json.dump(images[0], file)

    model.register_forward_pre_hook(count)
    return model
"""


WATCHED_LWKD = """
import json, os, sys
from kdcompress.api.recipes import light_teacher
from kdcompress.cli import run
from kdcompress.methods.lwkd import LwKdTask

light_teacher.MOST_EPOCHS = 1
light_teacher._data = lambda classes: f"synth-digits:{classes},n=400"
forward = LwKdTask.forward

def watched(self, input, target):
    found = forward(self, input, target)
    weights = [parameter.double().sum().item() for parameter in self.discriminator.parameters()]
    bank = self.bank.logits.double().sum().item()
    said = {"classes": self.bank.classes.tolist(), "discriminator": weights, "bank": bank}
    with open(f"said-{os.environ['RANK']}.json", "w") as file:
        json.dump(said, file)
    return found

LwKdTask.forward = watched
sys.exit(run(sys.argv[1:]))
"""


MORTAL_MODEL = """
import os, signal
import timm

def make(num_classes=10, in_chans=3):
    model = timm.create_model("resnet8_cifar", width=0.25, num_classes=num_classes, in_chans=in_chans)
    steps = [0]

    def count(module, args):
        steps[0] += module.training
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if steps[0] == 30 and os.environ["RANK"] == "1" and first:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(count)
    return model
"""


# a student with a head that only its author's own training has used
IDLE_HEAD = """
import os
import timm
from torch import nn
from kdcompress.threads import available, share

class Two(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.body = timm.create_model("resnet8_cifar", width=0.25, num_classes=num_classes, in_chans=in_chans)
        self.idle = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.body(x)

def make(num_classes=10, in_chans=3):
    with open(f"cores-{os.environ['RANK']}", "w") as file:
        file.write(f"{share()} {available()}")
    return Two(num_classes, in_chans)
"""


# the gradients of layers and images that two processes share are those of one that has all
SYNCED = """
import json, os
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from kdcompress.engine.distributed import start
from kdcompress.engine.sync_bn import synchronized

def trained(x, network):
    x = x.clone().requires_grad_()
    (network(x) * torch.linspace(-1, 1, x[0].numel()).view(x[0].shape)).square().sum().backward()
    return x.grad

place = start("cpu", "fp32", 20)
torch.manual_seed(0)
whole = 3 + torch.randn(7, 8, 3, 3)
make = lambda: nn.Sequential(nn.BatchNorm2d(8), BatchNormAct2d(8), nn.BatchNorm2d(8, affine=False, momentum=None))
one, two = make(), make()
gradient = trained(whole, one)
with synchronized(two, place.device):
    own = trained(whole[place.rank :: 2], two)
    two.eval()
    assert two(whole).shape == whole.shape
assert [type(layer) for layer in two] == [type(layer) for layer in one]
assert vars(two[0]).keys() == vars(one[0]).keys()
assert torch.allclose(own, gradient[place.rank :: 2], atol=1e-4), (own - gradient[place.rank :: 2]).abs().max()
for mine, theirs in zip(two.parameters(), one.parameters()):
    total = mine.grad.clone()
    torch.distributed.all_reduce(total)
    assert torch.allclose(total, theirs.grad, rtol=1e-3, atol=1e-3)
for (name, mine), theirs in zip(two.state_dict().items(), one.state_dict().values()):
    assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-5), name
print(json.dumps("ok"))
"""


# torchrun whose processes are forked from it: they need not import torch for themselves
LAUNCHER = """
import runpy, sys
from torch.distributed import run as torchrun

launch = torchrun.elastic_launch

def process(*arguments):
    sys.argv = list(arguments[arguments.index("-m") + 1 :])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

def forking(config, entrypoint):
    config.start_method = "fork"
    return launch(config, process)

torchrun.elastic_launch = forking
torchrun.main()
"""


def torchrun(command: str, cwd: Path, *more: str) -> Forked:
    """What ``torchrun`` does for two processes; test_pipeline_of_two_processes has torchrun itself."""
    (cwd.parent / "launcher.py").write_text(LAUNCHER)
    arguments = [*STANDALONE, *more, "-m", "kdcompress", *command.split()]
    return Forked(arguments, cwd, str(cwd.parent / "launcher.py"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> tuple[Path, Done]:
    """A folder in which two processes distilled a student for some epochs, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "counting.py").write_text(COUNTING_STUDENT)
    command = f"distill {runs}/teacher --student py:counting:make {SHORT} --seed 4"
    return folder, job(command, folder)


def test_distill_by_two_processes(two: tuple[Path, Done], cli: Cli, here: Path, runs: Path) -> None:
    """Else more hardware gives another result, two results, or two folders."""
    folder, done = two
    result = done.result
    assert [path.name for path in (folder / "runs").iterdir()] == [Path(result["run"]).name]
    assert done.err.count("epoch 1/1") == 1, "both processes report"
    alone = cli("distill", runs / "teacher", "--student", TINY, *SHORT.split(), "--seed", 4).result
    records = [json.loads((Path(run["run"]) / "run.json").read_text()) for run in (result, alone)]
    assert records[0]["data_fingerprint"] == records[1]["data_fingerprint"]
    assert result.keys() == alone.keys()
    assert (result["n"], result["macs"], result["params"]) == (alone["n"], alone["macs"], alone["params"])
    # BatchNorm statistics are those of both: only rounding differs
    assert done.err.count("BatchNorm statistics are taken over all 2 processes (--sync-bn auto)") == 1
    assert [record["sync_bn"] for record in records] == [True, False]
    assert result["loss"] == pytest.approx(alone["loss"], rel=2e-3)
    assert result["top1"] == pytest.approx(alone["top1"], abs=1.5)


def test_same_images_per_epoch(two: tuple[Path, Done]) -> None:
    """Else an epoch of two processes is half an epoch, or has images twice."""
    folder, done = two
    assert f"1 epoch of {STEPS} steps" in done.err
    seen = [json.loads((folder / f"seen-{rank}").read_text()) for rank in (0, 1)]
    assert sum(seen) == (1437 - done.result["n"]) + CHECKED
    assert abs(seen[0] - seen[1]) <= STEPS, "one process has more than its share"


def test_batch_norm_of_two_processes(here: Path) -> None:
    """Else two processes train something else than one, or a network is not what it was when it is saved."""
    (here / "synced.py").write_text(SYNCED)
    done = job("", here, "synced.py")
    assert done.status == 0, done.err
    assert done.out.count("ok") == 2


@pytest.mark.attack("a killed process under --max-restarts")
def test_a_killed_process_is_restarted(here: Path) -> None:
    """Else --max-restarts hangs on the addresses of the dead, or begins a second run, or ends elsewhere."""
    (here / "mortal.py").write_text(MORTAL_MODEL)
    command = "train-teacher --model py:mortal:make --epochs 3 --seed 3 --sync-bn off --batch-size 64"
    done = finished(torchrun(command, here, "--max-restarts", "1"))
    assert done.err.count("3 epochs of 21 steps") == 2
    assert "3 epochs of 21 steps, from epoch 2" in done.err
    assert done.err.count("epoch 1/3") == done.err.count("epoch 3/3") == 1
    (run,) = (here / "runs").iterdir()
    assert done.result["run"] == str(run)
    whole = job(f"{command} --out whole", here).result
    assert done.result["loss"] == whole["loss"]
    assert (run / "model.safetensors").read_bytes() == (here / "whole" / "model.safetensors").read_bytes()


def test_pipeline_of_two_processes(here: Path, cli: Cli, runs: Path) -> None:
    """Else only the first link of the pipeline can use the hardware."""
    pipe = here / "pipe"
    os.mkfifo(pipe)
    link = f"add-res-student - --arch {TINY} --epochs 1 --sync-bn off {BATCH}"
    process = Forked([*STANDALONE, "-m", "kdcompress", *link.split()], here, str(BIN / "torchrun"), pipe)
    with open(pipe, "w") as before:
        time.sleep(1)  # the link before takes its time
        before.write(json.dumps({"run": str(runs / "single")}))
    done = finished(process)
    added = done.result
    assert len(added["members"]) == len(added["energies"]) == 2
    result, one = job(f"eval {added['run']}", here).result, cli("eval", "-", stdin=done.out).result
    assert (result["run"], result["n"]) == (added["run"], 360)
    assert result["top1"] == one["top1"]
    assert result["loss"] == pytest.approx(one["loss"], rel=1e-5)
    # without synchronised statistics each process has its own: those of the first are saved, and scored
    assert cli("eval", added["run"], "--split", "calibration").result["top1"] == added["top1"]


def test_an_exported_file_is_scored_once(here: Path, cli: Cli, runs: Path) -> None:
    """Each process would score all images, and both be counted."""
    pytest.importorskip("onnxscript")
    file = cli("export", runs / "single", "--out", here / "single.onnx").result["file"]
    both, one = job(f"eval {file}", here).result, cli("eval", file).result
    assert (both["n"], both["top1"]) == (one["n"], one["top1"]) == (360, one["top1"])


def test_polish_by_two_processes(here: Path, runs: Path) -> None:
    """Else one of them looks for weights that the other has not written yet, or calibrates on half of the images."""
    result = job(f"polish {runs}/gated --epochs 1 {BATCH} --out polished", here).result
    former = json.loads((runs / "gated" / "run.json").read_text())["result"]
    assert result["former_top1"] >= former["gated_top1"] - 1e-3
    assert result["n"] == former["n"]
    assert result["gated_top1"] >= former["gated_top1"] - 1e-3
    assert (here / "polished" / "trained" / "model.safetensors").is_file()


def test_error_of_two_processes(here: Path, runs: Path) -> None:
    """Else the cause of a failed job is lost among torchrun's own lines."""
    before = tree(here, runs)
    done = finished(torchrun(f"distill {runs}/teacher --student resnet8_cifer --epochs 1", here))
    assert done.status != 0
    assert done.out == ""
    assert "Error: There is no model, run or folder 'resnet8_cifer'." in done.err
    assert "Traceback" not in done.err.split("torch/distributed")[0]
    assert tree(here, runs) == before


def test_a_head_that_the_loss_ignores(here: Path) -> None:
    """In one process such a network trains; of two, each waited for its gradients, and ended with PyTorch's advice."""
    (here / "idle.py").write_text(IDLE_HEAD)
    done = job(f"train-teacher --model py:idle:make --data digits {SHORT} --out run", here)
    assert done.result["epochs"] == 1
    assert json.loads((here / "run" / "run.json").read_text())["numerics"]["0"]["find_unused"]
    for rank in range(2):
        own, both = map(int, (here / f"cores-{rank}").read_text().split())
        assert own == max(1, both // 2), "readers of images share the cores"


def test_sigterm_of_two_processes(here: Path, runs: Path) -> None:
    """Else a cluster that wants its machine back leaves one process waiting for the other's gradients."""
    process = torchrun(f"distill {runs}/teacher --student {TINY} --epochs 400 --sync-bn off --out {here}/run", here)
    wait_for(process, "epoch 2/")
    process.send_signal(signal.SIGTERM)
    done = finished(process)
    assert done.status != 0
    assert "Error: Interrupted." in done.err
    assert "all_reduce" not in done.err.lower()
    assert "Connection closed" not in done.err
    state = torch.load(here / "run" / "checkpoint.pt", weights_only=True)
    assert state["epoch"] >= 2


def test_phases_of_two_processes_resume(here: Path, runs: Path) -> None:
    """Else a run of several phases on several devices cannot be gone on with, or ends elsewhere."""
    settings = f"--method rkd-assistant --scheme progressive --student {TINY} --epochs 4 --seed 5 --sync-bn off"
    settings += " --assistant-share 0.28 --batch-size 64"  # no other share is tried; and steps enough to agree to stop
    command = f"distill {runs}/teacher {settings} --out"
    # in the last phase; before it, the student has two epochs and the assistant one
    stopped = Job([str(int(signal.SIGTERM)), str(3 * STEPS + 2), *command.split(), "stopped"], here, str(SIGNALLED))
    assert stopped.finished().status != 0
    assert not (here / "stopped" / "model.safetensors").exists()
    resumed = job(f"{command} stopped --resume", here)
    assert "epoch 1/" not in resumed.err
    assert "(classifier, 1 of 4 epochs): 4 epochs of 21 steps, from epoch 4" in resumed.err
    assert "epoch 4/4" in resumed.err, "counts the epochs of a phase, and says that nothing is left"
    whole = job(f"{command} whole", here).result
    assert resumed.result["loss"] == whole["loss"]
    made = [(here / name / "model.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert made[0] == made[1]


def test_pair_of_two_processes(here: Path, cli: Cli, runs: Path) -> None:
    """Else its gate is chosen, or the student alone scored, on half of the images."""
    settings = f"--method rkd-assistant --assistant-share 0.28 --student {TINY} --epochs 1 {BATCH} --out pair"
    cli("distill", runs / "teacher", *settings.split())
    scores, gated = (job(command, here).result for command in ("eval pair", "gate-calibrate pair --max-drop 1"))
    alone, gated_alone = (cli(*command.split()).result for command in ("eval pair", "gate-calibrate pair --max-drop 1"))
    assert (scores["n"], scores["stage_top1"]) == (alone["n"], alone["stage_top1"])
    for key in ("n", "measure", "exit_rates", "gated_top1", "expected_macs"):
        assert gated[key] == gated_alone[key], key


def test_targets_of_two_processes(here: Path, runs: Path) -> None:
    """Else each process asks the teacher about all images, or learns what it says of the other's."""
    (here / "blocked").write_text("a file where a folder should be")
    command = f"distill {runs}/teacher --student {TINY} --epochs 3 --target-views 2 --sync-bn off {BATCH}"
    kept = job(f"{command} --cache-dir cache --out kept", here)
    blocked = job(f"{command} --cache-dir blocked --out blocked-run", here)
    assert kept.result["target_views"] == 2
    assert len(list((here / "cache").rglob("view-*.npy"))) == 2
    assert kept.result["loss"] == blocked.result["loss"]
    assert blocked.err.count("Warning: targets cannot be cached") == 1


def test_lwkd_of_two_processes(here: Path) -> None:
    """Else each process maps the classes its own way, trains a discriminator of its own, or makes its own teacher."""
    (here / "watched.py").write_text(WATCHED_LWKD)
    settings = f"--class-map similar --student {TINY} --epochs 2 --cache-dir cache --sync-bn off --out run"
    settings += f" --adversarial-weight 0.1 --bank-size 8 {BATCH}"
    done = job(f"distill --method lwkd {settings}", here, "watched.py")
    assert done.result["method"] == "lwkd"
    said = [json.loads((here / f"said-{rank}.json").read_text()) for rank in (0, 1)]
    assert sorted(said[0]["classes"]) == list(range(10))
    assert said[0]["classes"] == said[1]["classes"]
    assert said[0]["discriminator"] == said[1]["discriminator"]
    assert said[0]["bank"] == said[1]["bank"]
    assert len(list((here / "cache" / "teachers").glob("lenet5*"))) == 1
    assert done.err.count("train-teacher lenet5") == 1
