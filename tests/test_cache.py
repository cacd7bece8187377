"""The store of arrays: whole or not there, of the key that was asked for, and no larger than it may be."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdcompress import locks
from kdcompress.cache import FORMAT, KEY, ArrayStore, cached_entries, clear

pytestmark = pytest.mark.attack("a cache that is damaged, full, locked or owned by another user")

SHAPE = (5, 3)
SIZE = 2 * 5 * 3


def store(folder: Path, limit: float = 1e9) -> ArrayStore:
    return ArrayStore(folder / "targets", limit)


def fill(into: ArrayStore, key: dict[str, Any], number: int = 0, value: float = 1.0) -> None:
    with into.create(key, number, SHAPE) as array:
        array[:] = value


def flip(path: Path, position: int) -> None:
    """Alter one bit."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


def files(folder: Path) -> set[str]:
    names = {path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    return {re.sub(r"(view-\d{4})-[0-9a-f]{32}", r"\1", name) for name in names}


def test_a_written_array_is_read_again(tmp_path: Path) -> None:
    """Targets would be computed in vain, or those of another network or view used."""
    fill(store(tmp_path), {"network": "a", "size": (8, 8)}, 0, 1.5)
    fill(store(tmp_path), {"network": "a", "size": (8, 8)}, 1, 2.5)
    fill(store(tmp_path), {"network": "b", "size": (8, 8)}, 0, 3.5)
    for name, number, value in (("a", 0, 1.5), ("a", 1, 2.5), ("b", 0, 3.5)):
        found = store(tmp_path).open({"size": (8, 8), "network": name}, number, SHAPE)
        assert found is not None
        assert found.dtype == np.float16
        assert (found == value).all()
        assert not found.flags.writeable
    assert store(tmp_path).open({"network": "c", "size": (8, 8)}, 0, SHAPE) is None
    assert store(tmp_path).open({"network": "b", "size": (8, 8)}, 1, SHAPE) is None


@pytest.mark.parametrize("damage", ["key", "shape", "cut", "text", "format", "pickle"])
def test_stale_and_damaged_arrays_are_not_read(tmp_path: Path, damage: str) -> None:
    """A student would learn from another teacher, or from garbage."""
    key = {"network": "a"}
    fill(store(tmp_path), key)
    (array,) = tmp_path.rglob("*.npy")
    if damage == "key":
        (array.parent / KEY).write_text(json.dumps({"network": "of the same digest"}))
    elif damage == "cut":
        array.write_bytes(array.read_bytes()[:-7])
    elif damage == "text":
        array.write_text("no array")
    elif damage == "format":
        (tmp_path / "targets" / FORMAT).write_text(json.dumps({"version": 99}))
    elif damage == "pickle":
        np.save(array, np.array([{}] * 5), allow_pickle=True)
    shape = (6, 3) if damage == "shape" else SHAPE
    assert store(tmp_path).open(key, 0, shape) is None


def test_an_altered_array_is_reported_and_computed_again(tmp_path: Path) -> None:
    """A student would learn from logits that no teacher gave, and end with other weights."""
    key, told = {"network": "a"}, []
    fill(store(tmp_path), key)
    (array,) = tmp_path.rglob("*.npy")
    for position in range(array.stat().st_size):
        flip(array, position)
        assert store(tmp_path).open(key, 0, SHAPE) is None, f"byte {position}"
        flip(array, position)
    flip(array, 130)
    watched = ArrayStore(tmp_path / "targets", 1e9, told.append)
    assert watched.open(key, 0, SHAPE) is None
    assert watched.open(key, 0, SHAPE) is None
    assert [str(array) in text and "altered" in text for text in told] == [True]
    fill(watched, key, value=2.0)
    found = watched.open(key, 0, SHAPE)
    assert found is not None
    assert (found == 2.0).all()
    assert files(tmp_path) == {FORMAT, KEY, "view-0000.npy"}


def test_an_array_without_digest_is_computed_again(tmp_path: Path) -> None:
    """Its integrity is unknown, and it would take disk space beside the new one."""
    fill(store(tmp_path), {"network": "a"})
    (array,) = tmp_path.rglob("*.npy")
    array.rename(array.with_name("view-0000.npy"))
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is None
    fill(store(tmp_path), {"network": "a"})
    assert len(list(tmp_path.rglob("*.npy"))) == 1


@pytest.mark.parametrize("which", ["view", "key", "format", "lock"])
def test_a_pipe_in_the_cache_does_not_block(tmp_path: Path, which: str) -> None:
    """Every later run would hang."""
    fill(store(tmp_path), {"network": "a"})
    (array,) = tmp_path.rglob("*.npy")
    path = {
        "view": array,
        "key": array.parent / KEY,
        "format": tmp_path / "targets" / FORMAT,
        "lock": array.parent / ".view-0000.npy.lock",
    }[which]
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    if which != "lock":
        assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is None
    with contextlib.suppress(OSError), store(tmp_path).lock({"network": "a"}, 0):
        fill(store(tmp_path), {"network": "a"})
    assert len(cached_entries(tmp_path)) == 1
    clear(tmp_path)


def test_clear_removes_a_link_but_not_its_target(tmp_path: Path) -> None:
    """--clear would end in an error half-way, or remove what is not ours."""
    fill(store(tmp_path), {"network": "a"})
    (entry,) = store(tmp_path).entries()
    entry.folder.rename(tmp_path / "elsewhere")
    entry.folder.symlink_to(tmp_path / "elsewhere")
    clear(tmp_path)
    assert not entry.folder.is_symlink()
    assert len(list((tmp_path / "elsewhere").glob("*.npy"))) == 1


def _stopped(folder: Path) -> None:
    with store(folder).lock({"network": "a"}, 0):
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_process_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z in one shell would keep every other run waiting for ever."""
    monkeypatch.setattr(locks, "PATIENCE", 1.0)
    process = multiprocessing.get_context("fork").Process(target=_stopped, args=(tmp_path,))
    process.start()
    while not list(tmp_path.rglob("*.lock")):
        time.sleep(0.05)
    with (
        pytest.raises(OSError, match=f"process {process.pid} .*no sign of life"),
        store(tmp_path).lock({"network": "a"}, 0),
    ):
        pass
    os.kill(process.pid or 0, signal.SIGCONT)
    process.join()
    with store(tmp_path).lock({"network": "a"}, 0):
        pass


def test_a_slow_holder_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a large view would compute it a second time."""
    monkeypatch.setattr(locks, "PATIENCE", 1.5)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "RETRY", 0.05)
    order, held = [], threading.Event()

    def work() -> None:
        with store(tmp_path).lock({"network": "a"}, 0):
            held.set()
            time.sleep(2.5)
            order.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    assert held.wait(60)
    with store(tmp_path).lock({"network": "a"}, 0):
        order.append("then")
    thread.join()
    assert order == ["done", "then"]


