"""The run folder: never half a file, never a run over another."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdcompress import runs
from kdcompress.errors import UserError
from kdcompress.runs import (
    CHECKPOINT,
    CONFIG,
    LOCK,
    METRICS,
    RECORD,
    SPLIT,
    WEIGHTS,
    RunFolder,
    atomic_file,
    claim,
    open_run,
    release,
)

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with room for 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def finished(path: Path, **record: Any) -> RunFolder:
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.write_weights({"weight": torch.ones(2)})
    run.write_json(CONFIG, {"architecture": "lenet5"})
    run.finish(record)
    return run


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


# --- files ---


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    """A reader would find half a file while it is being written."""
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new " * 1000)
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new " * 1000
    assert names(tmp_path) == ["weights"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), RuntimeError("not about files")])
def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    """A crash while saving would destroy the run's last good state, or litter its folder."""
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def crash() -> None:
        with atomic_file(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(type(error)):
        crash()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["run.json"]


def test_a_kill_in_the_middle_leaves_the_old_file_and_a_later_finish_cleans_up(tmp_path: Path) -> None:
    """kill -9 while saving would destroy the checkpoint, or leave half of one in the run for ever."""
    run = RunFolder(tmp_path)
    run.write_checkpoint({"epoch": 3})

    def die() -> None:
        with atomic_file(tmp_path / CHECKPOINT) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run.read_checkpoint() == {"epoch": 3}
    assert len(names(tmp_path)) == 3
    run.finish({})
    assert names(tmp_path) == [RECORD]


def test_a_missing_parent_is_an_error(tmp_path: Path) -> None:
    """A run folder deleted while it trains would end in a traceback."""
    with pytest.raises(UserError, match="could not be written: No such file"):
        RunFolder(tmp_path / "gone").write_json(RECORD, {})


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EIO, "Input/output")]
)
@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
def test_a_disk_error_is_reported_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, moment: str
) -> None:
    """A disk that fills would cost the run, not just the epoch in hand."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"old")

    def fail(*args: Any) -> None:
        raise OSError(number, os.strerror(number))

    if moment != "write":
        monkeypatch.setattr(os, {"fsync": "fsync", "rename": "replace"}[moment], fail)

    def write() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            if moment == "write":
                fail()

    with pytest.raises(UserError, match=words) as caught:
        write()
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.write_checkpoint({"weight": torch.zeros(100_000)}),
        lambda run: run.write_weights({"weight": torch.zeros(100_000)}),
        lambda run: run.write_metrics([{"epoch": 1, "note": "x" * 200_000}]),
        lambda run: run.write_json(RECORD, {"note": "x" * 200_000}),
    ],
    ids=["checkpoint", "weights", "metrics", "record"],
)
def test_a_disk_that_is_really_full(tiny_disk: Path, write: Callable[[RunFolder], None]) -> None:
    """The same on a real full disk, where PyTorch hides the cause behind an error of its own."""
    run = RunFolder(tiny_disk)
    run.write_checkpoint({"epoch": 1})
    run.write_weights({"weight": torch.ones(2)})
    run.write_metrics([{"epoch": 1}])
    run.write_json(RECORD, {"status": "unfinished"})
    before = {name: (tiny_disk / name).read_bytes() for name in names(tiny_disk)}
    with pytest.raises(UserError, match="disk is full") as caught:
        write(run)
    assert "--resume" in caught.value.remedy
    assert {name: (tiny_disk / name).read_bytes() for name in names(tiny_disk)} == before


# --- contents ---


def test_weights_of_any_layout_are_saved(tmp_path: Path) -> None:
    """Channels-last or tied weights would make saving fail after all the training."""
    shared = torch.arange(24.0).reshape(1, 2, 3, 4)
    state = {
        "last": shared.clone().contiguous(memory_format=torch.channels_last),
        "a": shared[:, 1],
        "b": shared,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "count": torch.tensor(3),
    }
    RunFolder(tmp_path).write_weights(state)
    loaded = load_file(tmp_path / WEIGHTS)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_metrics_hold_each_epoch_once(tmp_path: Path) -> None:
    """After a resume the curve would go back and forth."""
    run = RunFolder(tmp_path)
    rows: list[Mapping[str, Any]] = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 5)]
    for until in (1, 2, 3, 2, 3, 4):  # killed after the third epoch's metrics, before its checkpoint
        run.write_metrics(rows[:until])
    with open(tmp_path / METRICS, newline="") as file:
        assert list(csv.DictReader(file)) == [{key: str(value) for key, value in row.items()} for row in rows]
    assert b"\r" not in (tmp_path / METRICS).read_bytes()


def test_json_is_standard(tmp_path: Path) -> None:
    """Other tools could not read a NaN in run.json, and half a write would cost the old one."""
    run = RunFolder(tmp_path)
    run.write_json(RECORD, {"classes": ["é"]})
    with pytest.raises(ValueError, match="JSON"):
        run.write_json(RECORD, {"loss": float("nan")})
    assert run.record() == {"classes": ["é"]}


def test_a_checkpoint_comes_back_equal(tmp_path: Path) -> None:
    """A resumed run would not continue where it was."""
    run = RunFolder(tmp_path)
    assert not run.has_checkpoint
    state = {"model": {"w": torch.randn(3, 2)}, "epoch": 2, "rows": [{"loss": 0.5}]}
    run.write_checkpoint(state)
    found = run.read_checkpoint()
    assert run.has_checkpoint
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert (found["epoch"], found["rows"]) == (2, [{"loss": 0.5}])


class _Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("damage", ["truncated", "nonsense", "empty", "pickle"])
def test_a_damaged_checkpoint_is_refused_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """--resume would end in a traceback, or execute what somebody put into a shared run."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path)
    run.write_checkpoint({"w": torch.zeros(100)})
    path = tmp_path / CHECKPOINT
    if damage == "pickle":
        torch.save({"trap": _Trap()}, path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"truncated": whole[: len(whole) // 2], "nonsense": b"nonsense", "empty": b""}[damage])
    with pytest.raises(UserError, match="altered, or cut off"):
        run.read_checkpoint()
    run.accept()
    with pytest.raises(UserError, match="cannot be read") as caught:
        run.read_checkpoint()
    assert str(path) in caught.value.problem
    assert "--resume" in caught.value.remedy
    assert "\n" not in caught.value.problem
    assert not Path("trapped").exists()
    if damage == "pickle":
        with open(path, "rb"), pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)


def test_finish_marks_the_run_and_cleans_up(tmp_path: Path) -> None:
    """A run that is done would look unfinished, or keep its large checkpoint."""
    run = RunFolder(tmp_path)
    run.write_json(RECORD, {"status": "unfinished"})
    run.write_checkpoint({})
    run.write_weights({"w": torch.ones(1)})
    assert not run.is_finished
    run.finish({"command": "distill"})
    assert run.is_finished
    assert run.record() == {"command": "distill", "status": "finished"}
    assert names(tmp_path) == [WEIGHTS, RECORD]


# --- claiming a folder ---


def test_out_is_made_with_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--out a/b/c would fail, or the result name a relative path that the next command cannot find."""
    monkeypatch.chdir(tmp_path)
    run = claim("a/b/c", "stem", resume=False)
    assert run.path == tmp_path / "a/b/c"
    assert run.path.is_dir()
    assert claim("a/b/c", "stem", resume=False).path == run.path, "an empty folder is free"
    assert claim("new", "stem", resume=True).path.is_dir(), "--resume of a run that never began starts it"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", ["file", "other folder", "unfinished", "finished"])
def test_an_out_that_exists(tmp_path: Path, kind: str, resume: bool) -> None:
    """Somebody's files would be written over."""
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("precious")
    elif kind == "finished":
        finished(out)
    else:
        out.mkdir()
        (out / "notes.txt").write_text("precious")
        if kind == "unfinished":
            RunFolder(out).write_json(RECORD, {"status": "unfinished"})
    if resume and kind == "unfinished":
        assert claim(str(out), "stem", resume=True).path == out
        return
    if resume and kind == "finished":  # the command has looked before, and it was not
        with pytest.raises(UserError, match="finished by another process"):
            claim(str(out), "stem", resume=True)
        return
    with pytest.raises(UserError) as caught:
        claim(str(out), "stem", resume=resume)
    assert str(out) in caught.value.problem
    assert caught.value.exit_code == 2
    assert ("can be resumed" if resume else "exists already") in caught.value.problem
    if kind == "file":
        assert out.read_text() == "precious"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_record_can_begin_again(tmp_path: Path, resume: bool) -> None:
    """Of ``compress``, the folder is an inner one: neither another --out nor --resume would have gone on."""
    out = tmp_path / "run"
    out.mkdir()
    (out / SPLIT).write_bytes(b"path,split\n")
    with pytest.raises(UserError):  # somebody's file
        claim(str(out), "stem", resume=resume)
    (out / LOCK).touch()
    run = claim(str(out), "stem", resume=resume)
    assert run.path == out
    release(run)


def test_an_out_that_cannot_be_made(tmp_path: Path) -> None:
    """A traceback instead of two lines."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be created") as caught:
        claim(str(tmp_path / "file" / "run"), "stem", resume=False)
    assert "--out" in caught.value.remedy


def test_names_are_numbered_and_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run would be refused or replace the first, or a slash in a name make odd folders."""
    monkeypatch.chdir(tmp_path)
    made = [claim(None, "distill-kd-py:a.b:c/d e", resume=False).path.name for _ in range(3)]
    assert made == ["distill-kd-py-a.b-c-d-e", "distill-kd-py-a.b-c-d-e-2", "distill-kd-py-a.b-c-d-e-3"]
    assert all(path.is_dir() for path in (tmp_path / "runs").iterdir())


def test_resume_without_out_finds_the_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command with --resume would start over, or touch a finished run or a foreign folder."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs/stem")
    (tmp_path / "runs/stem-2").mkdir()
    third = claim(None, "stem", resume=False)
    third.write_json(RECORD, {"status": "unfinished"})
    assert third.path.name == "stem-3"
    release(third)
    assert claim(None, "stem", resume=True).path == third.path
    third.write_weights({"w": torch.ones(1)})
    release(third)
    assert claim(None, "stem", resume=True).path == third.path, "killed between the weights and the record"
    third.finish({})
    release(third)
    assert claim(None, "stem", resume=True).path.name == "stem-4"


