"""``verify``: whole runs, altered ones, and what --accept takes."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from cli.conftest import Cli
from cli.shell import TINY, cut_off
from kdcompress.runs import CONFIG, METRICS, WEIGHTS, RunFolder, claim

pytestmark = pytest.mark.attack("a run folder that is altered, cut off, or being written")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def run(here: Path, runs: Path) -> Path:
    return Path(shutil.copytree(runs / "teacher", here / "run"))


def states(cli: Cli, run: Path, status: int) -> dict[str, str]:
    done = cli("verify", run, "--json")
    assert done.status == status, done.err
    return {row["file"]: row["state"] for row in json.loads(done.out)["files"]}


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, METRICS])
def test_a_named_pipe_in_a_run_does_not_block(cli: Cli, run: Path, name: str) -> None:
    """verify of a folder from somebody else would hang."""
    (run / name).unlink()
    os.mkfifo(run / name)
    assert states(cli, run, 1)[name] == "missing"


def test_an_unfinished_run_is_whole(cli: Cli, here: Path) -> None:
    """Whoever looks after a crash would throw away what can be gone on with."""
    run = RunFolder(here / "run")
    run.path.mkdir()
    run.write_record({"command": "distill", "status": "unfinished"})
    run.write_metrics([{"epoch": 1}])
    run.write_checkpoint({"epoch": 1})
    assert set(states(cli, run.path, 0).values()) == {"whole"}
    assert cli("verify", run.path, "--accept").status == 0
    run.write_metrics([{"epoch": 1}, {"epoch": 2}])
    run.write_checkpoint({"epoch": 2})
    assert set(states(cli, run.path, 0).values()) == {"whole"}


def test_what_cannot_be_loaded_is_not_accepted(cli: Cli, run: Path) -> None:
    """A file that was cut off would be called whole."""
    cut_off(run / WEIGHTS)
    cli("verify", run, "--accept").error(WEIGHTS, "cannot be read")
    assert states(cli, run, 1)[WEIGHTS] == "altered"


def test_a_run_that_is_being_written_is_not_accepted(cli: Cli, here: Path) -> None:
    """The checkpoint that a training writes at this moment would lose its digest."""
    claimed, go_on = FORK.Event(), FORK.Event()

    def hold() -> None:
        claim(str(here / "held"), "stem", resume=False).write_record({"status": "unfinished"})
        claimed.set()
        go_on.wait()

    process = FORK.Process(target=hold)
    process.start()
    claimed.wait()
    cli("verify", here / "held", "--accept").error(f"being written by process {process.pid}", status=1)
    cli("train-teacher", "--out", here / "held").error(f"being written by process {process.pid}", status=1)
    process.kill()
    process.join()
    assert cli("verify", here / "held", "--accept").status == 0


def test_resume_of_a_finished_run_looks_at_its_weights(cli: Cli, here: Path) -> None:
    """The result would be printed, and only the next command find that there is nothing behind it."""
    train = ["train-teacher", "--model", TINY, "--epochs", 1, "--out", here / "run"]
    assert cli(*train).status == 0
    cut_off(here / "run" / WEIGHTS)
    cli(*train, "--resume").error(WEIGHTS, "altered, or cut off", status=1)


def test_a_config_that_chooses_a_file_is_refused(cli: Cli, run: Path) -> None:
    """A folder from somebody else would have any file of the machine read."""
    config = json.loads((run / CONFIG).read_text())
    config["model_args"]["checkpoint_path"] = "/etc/passwd"
    (run / CONFIG).write_text(json.dumps(config))
    RunFolder(run).accept()
    cli("eval", run).error("checkpoint_path")
