"""Runs that are cut off: nothing is lost but the epoch in hand, and --resume ends where an unbroken run would."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import kdcompress
from cli.conftest import Cli
from cli.forked import signalled
from cli.shell import TINY, accept, finished, photos, spawn, tree
from kdcompress import api
from kdcompress.engine.interrupt import StopRequest

pytestmark = pytest.mark.attack("signals and kills in the middle of a run")

EPOCHS = 4
STEPS = 41  # of an epoch of digits
SETTINGS = ["--epochs", str(EPOCHS), "--seed", "11", "--mixup", "0.2", "--ema-decay", "0.99", "--warmup-epochs", "1"]
TRAIN = ["train-teacher", "--model", "resnet8_cifar,width=0.5", *SETTINGS]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def after_last_epoch(err: str) -> list[str]:
    """Lines of standard error."""
    lines = err.splitlines()
    return lines[1 + max(number for number, line in enumerate(lines) if line.startswith("epoch")) :]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "unbroken"
    settings = {"epochs": EPOCHS, "seed": 11, "mixup": 0.2, "ema_decay": 0.99, "warmup_epochs": 1}
    kdcompress.train_teacher(model="resnet8_cifar,width=0.5", device="cpu", precision="fp32", out=run, **settings)
    return run


@pytest.mark.parametrize(("epoch", "step"), [(1, 2), (2, 20)])
def test_kill_and_resume_is_bit_identical(epoch: int, step: int, cli: Cli, here: Path, unbroken: Path) -> None:
    """Else a crash costs the run, or a resumed result cannot be compared with any other."""
    run = here / "killed"
    assert signalled(signal.SIGKILL, epoch * STEPS + step, [*TRAIN, "--out", run], here).status == -signal.SIGKILL
    assert not (run / "model.safetensors").exists()
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] == epoch
    done = cli(*TRAIN, "--out", run, "--resume")
    assert "epoch 1/" not in done.err, "it began anew"
    assert weights(run) == weights(unbroken)
    assert done.result["loss"] == json.loads((unbroken / "run.json").read_text())["result"]["loss"]
    with open(run / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(number + 1) for number in range(EPOCHS)]
    left = {path.name for path in run.iterdir()}
    assert left == {"config.json", "metrics.csv", "model.safetensors", "run.json"}, "temporary files stay behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_130(number: signal.Signals, cli: Cli, here: Path, unbroken: Path) -> None:
    """Else Ctrl-C, or a cluster that asks for its node, throws the epoch away and looks like a crash."""
    run = here / "stopped"
    done = signalled(number, 2 * STEPS + 7, [*TRAIN, "--out", run], here)
    assert done.status == 130
    assert done.out == ""
    assert "Traceback" not in done.err
    lines = after_last_epoch(done.err)
    assert lines[0].startswith("Error: Interrupted"), done.err
    assert f"--resume --out {run}" in lines[1]
    assert len(lines) == 2
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == (2, 7), "the steps of the epoch in hand are lost"
    assert cli(*TRAIN, "--out", run, "--resume").status == 0
    assert weights(run) == weights(unbroken)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, and an unbroken run on them, of one process without workers."""
    root = tmp_path_factory.mktemp("streamed")
    settings = {"epochs": 3, "seed": 11, "batch_size": 8, "loading": "stream", "workers": 0}
    more = {"data": photos(root / "photos", each=100), "device": "cpu", "precision": "fp32", "out": root / "whole"}
    kdcompress.train_teacher(model=TINY, **settings, **more)
    return root / "photos", root / "whole"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_workers_too(number: signal.Signals, cli: Cli, here: Path, streamed: tuple[Path, Path]) -> None:
    """``timeout`` and batch systems signal the whole process group: the loss of a worker would look like a crash."""
    images, whole = streamed
    command = ["train-teacher", "--model", TINY, "--data", str(images), "--seed", "11"]
    command += ["--epochs", "3", "--batch-size", "8", "--loading", "stream", "--workers", "2", "--out"]
    done = signalled(number, 30, [*command, here / "stopped"], here, group=True)
    assert done.status == 130, done.err
    assert "Traceback" not in done.err
    lines = after_last_epoch(done.err)
    assert lines[0].startswith("Error: Interrupted"), done.err
    assert len(lines) == 2, done.err
    assert cli(*command, here / "stopped", "--resume").status == 0
    assert weights(here / "stopped") == weights(whole)


