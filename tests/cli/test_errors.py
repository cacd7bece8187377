"""Bad input: two lines that say what is wrong and how to mend it, and every file as it was."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.conftest import Cli
from cli.shell import TINY, accept, cut_off, photos, shell, tree

ONCE = ("--epochs", "1")
RESKD = ("distill", "RUNS/teacher", "--method", "reskd", "--arch", TINY)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def copied(runs: Path, name: str, here: Path) -> Path:
    """A run that the test may spoil."""
    return Path(shutil.copytree(runs / name, here / name))


# arguments, what the message must quote, what the remedy must offer
USAGE = [
    (["train-teacher", "--model", "resnet8_cifer"], ["'resnet8_cifer'", "resnet8_cifar?"]),
    (["train-teacher", "--model", f"{TINY},widht=2"], ["widht"]),
    (["train-teacher", "--model", f"{TINY},width"], ["'width'", "key=value"]),
    (["train-teacher", "--model", "resnet8_cifar,width=0"], ["resnet8_cifar", "width=0"]),
    (["train-teacher", "--model", "resnet8_cifar,width=wide"], ["resnet8_cifar", "width='wide'"]),
    (["train-teacher", "--model", "py:nowhere:make"], ["py:nowhere:make"]),
    (["train-teacher", "--data", "no-such-data"], ["'no-such-data'", "digits"]),
    (["train-teacher", "--data", "digit"], ["'digit'"]),
    (["train-teacher", "--data", ""], ["--data is empty"]),
    (["eval", "RUNS/teacher", "--arch", "lenet5"], ["lenet5", "RUNS/teacher", "Leave it out"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--residual-loss", "mse", "--alpha", "0.5"], ["--alpha"]),
    (["train-teacher", "--data", "py:nowhere:make"], ["py:nowhere:make"]),
    (["train-teacher", "--data", "torch/nonsense"], ["torch/nonsense"]),
    (["train-teacher", "--data", "torch/cifar10", "--data-dir", "empty"], ["torch/cifar10", "--download"]),
    (["train-teacher", "--epochs", "0"], ["--epochs 0", "at least 1"]),
    (["train-teacher", "--epochs", "many"], ["--epochs", "'many'", "whole number"]),
    (["train-teacher", "--epochs", "1.5"], ["--epochs", "'1.5'"]),
    (["train-teacher", "--epochs"], ["--epochs", "argument"]),
    (["train-teacher", "--epoch", "3"], ["--epoch", "--epochs"]),
    (["train-teacher", "--lr", "nan"], ["--lr nan"]),
    (["train-teacher", "--lr", "-1"], ["--lr -1", "more than 0"]),
    (["train-teacher", "--seed", "-1"], ["--seed -1"]),
    (["train-teacher", "--opt", "sdg"], ["--opt 'sdg'"]),
    (["train-teacher", "--precision", "fp64"], ["--precision 'fp64'", "bf16"]),
    (["train-teacher", "--precision", "fp16"], ["--precision fp16", "GPU"]),
    (["train-teacher", "--input-size", "8by8"], ["'8by8'", "HxW"]),
    (["train-teacher", "--input-size", "2x8x8"], ["2 channels"]),
    (["train-teacher", "--batch-size", "1"], ["--batch-size 1"]),
    (["train-teacher", "--augment", "rrc-flip"], ["--augment rrc-flip", "--loading stream"]),
    (["train-teacher", "--config", "no.yaml"], ["no.yaml"]),
    (["train-teacher", "surplus"], ["surplus"]),
    (["trane-teacher"], ["trane-teacher"]),
    (["distill", "RUNS/teacher", "--method", "kdd"], ["'kdd'", "Did you mean kd?"]),
    (["distill", "--method", "kd"], ["TEACHER"]),
    (["distill", "RUNS/teacher", "--method", "ce"], ["takes no teacher"]),
    (["distill", "RUNS/teacher", "--student", "resnet8_cifer"], ["'resnet8_cifer'"]),
    (["distill", "RUNS/teacher", "--grow", "--target-macs", "1"], ["--grow", "--method reskd"]),
    ([*RESKD, "--grow"], ["needs a limit"]),
    (["distill", "RUNS/teacher", "--method", "reskd", "--max-drop", "1"], ["--max-drop has no effect"]),
    (
        [*RESKD, "--grow", "--max-drop", "1", "--res-students", "1"],
        ["Leave out --res-students"],
    ),
    (
        [*RESKD, "--grow", "--student", TINY, "--target-macs", "0.001"],
        ["alone has"],
    ),
    (["distill", "RUNS/teacher", "--res-students", "1"], ["--res-students", "--method reskd"]),
    (["distill", "RUNS/nothing"], ["RUNS/nothing"]),
    (["distill", "nothing.pt", "--arch", TINY], ["nothing.pt"]),
    (["distill", TINY], ["no pretrained weights", "train-teacher"]),
    (["distill", "RUNS/teacher/model.safetensors"], ["bare checkpoint", "--teacher-arch"]),
    (["distill", "RUNS/teacher", "--method", "reskd", "--student", "lenet6", "--res-students", "1", "--arch", TINY],
     ["'lenet6'", "lenet5?"]),
    (["distill", "RUNS/teacher", "--method", "reskd", "--res-students", "1", "--arch", "lenet6"], ["'lenet6'"]),
    (["distill", "RUNS/nothing", "--method", "reskd", "--res-students", "1", "--arch", TINY], ["RUNS/nothing"]),
    (["distill", "RUNS/teacher", "--scheme", "progressive"], ["--scheme", "--method kd"]),
    (["distill", "RUNS/teacher", "--residual-warmup", "0.1"], ["--residual-warmup", "--method kd"]),
    (["distill", "RUNS/teacher", "--sum-weight", "0.1"], ["--sum-weight", "--method kd"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--from-teacher"], ["--from-teacher", "rkd-assistant"]),
    (["distill", "--method", "ce", "--from-teacher"], ["--from-teacher", "--method ce"]),
    (["distill", "RUNS/teacher", "--from-teacher", "--pretrained"], ["--from-teacher", "--pretrained"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--alpha", "0.5"], ["--alpha"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--undivided", "--scheme", "progressive"],
     ["--scheme", "--undivided"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--scheme", "progressive", "--student-weight", "0"],
     ["--student-weight", "--scheme progressive"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--scheme", "progressive", "--epochs", "2"],
     ["3 or more"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--freeze-classifier"], ["--reuse-teacher-classifier"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--temperature", "2"], ["--temperature"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", "student_assistant"], ["divided"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--assistant-share", "1"], ["--assistant-share 1"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", TINY, "--assistant-share", "0.0001"],
     ["--assistant-share 0.0001", "narrowest"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", "lenet6"], ["'lenet6'"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", TINY, "--target-views", "2",
      "--cache-size", "0.001"], ["--target-views 2", "--cache-size 1"]),
    (["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", TINY, "--pretrained"], ["--undivided"]),
    (["add-res-student", "RUNS/single"], ["--arch", "--search"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--search", "--max-macs", "0.5"], ["--search", "--arch"]),
    (["add-res-student", "RUNS/single", "--search"], ["--search needs a budget", "--max-macs 0.1"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--max-macs", "0.5"], ["--max-macs has no effect"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--trials", "20"], ["--trials has no effect", "--search"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--time-budget", "5m"], ["--time-budget has no effect"]),
    (["add-res-student", "RUNS/single", "--search", "--max-macs", "20"], ["--max-macs 20", "at most 1"]),
    (["add-res-student", "RUNS/single", "--search", "--max-macs", "0.5", "--trials", "0"], ["--trials 0"]),
    (["add-res-student", "RUNS/single", "--search", "--max-macs", "0.5", "--time-budget", "0"], ["--time-budget '0'"]),
    (["add-res-student", "RUNS/single", "--search", "--max-macs", "0.5", "--time-budget", "soon"], ["soon", "30m"]),
    (["add-res-student", "RUNS/single", "--search", "--max-macs", "0.00001"], ["--max-macs 1e-05", "cheapest"]),
    (["add-res-student", "RUNS/single", "--arch", "lenet6"], ["'lenet6'", "lenet5?"]),
    (["add-res-student", "RUNS/teacher", "--arch", TINY], ["no teacher", "--teacher"]),
    (["add-res-student", "RUNS/single", "--arch", TINY, "--teacher", "RUNS/nothing"], ["RUNS/nothing"]),
    (["distill", "RUNS/teacher", "--student", TINY, "--logit-loss", "dks"], ["'dks'", "dkd?"]),
    (["distill", "--method", "tf-kd", "--student", TINY, "--logit-loss", "dkd"], ["--logit-loss has no effect"]),
    (
        ["distill", "RUNS/teacher", "--method", "rkd-assistant", "--student", TINY, "--logit-loss", "dkd"],
        ["--logit-loss has no effect"],
    ),
    (
        ["add-res-student", "RUNS/single", "--arch", TINY, "--residual-loss", "mse", "--logit-loss", "dkd"],
        ["--logit-loss has no effect", "--residual-loss mse"],
    ),
    (["gate-calibrate", "RUNS/cascade"], ["exactly one", "--max-drop"]),
    (["gate-calibrate", "RUNS/cascade", "--max-drop", "1", "--target-macs", "1"], ["exactly one"]),
    (["gate-calibrate", "RUNS/cascade", "--max-drop", "1", "--threshold", "0.5"], ["exactly one"]),
    (["gate-calibrate", "RUNS/teacher", "--max-drop", "1"], ["single network", "add-res-student"]),
    (["gate-calibrate", "RUNS/single", "--max-drop", "1"], ["single member", "add-res-student"]),
    (["gate-calibrate", "RUNS/cascade", "--max-drop", "101"], ["--max-drop 101", "at most 100"]),
    (["gate-calibrate", "RUNS/cascade", "--max-drop", "-0.1"], ["--max-drop -0.1", "at least 0"]),
    (["gate-calibrate", "RUNS/cascade", "--target-macs", "0"], ["--target-macs 0", "more than 0"]),
    (["gate-calibrate", "RUNS/cascade", "--target-macs", "0.5"], ["--target-macs 0.5", "lowest possible"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "0.9", "--threshold", "0.5"], ["level has no effect"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "0.9", "--max-drop", "0"], ["at least 0.001"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "0.9", "--max-drop", "100"], ["below 100"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "0.9", "--max-drop", "1e-300"], ["at least 0.001"]),
    (["distill", "RUNS/teacher", "--logit-loss", "mse", "--temperature", "2"], ["--temperature has no effect"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "1", "--max-drop", "1"], ["less than 1"]),
    (["gate-calibrate", "RUNS/cascade", "--confidence-level", "0.9", "--max-drop", "0.5"], ["too few for a guarantee"]),
    (["gate-calibrate", "RUNS/cascade", "--measure", "auto", "--threshold", "0.5"], ["needs one measure"]),
    (["gate-calibrate", "RUNS/cascade", "--max-drop", "1", "--plot", "gate.bmp"], ["--plot gate.bmp", ".svg"]),
    (["eval", "RUNS/cascade", "--plot", "no/such/eval.png"], ["no folder", "--plot"]),
    (["polish", "RUNS/cascade"], ["no gate", "gate-calibrate"]),
    (["polish", "RUNS/gated", "--weights-key", "ema"], ["--weights-key has no effect", "no --teacher"]),
    (["polish", "RUNS/gated", "--teacher-arch", TINY], ["--teacher-arch has no effect", "no --teacher"]),
    (["add-res-student", "RUNS/cascade", "--arch", TINY, "--teacher-arch", TINY], ["--teacher-arch has no effect"]),
    (["polish", "RUNS/teacher"], ["single network", "add-res-student"]),
    (["polish", "RUNS/gated", "--target-views", "3", "--mixup", "0.2"], ["--mixup"]),
    (["gate-calibrate", "RUNS/cascade", "--threshold", "1.5"], ["--threshold 1.5", "at most 1"]),
    (["gate-calibrate", "RUNS/cascade", "--threshold", "0.5", "--threshold", "0.5"], ["2 thresholds for 1 exit"]),
    (["gate-calibrate", "RUNS/cascade", "--threshold", "0.5", "--measure", "margins"], ["'margins'", "margin?"]),
    (["profile-flops", "lenet6"], ["'lenet6'"]),
    (["profile-flops", "lenet5", "--num-classes", "0"], ["--num-classes 0"]),
    (["profile-flops", "lenet5", "--input-size", "0"], ["'0'"]),
    (["profile-flops", "vit_tiny_patch16_224", "--input-size", "1x1"], ["3x1x1"]),
    (["eval", "RUNS/teacher", "--split", "train"], ["'train'", "calibration"]),
    (["eval", "RUNS"], ["RUNS", "weights"]),
    (["eval", "lenet5"], ["no pretrained weights"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(case[0]) for case in USAGE])
def test_bad_options_and_references(arguments: list[str], words: list[str], cli: Cli, here: Path, runs: Path) -> None:
    """Else a typing error ends in a traceback, in hours of the wrong training, or in a folder of rubbish."""
    before = tree(here, runs)
    done = cli(*(argument.replace("RUNS", str(runs)) for argument in arguments))
    done.error(*(word.replace("RUNS", str(runs)) for word in words))
    after = tree(here, runs)
    after.pop(str(here / "runs"), None)  # an empty folder does no harm
    assert after == before


def test_hub_without_the_name_or_the_net(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a misspelt hub name ends in a traceback of the hub's client."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cli("eval", "hf-hub:nobody/nothing").error("hf-hub:nobody/nothing", "connection", status=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(cli: Cli, here: Path) -> None:
    """Else a training meant for a GPU crawls on the CPU, or ends in a traceback of the driver."""
    cli("train-teacher", "--device", "cuda").error("--device cuda", "auto", status=2)
    assert tree(here) == {}


def test_usage_errors_exit_with_2_and_failures_with_1(cli: Cli, here: Path, runs: Path) -> None:
    """Else a script cannot tell its own mistake from a failure on the way."""
    cli("train-teacher", "--epochs", "0").error(status=2)
    cli("gate-calibrate", runs / "cascade").error(status=2)
    cli("eval", runs / "nothing").error(status=1)


def test_no_command_shows_the_commands(cli: Cli) -> None:
    """Else the first thing a newcomer types is answered by an empty error."""
    done = cli()
    assert done.status == 2
    assert "train-teacher" in done.out + done.err
    assert "Error" not in done.err


def test_environment_and_config_are_checked_like_flags(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a typing error in a config file or a variable is silently ignored."""
    (here / "wrong.yaml").write_text("epoch: 3\n")
    cli("train-teacher", "--config", "wrong.yaml").error("'epoch'", "epochs", status=2)
    (here / "list.yaml").write_text("- epochs\n")
    cli("train-teacher", "--config", "list.yaml").error("list.yaml", status=2)
    (here / "section.yaml").write_text("train-teacher: fast\n")
    cli("train-teacher", "--config", "section.yaml").error("section.yaml", status=2)
    (here / "broken.yaml").write_text("epochs: [\n")
    cli("train-teacher", "--config", "broken.yaml").error("broken.yaml", status=2)
    monkeypatch.setenv("KDCOMPRESS_EPOCHS", "soon")
    cli("train-teacher").error("--epochs", "'soon'", status=2)
    monkeypatch.setenv("KDCOMPRESS_EPOCH", "3")
    assert "KDCOMPRESS_EPOCH is not an option; did you mean KDCOMPRESS_EPOCHS?" in cli("train-teacher").err