def test_a_crash_leaves_no_half_array(tmp_path: Path) -> None:
    """The rows that were not computed yet would be zeros, and taken for logits."""

    def crash() -> None:
        with store(tmp_path).create({"network": "a"}, 0, SHAPE) as array:
            array[:2] = 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        crash()
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is None
    assert files(tmp_path) == {FORMAT, KEY}


def _killed(folder: Path) -> None:
    with store(folder).lock({"network": "a"}, 0), store(folder).create({"network": "a"}, 0, SHAPE) as array:
        array[:2] = 1
        os._exit(9)


def test_leftovers_of_a_killed_process_are_neither_read_nor_kept(tmp_path: Path) -> None:
    """A lock that outlives its holder would stop every later run, and its file fill the disk."""
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert any(name.endswith(".tmp") for name in files(tmp_path))
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is None
    with store(tmp_path).lock({"network": "a"}, 0):
        fill(store(tmp_path), {"network": "a"})
    assert files(tmp_path) == {FORMAT, KEY, "view-0000.npy"}


def test_leftovers_of_a_killed_process_can_be_evicted(tmp_path: Path) -> None:
    """Half a view that seems to be in progress would take its space forever."""
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join()
    fill(store(tmp_path, SIZE + 300), {"network": "b"})
    assert files(tmp_path) == {FORMAT, KEY, "view-0000.npy"}


def test_entries_in_use_or_needed_together_are_not_evicted(tmp_path: Path) -> None:
    """Two networks of one run would evict each other, and nothing ever be read."""
    fill(store(tmp_path), {"network": "a"})
    with (
        store(tmp_path).lock({"network": "b"}, 0),
        store(tmp_path).create({"network": "b"}, 0, SHAPE),
        pytest.raises(OSError, match="cache-size"),
        store(tmp_path, SIZE + 300).create({"network": "c"}, 0, SHAPE, spared=[{"network": "a"}]),
    ):
        pass
    assert {entry.key["network"] for entry in store(tmp_path).entries()} >= {"a", "b"}


def test_nothing_is_evicted_for_an_array_that_does_not_fit(tmp_path: Path) -> None:
    """A shared cache would be emptied, and nothing be written to it."""
    fill(store(tmp_path), {"network": "a"})
    with pytest.raises(OSError, match="cache-size"), store(tmp_path, SIZE / 2).create({"network": "b"}, 0, SHAPE):
        pass
    assert "a" in {entry.key.get("network") for entry in store(tmp_path).entries()}


def test_an_entry_with_a_held_lock_is_not_evicted(tmp_path: Path) -> None:
    """The first entry of a run that waits for its second lock would be removed."""
    with store(tmp_path).lock({"network": "a"}, 0):
        fill(store(tmp_path), {"network": "b"})
        with pytest.raises(OSError, match="cache-size"):
            fill(store(tmp_path, SIZE / 2), {"network": "c"})
        fill(store(tmp_path, SIZE + 200), {"network": "c"})
        assert {entry.key["network"] for entry in store(tmp_path).entries()} == {"a", "c"}


