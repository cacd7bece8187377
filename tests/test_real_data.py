"""A real teacher on real data; skipped where the data are not at hand."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

import kdcompress

DATA = Path(__file__).parents[2] / "shared" / "data"
TEACHER = DATA / "resnet56-cifar10.safetensors"


@pytest.mark.skipif(not TEACHER.exists(), reason="CIFAR-10 and its teacher are not at hand")
def test_a_foreign_checkpoint_scores_what_it_is_known_to_score(tmp_path: Path) -> None:
    """Reading, resizing, normalising or the network itself would not be what the teacher was trained with.

    It is right on 90.27 % of the 10 000 test images, and on 90.15 % of every fifth of them, which are enough to tell.
    """
    with zipfile.ZipFile(DATA / "cifar10.zip") as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        test = sorted(name for name in names if "/test/" in f"/{name}")[::5]
        train = {name.rsplit("/", 1)[0]: name for name in names if "/train/" in f"/{name}"}.values()
        archive.extractall(tmp_path, [*test, *train])
    root = next(tmp_path.rglob("test")).parent
    found = kdcompress.evaluate(run=str(TEACHER), arch="resnet56_cifar,shortcut=A", data=str(root), device="cpu")
    assert found.n == 2000
    assert found.top1 == pytest.approx(90.15, abs=0.1)
    assert found.macs == pytest.approx(126.5e6, rel=0.02)