# --- data ---------------------------------------------------------------------------------------------------------


def broken_folder(root: Path, how: str) -> Path:
    """A data folder with one thing wrong."""
    photos(root)
    if how == "no train":
        shutil.rmtree(root / "train")
    elif how == "no classes":
        for split in ("train", "test"):
            shutil.rmtree(root / split)
            (root / split).mkdir()
    elif how == "one class":
        for split in ("train", "test"):
            shutil.rmtree(root / split / "dog")
    elif how == "empty class":
        shutil.rmtree(root / "train" / "dog")
        (root / "train" / "dog").mkdir()
    elif how == "classes differ":
        (root / "test" / "dog").rename(root / "test" / "bird")
    return root


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no train", ["have no training split"]),
        ("no classes", ["train", "no class"]),
        ("one class", ["one class", "cat"]),
        ("empty class", ["train/dog", "no images"]),
        ("classes differ", ["bird", "dog"]),
    ],
)
def test_a_folder_that_is_not_a_data_set(how: str, words: list[str], cli: Cli, here: Path) -> None:
    """Else a network is trained on something else than the user meant."""
    root = broken_folder(here / "photos", how)
    before = tree(here)
    cli("train-teacher", "--model", TINY, "--data", root).error(*words)
    assert tree(here) == before


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_truncated_image_is_named_or_skipped(loading: str, cli: Cli, here: Path) -> None:
    """Else one bad file of a million stops the work, and nobody learns which."""
    root = photos(here / "photos")
    bad = root / "train" / "cat" / "3.png"
    cut_off(bad)
    arguments = ["train-teacher", "--model", TINY, "--data", root, "--loading", loading, "--workers", 0, *ONCE]
    before = tree(root)
    cli(*arguments, "--out", "stopped", "--quiet").error(str(bad), "--skip-bad-images", status=1)
    assert tree(root) == before
    if loading == "memory":  # a stream meets it in the middle, and leaves an unfinished run
        assert not (here / "stopped").exists()
    assert not (here / "stopped" / "model.safetensors").exists()
    done = cli(*arguments, "--out", "done", "--skip-bad-images")
    assert done.result["num_classes"] == 2
    assert f"1 of 2 images of the calibration split are left out: {bad}" in done.err
    assert tree(root) == before