def test_waiting_for_a_lock_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C would have no effect while another run computes a view for minutes."""
    asked = iter(range(2))

    def waiting() -> None:
        if next(asked):
            raise KeyboardInterrupt

    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store(tmp_path).lock({"network": "a"}, 0):
            held.set()
            done.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    with pytest.raises(KeyboardInterrupt), store(tmp_path).lock({"network": "a"}, 0, waiting):
        pass
    done.set()
    other.join()


@pytest.mark.parametrize("damage", ["format", "key", "no key", "no view"])
def test_damaged_entries_are_listed_cleared_and_computed_again(tmp_path: Path, damage: str) -> None:
    """It would fill the disk unseen, or make every later run report a cache of another version."""
    fill(store(tmp_path), {"network": "a"})
    (entry,) = store(tmp_path).entries()
    if damage == "format":
        (tmp_path / "targets" / FORMAT).write_text('{"version": 99}')
    elif damage == "key":
        (entry.folder / KEY).write_text("{")
    elif damage == "no key":
        (entry.folder / KEY).unlink()
    else:
        next(entry.folder.glob("view-0000-*.npy")).unlink()
    (listed,) = cached_entries(tmp_path)
    assert (listed.kind, listed.folder) == ("targets", entry.folder)
    if damage != "format":  # nobody writes into what another version made
        fill(store(tmp_path), {"network": "a"}, 0, 3.0)
        found = store(tmp_path).open({"network": "a"}, 0, SHAPE)
        assert found is not None
        assert (found == 3.0).all()
    (tmp_path / "targets" / "photo.jpg").write_text("not ours")
    clear(tmp_path)
    assert files(tmp_path) == {"photo.jpg"}
    (tmp_path / "targets" / "photo.jpg").unlink()
    fill(store(tmp_path), {"network": "a"})
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is not None


def test_of_two_at_once_one_works_and_the_other_waits(tmp_path: Path) -> None:
    """Two runs of a sweep that start together would compute everything twice."""
    order = []

    def work(name: str) -> None:
        with store(tmp_path).lock({"network": "a"}, 0):
            order.append(f"{name} in")
            time.sleep(0.1)
            order.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = order[0][0], order[2][0]
    assert order == [f"{first} in", f"{first} out", f"{second} in", f"{second} out"]


def test_processes_that_start_together_agree_on_a_new_cache(tmp_path: Path) -> None:
    """The first runs of a sweep would take each other's new cache for a foreign folder and not use it."""

    def begin(into: ArrayStore) -> None:
        together.wait()
        with into.lock({"network": "a"}, 0):
            pass
        begun.append(into)

    begun: list[ArrayStore] = []
    for number in range(25):
        together = threading.Barrier(4)
        threads = [threading.Thread(target=begin, args=(store(tmp_path / str(number)),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(begun) == 25 * 4


def test_the_least_recently_used_entry_is_evicted_first(tmp_path: Path) -> None:
    """A cache that only grows fills the disk; one that evicts what is in use is useless."""
    for number, name in enumerate("abc"):
        fill(store(tmp_path), {"network": name})
        (place,) = [entry.folder for entry in store(tmp_path).entries() if entry.key["network"] == name]
        os.utime(place / KEY, (number, number))
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is not None, "and is used now"
    each = cached_entries(tmp_path)[0].bytes
    fill(store(tmp_path, 3.1 * each), {"network": "d"})
    left = {entry.key["network"] for entry in store(tmp_path).entries()}
    assert left == {"a", "c", "d"}


@pytest.mark.parametrize("trouble", ["limit", "foreign", "file", "not ours", "full"])
def test_a_folder_that_cannot_be_used_says_so_at_once(
    tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halfway through a view it would be too late."""
    folder = tmp_path / "targets"
    limit = 1e9
    if trouble == "limit":
        limit = SIZE - 1
    elif trouble == "file":
        folder.write_text("a file")
    elif trouble == "full":

        def full(*_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        folder.mkdir()
        (folder / (FORMAT if trouble == "foreign" else "photo.jpg")).write_text('{"version": 99}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match=r"cache|director|space|version"):
        fill(store(tmp_path, limit), {"network": "a"})
    assert store(tmp_path).open({"network": "a"}, 0, SHAPE) is None
    assert all(path.read_bytes() == content for path, content in before.items())


def test_entries_list_the_cache(tmp_path: Path) -> None:
    """Nobody could see what fills the disk."""
    fill(store(tmp_path), {"network": "a"}, 0)
    fill(store(tmp_path), {"network": "a"}, 1)
    (tmp_path / "teachers" / "lenet5").mkdir(parents=True)
    (tmp_path / "teachers" / "lenet5" / "run.json").write_text("{}")
    targets, teacher = cached_entries(tmp_path)
    assert (targets.key["network"], targets.arrays) == ("a", 2)
    assert targets.bytes == sum(path.stat().st_size for path in targets.folder.iterdir())
    assert (teacher.key["network"], teacher.bytes) == ("lenet5", 2)
    assert cached_entries(tmp_path / "nothing") == []