def test_a_run_that_is_being_written_is_refused(tmp_path: Path) -> None:
    """Of two processes one would leave its record, and the other its weights."""
    out = str(tmp_path / "run")
    claimed, go_on = FORK.Event(), FORK.Event()

    def hold() -> None:
        claim(out, "stem", resume=False).write_record({"status": "unfinished"})
        claimed.set()
        go_on.wait()

    process = FORK.Process(target=hold)
    process.start()
    claimed.wait()
    for resume in (False, True):
        with pytest.raises(UserError) as caught:
            claim(out, "stem", resume=resume)
    assert f"process {process.pid} on {socket.gethostname()}" in caught.value.problem
    process.kill()
    process.join()
    run = claim(out, "stem", resume=True)
    assert run.record() == {"status": "unfinished"}, "death releases it"
    release(run)


def test_of_two_claims_at_the_same_moment_one_is_refused(tmp_path: Path) -> None:
    """The slower one would end with a file system error, or both would write."""
    each, workers = 60, 3
    barrier, queue = FORK.Barrier(workers), FORK.SimpleQueue()

    def race() -> None:
        found = []
        for number in range(each):
            barrier.wait()
            try:
                claim(str(tmp_path / f"run-{number}"), "stem", resume=False)
                found.append("claimed")
            except UserError as error:
                found.append("refused" if "being written by" in str(error) else str(error))
            except BaseException as error:
                found.append(repr(error))
        queue.put(found)
        barrier.wait()

    processes = [FORK.Process(target=race) for _ in range(workers)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    assert all(sorted(row) == ["claimed", *["refused"] * (workers - 1)] for row in zip(*found, strict=True)), found


def test_resume_skips_a_folder_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--resume would fail because of another run of the same kind that is at work."""
    monkeypatch.chdir(tmp_path)
    claimed, go_on = FORK.Event(), FORK.Event()

    def hold() -> None:
        claim(None, "stem", resume=False).write_record({"status": "unfinished"})
        claimed.set()
        go_on.wait()

    process = FORK.Process(target=hold)
    process.start()
    claimed.wait()
    assert claim(None, "stem", resume=True).path.name == "stem-2"
    process.kill()
    process.join()
    assert claim(None, "stem", resume=True).path.name == "stem"


def test_a_folder_is_claimed_as_often_as_it_is_released(tmp_path: Path) -> None:
    """The winner of a search is trained in the run of the search."""
    run = claim(str(tmp_path / "run"), "stem", resume=True)
    run.write_record({"status": "unfinished"})
    assert claim(str(run.path), "stem", resume=True) == run
    release(run)
    other = FORK.Process(target=lambda: sys.exit(not _refused(run.path)))
    other.start()
    other.join()
    assert other.exitcode == 0
    release(run)
    other = FORK.Process(target=lambda: sys.exit(_refused(run.path)))
    other.start()
    other.join()
    assert other.exitcode == 0


def _refused(path: Path) -> bool:
    runs._held.clear()  # of the process that this one was forked from
    try:
        claim(str(path), "stem", resume=True)
    except UserError:
        return True
    return False


# --- what was altered ---


@pytest.mark.parametrize("name", [RECORD, CONFIG, WEIGHTS])
def test_every_altered_byte_of_a_run_is_found(tmp_path: Path, name: str) -> None:
    """A flipped bit on the disk would change the predictions unnoticed."""
    run = finished(tmp_path / "run", command="distill")
    path = run.path / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        altered = bytearray(whole)
        altered[position] ^= 1 << position % 8
        path.write_bytes(bytes(altered))
        try:
            found = open_run(run.path)
        except UserError:
            continue
        assert name == RECORD, f"byte {position}: {bytes(altered)!r}"
        assert found.record() == {"command": "distill", "status": "finished"}, "another space, the same record"
    path.write_bytes(whole)
    open_run(run.path)


def test_a_record_without_its_digests_is_altered(tmp_path: Path) -> None:
    """With one letter of the key altered, nothing would be checked."""
    run = finished(tmp_path / "run")
    content = json.loads((run.path / RECORD).read_text())
    for key in ("digest", "digests"):
        (run.path / RECORD).write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        with pytest.raises(UserError, match="altered"):
            open_run(run.path)


def test_a_run_without_digests_opens(tmp_path: Path) -> None:
    """All earlier work would be lost."""
    run = finished(tmp_path / "run")
    run.write_json(RECORD, {"command": "distill", "status": "finished"})
    assert open_run(run.path).record()["command"] == "distill"
    run.accept()
    assert run.is_sealed


def test_a_users_own_change_can_be_accepted(tmp_path: Path) -> None:
    """Whoever adds the names of the classes by hand could never load the run again."""
    run = finished(tmp_path / "run")
    run.write_json(CONFIG, {"architecture": "lenet5", "label_names": ["a", "b"]})
    with pytest.raises(UserError, match=r"verify .* --accept"):
        open_run(run.path)
    run.accept()
    assert open_run(run.path).config()["label_names"] == ["a", "b"]


@pytest.mark.parametrize("moment", ["before the rename", "after it"])
def test_a_kill_around_a_checkpoint_leaves_one_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The checkpoint would count as damaged after kill -9, and the run be lost."""
    run = RunFolder(tmp_path)
    run.write_record({"status": "unfinished"})
    run.write_checkpoint({"epoch": 1})

    def killed(number: int) -> None:
        def die(*paths: Path) -> None:
            if moment == "after it":
                replace(*paths)
            if Path(paths[1]).name == CHECKPOINT:
                os._exit(9)
            if moment == "before the rename":
                replace(*paths)

        replace = os.replace
        os.replace = die
        run.write_checkpoint({"epoch": number})

    for number in (2, 3):  # twice: the digest of what never came must not push out that of what is there
        process = FORK.Process(target=killed, args=(number,))
        process.start()
        process.join()
        assert process.exitcode == 9
        assert run.read_checkpoint()["epoch"] == (1 if moment == "before the rename" else number)


def test_two_processes_never_get_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings started together would write into one run."""
    monkeypatch.chdir(tmp_path)
    each, workers = 25, 4
    barrier, queue = FORK.Barrier(workers), FORK.SimpleQueue()

    def race() -> None:
        barrier.wait()
        queue.put([claim(None, "race", resume=False).path.name for _ in range(each)])

    processes = [FORK.Process(target=race) for _ in range(workers)]
    for process in processes:
        process.start()
    made = [name for _ in processes for name in queue.get()]
    for process in processes:
        process.join()
    assert len(made) == len(set(made)) == each * workers
    assert set(made) == {"race"} | {f"race-{number}" for number in range(2, each * workers + 1)}


# --- opening ---


def test_a_finished_run_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next command could not read what this one made."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "run", command="distill")
    run = open_run("run")
    assert run.path == tmp_path / "run"
    assert run.config() == {"architecture": "lenet5"}
    assert run.record()["command"] == "distill"


def test_a_model_folder_of_others_opens(tmp_path: Path) -> None:
    """A plain timm model folder could not be a teacher."""
    run = finished(tmp_path / "run")
    (run.path / RECORD).unlink()
    assert open_run(run.path).record() == {}
    assert not run.is_finished


def test_what_cannot_be_opened_is_a_user_error(tmp_path: Path) -> None:
    """A traceback in place of what is wrong with the folder."""
    with pytest.raises(UserError, match="There is no run folder"):
        open_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no weights \(model.safetensors\)"):
        open_run(tmp_path / "empty")
    unfinished = RunFolder(tmp_path / "unfinished")
    unfinished.path.mkdir()
    unfinished.write_json(RECORD, {"status": "unfinished"})
    with pytest.raises(UserError, match="is unfinished") as caught:
        open_run(unfinished.path)
    assert f"--resume --out {unfinished.path}" in caught.value.remedy
    bare = tmp_path / "bare"
    bare.mkdir()
    RunFolder(bare).write_weights({"w": torch.ones(1)})
    with pytest.raises(UserError, match=r"has no config.json") as caught:
        open_run(bare)
    assert "--arch" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    """A traceback about JSON, without the file's name."""
    run = finished(tmp_path / "run")
    (run.path / CONFIG).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_run(run.path).config()
    assert str(run.path / CONFIG) in caught.value.problem
    assert json.dumps(caught.value.problem)
    assert "damaged" in caught.value.remedy