def test_truncated_test_image(cli: Cli, here: Path) -> None:
    """Else an accuracy is reported that silently leaves images out, or eval dies of one bad file."""
    root = photos(here / "photos")
    run = cli("train-teacher", "--model", TINY, "--data", root, *ONCE).result["run"]
    bad = root / "test" / "dog" / "0.png"
    cut_off(bad)
    cli("eval", run).error(str(bad), "--skip-bad-images", status=1)
    assert cli("eval", run, "--skip-bad-images").result["n"] == 11


def test_data_that_have_changed_since(cli: Cli, here: Path) -> None:
    """Else images that a network has fitted on come to calibrate it."""
    root = photos(here / "photos")
    teacher = cli("train-teacher", "--model", TINY, "--data", root, *ONCE).result["run"]
    run = cli("distill", teacher, "--method", "reskd", "--student", TINY, *ONCE).result["run"]
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "another.png")
    cli("add-res-student", run, "--arch", TINY, *ONCE, "--quiet").error(str(root), "have changed", status=1)
    cli("eval", run, "--split", "calibration").error(str(root), "have changed", status=1)
    assert cli("eval", run).result["n"] == 12, "the test split is as it was"


def test_data_without_a_test_split(cli: Cli, here: Path) -> None:
    """Else eval reports an accuracy on images that the network was trained on."""
    root = photos(here / "photos")
    shutil.rmtree(root / "test")
    run = cli("train-teacher", "--model", TINY, "--data", root, *ONCE).result["run"]
    cli("eval", run).error("test split", "--split calibration")
    assert cli("eval", run, "--split", "calibration").result["split"] == "calibration"


