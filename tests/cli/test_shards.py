"""Tar shards as data: from the command line, and shared by two processes."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.conftest import Cli
from cli.ranks import job
from cli.shell import TINY

COUNTED = """
import json, os
from pathlib import Path
import numpy as np
import torch
from torch import nn
from kdcompress.cache import ArrayStore
from kdcompress.data import Data, Preprocess, load_source
from kdcompress.engine.distributed import start
from kdcompress.engine.targets import Targets
from kdcompress.options import TrainingOptions

place = start("cpu", "fp32")
options = TrainingOptions(loading="stream", workers=0)
prep = Preprocess((8, 8), 3, (0.5,) * 3, (0.5,) * 3)
data = Data(load_source("wds/photos", data_dir="shards"), prep, options, place.device, place.rank, place.world)
network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
seen, found = [], {}
network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
for split in ("training", "calibration"):
    batches = data.training(8, 0, "auto") if split == "training" else data.evaluation(split, 8)
    store = ArrayStore(Path("targets"), 1e9)
    targets = Targets({"told": network}, {"told": 3}, batches, data.source.fingerprint, store, place, print)
    for view in (0, 1, 0)[: 3 if split == "training" else 1]:
        targets.prepare(view, lambda: False)
        found[f"{split} {view}"] = found.get(f"{split} {view}", []) + [sum(seen)]
        seen.clear()
    found[split] = targets.rows_of(np.arange(targets.count))["told"].tolist()
with open(f"found-{os.environ.get('RANK', 'alone')}.json", "w") as file:
    json.dump(found, file)
"""


def write_shards(root: Path, shards: int = 3, each: int = 17) -> None:
    """Images of two classes, dark and bright ones."""
    rng = np.random.default_rng(0)
    root.mkdir()
    for split, count in (("train", shards), ("test", 1)):
        for shard in range(count):
            with tarfile.open(root / f"photos-{split}-{shard:04}.tar", "w") as tar:
                for number in range(each):
                    label, made = number % 2, io.BytesIO()
                    Image.fromarray((rng.integers(0, 128, (8, 8, 3)) + 128 * label).astype(np.uint8)).save(made, "png")
                    for kind, content in (("png", made.getvalue()), ("cls", str(label).encode())):
                        member = tarfile.TarInfo(f"{shard}/{number:04}.{kind}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))


def test_shards_from_the_command_line(here: Path, cli: Cli) -> None:
    """A data set in shards would have to be unpacked into a million files first."""
    write_shards(here / "shards")
    data = ("--data", "wds/photos", "--data-dir", "shards")
    described = cli("data", "wds/photos", "--data-dir", "shards").result
    assert (described["fit"], described["calibration"], described["test"]) == (46, 5, 17)
    run = cli("train-teacher", "--model", TINY, *data, "--epochs", 2, "--loading", "stream", "--workers", 0).result
    assert (run["data"], run["num_classes"], run["n"]) == ("wds/photos", 2, 5)
    student = cli("distill", run["run"], "--student", TINY, "--epochs", 2, "--target-views", 2, "--workers", 0).result
    assert cli("eval", student["run"]).result["n"] == 17
    (here / "shards" / "photos-train-0001.tar").write_bytes(b"\0" * 100)
    cli("distill", run["run"], "--student", TINY).error("photos-train-0001.tar", "cut off")


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch without gloo")
def test_each_process_computes_its_share_once(here: Path) -> None:
    """Each host would ask the teacher about all images, or about some of them twice; or the rows be mixed up."""
    write_shards(here / "shards")
    (here / "counted.py").write_text(COUNTED)
    assert job("", here, "counted.py").status == 0
    two = [json.loads((here / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    wanted = {"training 0": 46, "training 1": 46, "calibration 0": 5}
    for view, images in wanted.items():
        first, second = (each[view][0] for each in two)
        assert first + second == images, view
        assert abs(first - second) <= 1, view
    assert two[0]["training 0"][1] == two[1]["training 0"][1] == 0, "a view was computed again"
    assert two[0]["training"] == two[1]["training"]
    shutil.rmtree(here / "targets")
    runpy.run_path("counted.py")
    alone = json.loads((here / "found-alone.json").read_text())
    assert {view: alone[view][0] for view in wanted} == wanted
    assert all(alone[split] == two[0][split] for split in ("training", "calibration"))
