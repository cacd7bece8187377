"""Worker processes that read images."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from pathlib import Path

import pytest

from cli.forked import script
from kdcompress.data.workers import PRELOADED, with_parent

FORK_SERVER = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system has no fork server"
)
# the processor time that a worker has taken before its first image
STARTED_BY_A_SERVER = """
import multiprocessing, resource
from torch.utils.data import DataLoader, Dataset
from kdcompress.data.workers import with_parent

class Images(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        import timm.data, torch
        import kdcompress.data.batches
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver", force=True)
    took = []
    for epoch in range(2):
        loader = DataLoader(Images(), batch_size=1, num_workers=1, collate_fn=list, worker_init_fn=with_parent(1))
        took += [each for batch in loader for each in batch]
    assert max(took) < 0.5, took
    print("ok")
"""


@FORK_SERVER
def test_workers_of_a_fork_server_need_not_import_torch(tmp_path: Path) -> None:
    """From Python 3.14 on that is how processes start: each epoch would begin with seconds of imports."""
    (tmp_path / "started.py").write_text(STARTED_BY_A_SERVER)
    done = script(tmp_path / "started.py", [], tmp_path)
    assert (done.status, done.out) == (0, "ok\n"), done.err


@FORK_SERVER
def test_what_the_caller_lets_the_server_import_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that has its own library imported once would import it in each worker again."""
    asked: list[list[str]] = []
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda **_: "forkserver")
    monkeypatch.setattr(multiprocessing, "set_forkserver_preload", asked.append)
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", ["theirs", "torch"])
    with_parent(0)
    assert not asked, "nobody is started"
    with_parent(2)
    assert asked[0][:2] == ["theirs", "torch"]
    assert set(PRELOADED) <= set(asked[0])
    assert len(set(asked[0])) == len(asked[0])