# --- networks that do not fit -------------------------------------------------------------------------------------


def test_teacher_with_another_number_of_classes(cli: Cli, here: Path, runs: Path) -> None:
    """Else a student learns from logits that mean something else."""
    root = photos(here / "photos")
    before = tree(here, runs)
    cli("distill", runs / "teacher", "--data", root).error("10 classes", "2", "teacher")
    cli("add-res-student", runs / "single", "--arch", TINY, "--data", root).error("10 classes")
    cli("gate-calibrate", runs / "cascade", "--max-drop", "1", "--data", root).error("10 classes")
    cli("eval", runs / "teacher", "--data", root).error("10 classes")
    assert tree(here, runs) == before


def test_teacher_with_another_number_of_channels(cli: Cli, here: Path, runs: Path) -> None:
    """Else a grey network meets colour images in the middle of a convolution."""
    root = photos(here / "photos", [str(digit) for digit in range(10)], each=2)
    before = tree(here, runs)
    problem = cli("distill", runs / "teacher", "--data", root, "--student", TINY).error("1 channels", "have 3")
    assert "teacher" in problem
    assert tree(here, runs) == before
    cli("eval", runs / "teacher", "--data", root).error("1 channels")
    # the remedy that it names is one
    remedy = re.search(r"--input-size \S+\d", cli("eval", runs / "teacher", "--data", root).err)
    assert remedy is not None
    assert cli("eval", runs / "teacher", "--data", root, *remedy.group().split()).result["n"] == 20