def test_signal_in_distillation(cli: Cli, here: Path, runs: Path) -> None:
    """Else what holds for teachers does not hold for students, whose task has frozen networks in it."""
    command = ["add-res-student", str(runs / "single"), "--arch", "resnet8_cifar,width=0.5", "--epochs", "3"]
    assert signalled(signal.SIGINT, STEPS + 3, [*command, "--out", here / "stopped"], here).status == 130
    resumed = cli(*command, "--out", here / "stopped", "--resume").result
    whole = cli(*command, "--out", here / "whole").result
    assert weights(here / "stopped") == weights(here / "whole")
    assert resumed["energies"] == whole["energies"]


def test_interrupt_before_the_training_begins(here: Path) -> None:
    """Else Ctrl-C during the seconds of imports shows a traceback."""
    process = spawn(["train-teacher", "--model", TINY, "--epochs", "1"], here)
    maps, until = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
    while maps.exists() and "libtorch" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    done = finished(process)
    assert done.status == 130, done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_a_worker_that_is_lost_with_a_signal_is_no_error(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two trainings, too, the signal may end the workers before the command has noticed it."""

    def lost(*_: object, **__: object) -> None:
        StopRequest.pending = stops
        raise BrokenPipeError(32, "a worker has ended")

    monkeypatch.setattr(api, "describe_data", lost)
    stops = True
    done = cli("data", "digits")
    assert (done.status, done.err) == (130, "Error: Interrupted.\n")
    stops = False
    cli("data", "digits").error("has ended", "--workers", status=1)


def poison(here: Path) -> list[object]:
    """Arguments of a training that breaks off in its second epoch while the file ``poison`` exists."""
    (here / "breaks.py").write_text(
        "from pathlib import Path\n"
        "import timm\n"
        "def make(num_classes=10, in_chans=3):\n"
        "    model = timm.create_model('resnet8_cifar', width=0.25, num_classes=num_classes, in_chans=in_chans)\n"
        "    steps = [0]\n"
        "    def count(module, args, output):\n"
        "        steps[0] += module.training\n"
        "        return output * float('nan') if steps[0] > 50 and Path('poison').exists() else output\n"
        "    model.register_forward_hook(count)\n"
        "    return model\n"
    )
    (here / "poison").touch()
    return ["train-teacher", "--model", "py:breaks:make", "--epochs", 2, "--out", here / "run"]


def test_resume_with_other_options_is_refused(cli: Cli, here: Path) -> None:
    """Else one half of a run has another learning rate, and its record lies about it."""
    command = poison(here)
    assert cli(*command).status == 1
    before = tree(here / "run")
    for more in (["--lr", 0.5], ["--seed", 3], ["--batch-size", 64], ["--mixup", 0.5]):
        done = cli(*command, "--resume", *more, "--quiet")
        done.error(str(here / "run"), "other options", more[0].removeprefix("--").replace("-", "_"), status=1)
        assert tree(here / "run") == before
    done = cli("train-teacher", "--model", TINY, "--epochs", 2, "--out", here / "run", "--resume", "--quiet")
    done.error("other options", "model")
    done = cli("distill", "--method", "ce", "--student", TINY, "--epochs", 2, "--out", here / "run", "--resume")
    done.error("train-teacher")
    assert tree(here / "run") == before
    (here / "poison").unlink()
    assert cli(*command, "--resume").status == 0


def test_resume_without_out_finds_the_run(cli: Cli, here: Path) -> None:
    """Else a user who let us choose the name has to look it up to go on."""
    command = poison(here)[:-2]
    assert cli(*command).status == 1
    (here / "poison").unlink()
    done = cli(*command, "--resume")
    assert done.result["run"] == str(next((here / "runs").iterdir()))
    assert "epoch 1/" not in done.err


def test_resume_of_a_finished_run_prints_its_result(cli: Cli, here: Path, runs: Path) -> None:
    """Else a script that is run again trains everything again."""
    commands: dict[str, list[object]] = {
        "teacher": ["train-teacher", "--model", TINY, "--epochs", 1],
        "single": ["distill", runs / "teacher", "--method", "reskd", "--student", TINY, "--epochs", 1],
        "cascade": ["add-res-student", runs / "single", "--arch", TINY, "--epochs", 1],
        "gated": ["gate-calibrate", runs / "cascade", "--threshold", 0.3],
    }
    before = tree(runs)
    for name, command in commands.items():
        done = cli(*command, "--out", runs / name, "--resume")
        assert done.result == json.loads((runs / name / "run.json").read_text())["result"]
        assert "epoch" not in done.err
    assert tree(runs) == before


def test_resume_with_nothing_there_starts(cli: Cli, here: Path) -> None:
    """Else a script needs two commands, one for the first time and one for the others."""
    done = cli("train-teacher", "--model", TINY, "--epochs", 1, "--out", here / "new", "--resume")
    assert done.result["run"] == str(here / "new")
    assert "epoch 1/1" in done.err


def test_resume_of_a_run_on_few_classes(cli: Cli, here: Path) -> None:
    """Results of five classes and fewer have no top-5, and must be read back without it."""
    data = photos(here / "photos", classes=("ant", "bee", "cat"))
    common = ["--data", data, "--holdout", 0.3, "--epochs", 1]
    commands: dict[str, list[object]] = {
        "teacher": ["train-teacher", "--model", TINY, *common],
        "grown": ["distill", "teacher", "--method", "reskd", "--student", TINY, "--res-students", 1, "--arch", TINY],
        "gated": ["gate-calibrate", "grown", "--threshold", 0.3],
        "polished": ["polish", "gated", "--epochs", 1],
    }
    commands["grown"] += common
    for name, command in commands.items():
        made = cli(*command, "--out", name).result
        assert "top5" not in made
        again = cli(*command, "--out", name, "--resume")
        assert again.result == made
        assert "epoch" not in again.err


def test_several_res_students_resume_where_they_were(cli: Cli, here: Path, runs: Path) -> None:
    """Else the long command that trains a whole cascade starts anew after a crash."""
    command = ["distill", runs / "teacher", "--method", "reskd", "--student", TINY, "--res-students", 2, "--arch", TINY]
    command += ["--epochs", 1, "--out", here / "grown"]
    whole = cli(*command).result
    assert len(whole["members"]) == 3
    assert whole["command"] == "distill"
    first = weights(here / "grown" / "member-0")
    again = cli(*command, "--resume")
    assert again.result["loss"] == whole["loss"]
    assert "epoch" not in again.err
    # as if it had been killed in the last training
    last = weights(here / "grown")
    for folder in (here / "grown", here / "grown" / "member-2"):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "status": "unfinished"}))
        (folder / "model.safetensors").unlink()
        accept(folder)
    done = cli(*command, "--resume")
    assert done.result["loss"] == whole["loss"]
    assert done.err.count("epoch 1/1") == 1
    assert weights(here / "grown" / "member-0") == first
    assert weights(here / "grown") == last


def test_several_res_students_are_interrupted(cli: Cli, here: Path, runs: Path) -> None:
    """Else the remedy names a folder within the run, and following it makes another run."""
    command = ["distill", str(runs / "teacher"), "--method", "reskd", "--student", TINY, "--res-students", "1"]
    command += ["--arch", TINY, "--epochs", "2", "--residual-loss", "mse", "--alpha", "0.5"]
    done = signalled(signal.SIGINT, STEPS + 3, [*command, "--out", here / "grown"], here)
    assert done.status == 130
    assert f"--resume --out {here / 'grown'}\n" in done.err
    assert cli(*command, "--out", here / "grown", "--resume").status == 0
    assert cli(*command, "--out", here / "whole").status == 0
    assert weights(here / "grown") == weights(here / "whole")
    other = cli(*command[:5], "lenet5", *command[6:], "--out", here / "grown", "--resume")
    other.error(f"--student {TINY}", status=2)


def test_a_finished_run_is_not_taken_for_another(cli: Cli, runs: Path) -> None:
    """A script that raises --epochs gets the old result, and nobody notices."""
    before = tree(runs)
    done = cli("train-teacher", "--model", TINY, "--epochs", "7", "--out", runs / "teacher", "--resume")
    assert done.status == 2
    assert "was made with --epochs 1" in done.err
    assert tree(runs) == before


def test_a_run_of_an_older_version_is_taken(cli: Cli, here: Path, runs: Path) -> None:
    """Every new option would make all earlier runs those of somebody else."""
    shutil.copytree(runs / "single", here / "single")
    record = json.loads((here / "single" / "run.json").read_text())
    assert record["options"].pop("logit_loss") == "kl"
    (here / "single" / "run.json").write_text(json.dumps(record))
    accept(here / "single")
    options = record["options"]
    command = ["distill", options["teacher"], "--method", "reskd", "--student", options["student"], "--resume"]
    command += ["--epochs", options["epochs"], "--out", here / "single", "--device", "cpu"]
    assert cli(*command).result["top1"] == record["result"]["top1"]
    cli(*command, "--logit-loss", "dist").error("no --logit-loss", status=2)


def test_a_finished_run_has_the_origin_that_is_asked_for(cli: Cli, here: Path, runs: Path) -> None:
    """A script whose first step was done anew gets the results of the old one, and nobody notices."""
    for name in ("teacher", "single"):
        shutil.copytree(runs / name, here / name)
    single = ["distill", here / "teacher", "--method", "reskd", "--student", TINY, "--epochs", 1]
    made = cli(*single, "--alpha", 0.5, "--out", here / "made").result
    cascade = ["add-res-student", here / "made", "--arch", TINY, "--epochs", 1, "--out", here / "cascade"]
    assert cli(*cascade).status == 0
    assert cli(*single, "--alpha", 0.5, "--out", here / "made", "--resume").result == made
    cli(*single, "--out", here / "made", "--resume").error("--alpha 0.5", status=2)
    cli(single[0], runs / "teacher", *single[2:], "--alpha", 0.5, "--out", here / "made", "--resume").error("teacher")
    cli(*cascade[:1], here / "single", *cascade[2:], "--resume").error("its run is", status=2)
    cli(*single, "--alpha", 0.5, "--data", here, "--out", here / "made", "--resume").error("its data is digits")
    shutil.rmtree(here / "made")
    assert cli(*single, "--alpha", 0.5, "--seed", 3, "--out", here / "made").status == 0
    cli(*cascade, "--resume").error("has changed since", status=2)


def test_kept_targets_and_resume_are_bit_identical(cli: Cli, here: Path, runs: Path) -> None:
    """Else a run that was killed after its targets were computed ends elsewhere."""
    train = ["distill", f"{runs}/teacher", "--student", TINY, "--epochs", "3", "--target-views", "2"]
    killed = signalled(signal.SIGKILL, STEPS + 3, [*train, "--out", "killed", "--cache-dir", "one"], here)
    assert killed.status == -signal.SIGKILL
    cli(*train, "--out", "killed", "--cache-dir", "one", "--resume")
    cli(*train, "--out", "whole", "--cache-dir", "two")
    assert weights(here / "killed") == weights(here / "whole")