def test_class_names_in_another_order(cli: Cli, here: Path, runs: Path) -> None:
    """Else a student learns dog where it should learn cat, and scores next to nothing."""
    teacher = copied(runs, "teacher", here)
    config = json.loads((teacher / "config.json").read_text())
    config["label_names"] = [*config["label_names"][1:], config["label_names"][0]]
    (teacher / "config.json").write_text(json.dumps(config))
    accept(teacher)
    before = tree(here)
    cli("distill", teacher, "--student", TINY).error("order", "1, 2, 3", "0, 1, 2")
    cli("eval", teacher).error("order")
    assert tree(here) == before


def test_other_class_names(cli: Cli, here: Path, runs: Path) -> None:
    """Else a teacher of ten animals teaches ten digits."""
    teacher = copied(runs, "teacher", here)
    config = json.loads((teacher / "config.json").read_text())
    config["label_names"] = ["zero", *config["label_names"][1:]]
    (teacher / "config.json").write_text(json.dumps(config))
    accept(teacher)
    cli("distill", teacher, "--student", TINY).error("classes", "zero")


def test_checkpoint_that_does_not_fit(cli: Cli, here: Path, runs: Path) -> None:
    """Else a user cannot see which key of the spec is wrong, or runs a half-loaded network."""
    weights = runs / "teacher" / "model.safetensors"
    before = tree(here, runs)
    done = cli("eval", weights, "--arch", "resnet8_cifar,width=0.5", "--data", "digits")
    done.error("conv1.weight", "[4, 1, 3, 3]", "[8, 1, 3, 3]", "--arch", status=1)
    done = cli("eval", weights, "--arch", "resnet14_cifar,width=0.25", "--data", "digits")
    done.error("layer1.1.conv1.weight", "not in it", status=1)
    done = cli("distill", weights, "--teacher-arch", "resnet8_cifar,width=0.5", "--student", TINY)
    done.error("[4, 1, 3, 3]", "[8, 1, 3, 3]")
    assert tree(here, runs) == before


def test_run_whose_weights_do_not_fit(cli: Cli, here: Path, runs: Path) -> None:
    """Else a folder put together from two runs is scored as if it were one."""
    run = copied(runs, "teacher", here)
    state = load_file(run / "model.safetensors")
    state["fc.weight"] = state["fc.weight"][:5].clone()
    save_file(state, run / "model.safetensors")
    accept(run)
    cli("eval", run).error("fc.weight", "[5, 16]", "[10, 16]")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pt", "weights.pth", "config.json"])
def test_truncated_files(name: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a download that broke off ends in a traceback of a zip reader."""
    run = copied(runs, "teacher", here)
    arguments = [run / name, "--arch", TINY, "--data", "digits"]
    if name.startswith("weights"):
        torch.save(load_file(run / "model.safetensors"), run / name)
        assert cli("eval", *arguments).result["n"] == 360
    elif name == "config.json":
        arguments = [run]
    cut_off(run / name)
    before = tree(here)
    cli("eval", *arguments).error(name, status=1)
    assert tree(here) == before


@pytest.mark.parametrize("kind", ["torch", "pickle", "legacy"])
def test_pickled_code_is_never_run(kind: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a checkpoint from the internet takes over the user's machine."""
    mark, file = here / "owned", here / "weights.pth"
    content = {"state_dict": {**load_file(runs / "teacher" / "model.safetensors")}, "extra": Evil(mark)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "torch")
    before = tree(here)
    words = () if kind == "pickle" else ("pickled code", "not run")
    cli("eval", file, "--arch", TINY, "--data", "digits").error(str(file), "safetensors", *words, status=1)
    cli("distill", file, "--teacher-arch", TINY, "--student", TINY).error(str(file), *words)
    assert tree(here) == before
    # the trap works
    torch.load(file, weights_only=False) if kind != "pickle" else pickle.loads(file.read_bytes())
    assert mark.exists()


def test_pickled_code_in_a_resume_state_is_never_run(cli: Cli, here: Path, runs: Path) -> None:
    """Else a run folder from a colleague takes over the machine of who resumes it."""
    run = unfinished(copied(runs, "teacher", here))
    torch.save({"version": 1, "options": Evil(here / "owned")}, run / "checkpoint.pt")
    accept(run)
    before = tree(here / "teacher" / "checkpoint.pt", here)
    cli("train-teacher", "--model", TINY, *ONCE, "--out", run, "--resume").error("checkpoint.pt")
    assert not (here / "owned").exists()
    assert tree(run)[str(run / "checkpoint.pt")] == before[str(run / "checkpoint.pt")]


def test_truncated_resume_state(cli: Cli, here: Path, runs: Path) -> None:
    """Else --resume of a damaged run dies without a word on what to do."""
    run = unfinished(copied(runs, "teacher", here))
    torch.save({"version": 1}, run / "checkpoint.pt")
    cut_off(run / "checkpoint.pt")
    accept(run)
    cli("train-teacher", "--model", TINY, *ONCE, "--out", run, "--resume").error("checkpoint.pt", "without --resume")


# --- run folders --------------------------------------------------------------------------------------------------


def unfinished(run: Path) -> Path:
    """A run as it is before its end."""
    record = json.loads((run / "run.json").read_text())
    del record["result"]
    (run / "run.json").write_text(json.dumps({**record, "status": "unfinished"}))
    (run / "model.safetensors").unlink()
    (run / "config.json").unlink()
    return accept(run)


@pytest.mark.parametrize("command", ["distill", "add-res-student", "gate-calibrate", "polish", "profile-flops", "eval"])
def test_run_that_is_unfinished(command: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a user does not learn that the training before broke off, and how to go on with it."""
    run = unfinished(copied(runs, "cascade", here))
    before = tree(here)
    more = {"add-res-student": ["--arch", TINY], "gate-calibrate": ["--max-drop", "1"]}.get(command, [])
    cli(command, run, *more).error(str(run), "unfinished", f"--resume --out {run}", status=1)
    assert tree(here) == before


def test_run_without_weights(cli: Cli, here: Path, runs: Path) -> None:
    """Else a folder whose weights were cleaned away ends in a traceback."""
    run = copied(runs, "teacher", here)
    (run / "model.safetensors").unlink()
    before = tree(here)
    for reference in (run, f"local-dir:{run}"):
        cli("eval", reference).error(str(run), "no weights", status=1)
        cli("distill", reference, "--student", TINY).error("no weights")
    assert tree(here) == before


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_damaged_record(name: str, cli: Cli, here: Path, runs: Path) -> None:
    """Else a folder that was edited by hand ends in a traceback."""
    run = copied(runs, "teacher", here)
    for content in ("{", "[]", "\udcff"):
        (run / name).write_bytes(content.encode(errors="surrogateescape"))
        cli("eval", run).error(name)


def test_out_that_exists(cli: Cli, here: Path, runs: Path) -> None:
    """Else a run of yesterday is written over."""
    (here / "photos").mkdir()
    (here / "photos" / "precious.jpg").write_text("a memory")
    (here / "file").write_text("a text")
    before = tree(here, runs)
    commands: list[list[object]] = [
        ["train-teacher", "--model", TINY, *ONCE],
        ["distill", runs / "teacher", "--student", TINY, *ONCE],
        ["distill", runs / "teacher", "--method", "reskd", "--res-students", 1, "--arch", TINY, *ONCE],
        ["add-res-student", runs / "single", "--arch", TINY, *ONCE],
        ["gate-calibrate", runs / "cascade", "--max-drop", 1],
    ]
    for command in commands:
        for out in ("photos", "file", runs / "teacher"):
            cli(*command, "--out", out).error("--out", str(out), "exists", status=2)
        cli(*command, "--out", "photos", "--resume").error("photos", "not a run", status=2)
        cli(*command, "--out", "file/run").error("file/run", "--out")
    assert tree(here, runs) == before


def test_out_that_is_an_empty_folder(cli: Cli, here: Path, runs: Path) -> None:
    """Else mktemp -d and mounted volumes cannot be written to."""
    (here / "new").mkdir()
    done = cli("gate-calibrate", runs / "cascade", "--threshold", 0.5, "--out", "new")
    assert done.result["run"] == str(here / "new")


def test_resume_of_another_commands_run(cli: Cli, here: Path, runs: Path) -> None:
    """Else --resume with the wrong folder gives out a teacher as a student."""
    before = tree(here, runs)
    cli("distill", runs / "teacher", "--student", TINY, "--out", runs / "teacher", "--resume").error("train-teacher")
    cli("gate-calibrate", runs / "cascade", "--max-drop", 1, "--out", runs / "teacher", "--resume").error("teacher")
    assert tree(here, runs) == before


# --- gates --------------------------------------------------------------------------------------------------------


def test_lowest_possible_target_can_be_reached(cli: Cli, here: Path, runs: Path) -> None:
    """Else the advice of the error message leads to the next error."""
    done = cli("gate-calibrate", runs / "cascade", "--target-macs", 0.01)
    done.error("--target-macs 0.01")
    lowest = re.search(r"lowest possible is (--target-macs) ([\d.]*\d)", done.err)
    assert lowest is not None, done.err
    result = cli("gate-calibrate", runs / "cascade", *lowest.groups()).result
    assert result["expected_macs_ratio"] <= float(lowest.group(2))


def test_target_macs_without_a_teacher_on_record(cli: Cli, here: Path, runs: Path) -> None:
    """Else a ratio to an unknown cost is computed from nothing."""
    cascade = copied(runs, "cascade", here)
    (cascade / "run.json").unlink()
    cli("gate-calibrate", cascade, "--target-macs", 1.5, "--data", "digits").error("teacher", "--max-drop")


# --- disk and numbers ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(here: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = here / "disk"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "kdcompress-test", str(folder)])
    except OSError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_fills(small_disk: Path, cli: Cli, here: Path) -> None:
    """Else a full disk costs the whole training, and not the epoch in hand."""
    run = small_disk / "run"
    arguments = ["train-teacher", "--model", "lenet5", "--opt", "sgd", "--epochs", 2, "--out", run, "--seed", 7]
    # lenet5 is 0.25 MB, with its momentum 0.5: the state after epoch 1 fits beside the first one, the next does not
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(64 * 1024))
    done = cli(*arguments)
    assert done.status == 1
    lines = [line for line in done.err.splitlines() if not re.match(r"Training with|train-teacher|epoch", line)]
    assert len(lines) == 2, done.err
    assert re.match(r"Error: The disk is full: .*checkpoint", lines[0])
    assert "--resume" in lines[1]
    assert ballast.stat().st_size == 64 * 1024
    assert sorted(path.name for path in run.iterdir()) == [".lock", "checkpoint.pt", "metrics.csv", "run.json"]
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] == 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    resumed = cli(*arguments, "--resume").result
    unbroken = cli(*arguments[:8], here / "unbroken", "--seed", 7).result
    assert resumed["loss"] == unbroken["loss"]
    assert (run / "model.safetensors").read_bytes() == (here / "unbroken" / "model.safetensors").read_bytes()


def test_disk_that_fills_with_a_gate(small_disk: Path, cli: Cli, here: Path, runs: Path) -> None:
    """Else a full disk leaves half a gated cascade that looks like one."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1000 * 1024))
    command = ["gate-calibrate", runs / "cascade", "--threshold", "0.3", "--out", small_disk / "gated"]
    done = cli(*command, "--quiet")
    done.error("disk is full", status=1)
    assert not (small_disk / "gated" / "model.safetensors").exists()
    if (small_disk / "gated" / "run.json").exists():
        cli("eval", small_disk / "gated").error("unfinished", status=1)
    ballast.unlink()
    assert cli(*command, "--resume").result["thresholds"] == [0.3]


def test_folder_that_may_not_be_written(cli: Cli, here: Path) -> None:
    """Else a wrong --out ends in a traceback."""
    cli("train-teacher", "--model", TINY, *ONCE, "--out", "/proc/nothing/run").error("/proc/nothing", "--out")


NAN_MODEL = """
from pathlib import Path
import torch, timm

class Poisoned(timm.models.ResNet.__mro__[1]):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.body = timm.create_model("resnet8_cifar", width=0.25, num_classes=num_classes, in_chans=in_chans)
        self.pretrained_cfg = dict(self.body.pretrained_cfg)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
    def forward(self, x):
        self.seen += int(self.training)
        bad = Path("poison").exists() and self.training and self.seen > 50
        return self.body(x) * (float("nan") if bad else 1)

def make(num_classes=10, in_chans=3):
    return Poisoned(num_classes, in_chans)
"""


def test_loss_that_is_not_finite(cli: Cli, here: Path) -> None:
    """Else a night of training goes on with NaN, or takes the last good state with it."""
    (here / "poisoned.py").write_text(NAN_MODEL)
    (here / "poison").touch()
    arguments = ["train-teacher", "--model", "py:poisoned:make", "--epochs", 2, "--out", here / "run", "--quiet"]
    # an epoch of digits has 41 steps: the 51st forward is step 10 of epoch 2
    cli(*arguments).error("step 10 of epoch 2", "after epoch 1", str(here / "run"), "--lr", status=1)
    assert torch.load(here / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert not (here / "run" / "model.safetensors").exists()
    (here / "poison").unlink()
    resumed = cli(*arguments, "--resume").result
    unbroken = cli(*arguments[:-2], here / "unbroken").result
    assert resumed["loss"] == unbroken["loss"]


def test_learning_rate_that_explodes(cli: Cli, here: Path) -> None:
    """Else NaN weights are saved and reported as a network."""
    done = cli("train-teacher", "--model", TINY, *ONCE, "--lr", "1e30", "--out", "run", "--quiet")
    done.error("not finite at step", "of epoch 1", "--lr", status=1)
    assert not (here / "run" / "model.safetensors").exists()


# --- standard input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["distill", "add-res-student", "gate-calibrate", "profile-flops", "eval"])
@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        ("gobbledygook\n", ["'gobbledygook'"]),
        ('{"run": "/nowhe', ["JSON"]),
        ('{"command": "profile-flops"}\n', ["no run"]),
        ('{"command": "profile-flops", "run": null}\n', ["no run"]),
        ('{"run": 3}\n', ["no run"]),
        ("[1, 2]\n", ["[1, 2]"]),
        ('{"run": "/nowhere/at/all"}\n', ["/nowhere/at/all"]),
        ("\x00\x01\x02\n", []),
        ("/nowhere/" + "x" * 5000 + "\n", ["xxx"]),
    ],
    ids=["empty", "blank", "nonsense", "cut", "no run", "null run", "number", "list", "gone", "binary", "long"],
)
def test_dash_with_nothing_or_nonsense(
    command: str, stdin: str, words: list[str], cli: Cli, here: Path, runs: Path
) -> None:
    """Else a broken pipeline goes on with something that nobody meant."""
    more = {"add-res-student": ["--arch", TINY], "gate-calibrate": ["--max-drop", "1"]}.get(command, [])
    before = tree(here)
    cli(command, "-", *more, stdin=stdin).error(*words)
    assert tree(here) == before


def test_dash_at_a_terminal(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command without its argument waits for ever for what nobody will type."""
    main, other = os.openpty()
    from kdcompress.cli import run

    with os.fdopen(main, "rb"), os.fdopen(other) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run(["eval", "-"]) == 2
        assert run(["eval"]) == 2


# --- as a user meets them -----------------------------------------------------------------------------------------


def test_errors_of_real_commands(here: Path, runs: Path) -> None:
    """Else what the tests above see in their own process is not what a shell sees."""
    before = tree(here, runs)
    shell(f"kdcompress gate-calibrate {runs}/single --max-drop 1", here).error("single member", status=1)
    shell("kdcompress distill --epoch 3", here).error("--epochs", status=2)
    assert tree(here, runs) == before


def test_debug_shows_the_traceback_of_unexpected_errors(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an accident in a library can neither be reported nor found."""
    (here / "odd.py").write_text("def make():\n    raise ZeroDivisionError('odd data')\n")
    plain = cli("train-teacher", "--data", "py:odd:make")
    assert plain.status == 1
    assert "Traceback" not in plain.err
    assert "odd data" in plain.err
    assert "KDCOMPRESS_DEBUG=1" in plain.err
    monkeypatch.setenv("KDCOMPRESS_DEBUG", "1")
    assert "Traceback" in cli("eval", "no-such-run").err
    assert "in make\n" in cli("train-teacher", "--data", "py:odd:make").err


@pytest.mark.parametrize("command", [["gate-calibrate", "--max-drop", "1"], ["eval", "--split", "calibration"]])
def test_images_that_were_trained_on_never_calibrate(command: list[str], cli: Cli, here: Path, runs: Path) -> None:
    """Else thresholds come from images on which every member is surer than it will ever be again."""
    name, *rest = command
    cli(name, runs / "cascade", *rest, "--holdout", "0.6").error("--holdout 0.6", status=2)


def test_a_last_step_that_diverges_is_named(cli: Cli, here: Path) -> None:
    """Else a network of NaN is saved as a finished run."""
    settings = ["--quiet", "--epochs", 1, "--lr", 1e30, "--warmup-epochs", 0, "--batch-size", 1295]
    cli("train-teacher", "--model", TINY, *settings, "--out", here / "nan").error("not finite", status=1)
    assert not (here / "nan" / "model.safetensors").exists()
    cli("eval", here / "nan").error("unfinished", status=1)


@pytest.mark.parametrize(
    "options",
    [["ce", "--alpha", "0.3"], ["label-smoothing", "--temperature", "9"], ["tf-kd", "--residual-loss", "mse"]],
)
def test_options_without_effect_are_refused(options: list[str], cli: Cli, here: Path) -> None:
    """Else a user believes that an option did something."""
    cli("distill", "--method", *options).error(options[1], status=2)


def test_eval_sees_the_size_that_was_asked_for(cli: Cli, here: Path, runs: Path) -> None:
    """Else --input-size is taken and does nothing."""
    assert cli("eval", runs / "teacher", "--input-size", "12").result["input_size"][1:] == [12, 12]


def test_profile_takes_any_size_and_channels(cli: Cli, here: Path) -> None:
    """Else a transformer can only be profiled at the size that it was trained at."""
    assert cli("profile-flops", "test_vit", "--input-size", "96").result["input_size"] == [3, 96, 96]
    assert cli("profile-flops", "test_resnet", "--input-size", "1x64x64").result["input_size"] == [1, 64, 64]


def test_weights_that_are_not_numbers(cli: Cli, here: Path, runs: Path) -> None:
    """Else a network that broke in training is scored, at chance, as if it were one."""
    run = copied(runs, "teacher", here)
    weights = load_file(run / "model.safetensors")
    weights["fc.weight"][0, 0] = float("nan")
    save_file(weights, run / "model.safetensors")
    accept(run)
    cli("eval", run).error("fc.weight holds NaN", status=1)
