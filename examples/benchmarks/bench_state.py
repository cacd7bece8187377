"""What a process holds for each image of a data set, measured at two sizes, and what that makes for ImageNet-22k::

    python examples/benchmarks/bench_state.py --table docs/scale.md --results examples/results/state.json

Data sets of ``--images`` images, one and the same JPEG under many names, are opened as a folder and as tar shards, and
divided, by a process for each size; an epoch is put in order, and targets of ``--classes`` classes are mapped. Python
counts the bytes (``tracemalloc``): those that stay, and the peak. Then an epoch begins with two workers, and
Linux says what all three processes hold together (as in ``bench_memory.py``). Bytes per image are the difference of the
two sizes over their difference in images: what any process needs, be there one image or many, is not in them. Seconds
are those of the processor, of files that the system has in memory. About two minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_memory import _pss
from PIL import Image
from study import write_between

CLASSES, LINKS, SHARD, SIDE = 100, 50_000, 10_000, 16
OPENED = ("folder", "shards")
LARGE, LARGE_CLASSES = 14_200_000, 21_841  # ImageNet-22k
# name in the JSON -> what the table calls it
ROWS = {
    "folder": "a folder's index: paths and labels",
    "shards": "tar shards' index: where each image lies, and labels",
    "split": "fit and calibration: numbers of the images",
    "order": "order of an epoch, and its batches",
    "targets": "cached targets, mapped from their file",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[20_000, 200_000])
    parser.add_argument("--classes", type=int, default=1000, help="width of the targets")
    parser.add_argument("--table", type=Path, help="file with the marks of the tables")
    parser.add_argument("--results", type=Path, help="file for the figures")
    parser.add_argument("--folder", help="of an earlier call, for the process that measures")
    asked = parser.parse_args()
    if asked.folder:
        print(json.dumps(_measured(Path(asked.folder), asked.classes)))
        return
    sizes = []
    for images in asked.images:
        with tempfile.TemporaryDirectory() as folder:
            _fill(Path(folder), images)
            script = [sys.executable, __file__, "--folder", folder, "--classes", str(asked.classes)]
            done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
            sizes.append({"images": images, **json.loads(done.stdout)})
            print(json.dumps(sizes[-1]), flush=True)
    found = {"sizes": sizes, "classes": asked.classes, "bytes_per_image": _slopes(*sizes)}
    if asked.results:
        asked.results.write_text(json.dumps(found, indent=1) + "\n")
    if asked.table:
        write_between(asked.table, "state", table(found))
        write_between(asked.table, "state-large", large(found))


def _fill(root: Path, images: int) -> None:
    """The same images as ``train/CLASS/…`` and as tar shards."""
    made = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made, "jpeg")
    for name in range(CLASSES):
        (root / "folder" / "train" / f"class-{name:05}").mkdir(parents=True)
    for number in range(images):
        first = root / f"image-{number // LINKS}.jpg"
        if number % LINKS == 0:
            first.write_bytes(made.getvalue())
        os.link(first, root / "folder" / "train" / f"class-{number % CLASSES:05}" / f"image_{number:08}.jpg")
    (root / "shards").mkdir()
    shard = root / "shards" / "images-train-00000.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(SHARD):
            for kind, content in (("jpg", made.getvalue()), ("cls", str(number % CLASSES).encode())):
                member = tarfile.TarInfo(f"image_{number:08}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for number in range(1, images // SHARD):
        os.link(shard, root / "shards" / f"images-train-{number:05}.tar")


def _measured(root: Path, classes: int) -> dict[str, Any]:
    """Bytes that stay and bytes on the way of each part, and MiB of a process with two workers."""
    import torch

    from kdcompress.cache import ArrayStore
    from kdcompress.data import Data, Preprocess, load_source
    from kdcompress.options import TrainingOptions

    torch.set_num_threads(1)
    prep = Preprocess((SIDE, SIDE), 3, (0.5,) * 3, (0.5,) * 3)
    options = TrainingOptions(loading="stream", workers=2)

    def opened(kind: str) -> Any:
        spec, where = ("wds/images", str(root / "shards")) if kind == "shards" else (str(root / "folder"), None)
        return load_source(spec, data_dir=where)

    def mapped() -> Any:
        with store.create({"of": "nobody"}, 0, (count, classes)) as array:
            array[0] = 1
        return store.open({"of": "nobody"}, 0, (count, classes))

    for kind in OPENED:  # what is imported on the way would count, too
        Data(opened(kind), prep, options, torch.device("cpu")).training(128, 0, "auto")
    found: dict[str, Any] = {}
    kept = [_counted(found, kind, lambda kind=kind: opened(kind)) for kind in OPENED]
    data = Data(kept[0], prep, options, torch.device("cpu"))
    batches = _counted(found, "split", lambda: data.training(128, 0, "auto"))
    count = len(batches.images.ids)
    _counted(found, "order", lambda: batches.parts(0))
    with tempfile.TemporaryDirectory() as cache:
        store = ArrayStore(Path(cache) / "targets", 1e12)
        _counted(found, "targets", mapped)
    held = list[float]()
    for number, _ in enumerate(batches.epoch(0)):
        held.append(_pss())
        if number == 20:
            break
    found["processes_mib"] = round(min(held[10:]), 1)
    return found


def _counted(found: dict[str, Any], name: str, make: Callable[[], Any]) -> Any:
    """Do something, and note seconds, and the bytes that stay and that there were at most."""
    began = time.process_time()
    make()
    seconds = time.process_time() - began
    tracemalloc.start()
    made = make()
    stay, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found[name] = {"seconds": round(seconds, 3), "bytes": stay, "peak": most}
    return made


def _slopes(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    more = large["images"] - small["images"]
    slopes: dict[str, Any] = {
        name: {key: round((large[name][key] - small[name][key]) / more, 1) for key in ("bytes", "peak")}
        for name in ROWS
    }
    for name in OPENED:
        slopes[name]["microseconds"] = round(1e6 * (large[name]["seconds"] - small[name]["seconds"]) / more, 1)
    return {**slopes, "processes": round(2**20 * (large["processes_mib"] - small["processes_mib"]) / more, 1)}


def table(found: dict[str, Any]) -> list[str]:
    """What was measured."""
    sizes, slopes = found["sizes"], found["bytes_per_image"]
    cells = [*(f"{size['images']:,} images" for size in sizes), "bytes per image", "peak while opening", "µs per image"]
    lines = [f"| | {' | '.join(cells)} |", "| --- |" + " ---: |" * 5]
    for name, text in ROWS.items():
        cells = [f"{size[name]['bytes'] / 1e6:.2f} MB" for size in sizes]
        cells += [f"{slopes[name][key]:.1f}" for key in ("bytes", "peak")]
        lines.append(f"| {text} | {' | '.join(cells)} | {slopes[name].get('microseconds', '')} |")
    cells = [f"{size['processes_mib'] * 2**20 / 1e6:.0f} MB" for size in sizes]
    text = "this process and two that read images, in all"
    lines.append(f"| {text} | {' | '.join(cells)} | {slopes['processes']:.1f} | | |")
    path = slopes["folder"]["bytes"] - 16  # its label, and where it ends
    return [
        *lines,
        "",
        f"Made by `examples/benchmarks/bench_state.py`; paths of {path:.0f} characters, targets of "
        f"{found['classes']:,} classes.",
    ]


def large(found: dict[str, Any]) -> list[str]:
    """What that makes for ImageNet-22k."""
    slopes = found["bytes_per_image"]

    def gb(number: float) -> str:
        return f"{number / 1e9:,.2f} GB" if number < 10e9 else f"{number / 1e9:,.0f} GB"

    lines = ["| ImageNet-22k | arithmetic | |", "| --- | --- | ---: |"]
    for name in ("folder", "shards", "split", "order"):
        each = slopes[name]["bytes"]
        lines.append(f"| {ROWS[name]} | 14.2 M x {each:.1f} B | {gb(LARGE * each)} |")
    for name in OPENED:
        each = slopes[name]["microseconds"]
        lines.append(f"| to open the {name} | 14.2 M x {each:.1f} µs | {LARGE * each / 1e6:.0f} s |")
    lines += [
        f"| targets of a view, on disk | 14.2 M x {LARGE_CLASSES:,} x 2 B | {gb(2 * LARGE * LARGE_CLASSES)} |",
        f"| of the eight views of `--target-views 8` | x 8 | {gb(16 * LARGE * LARGE_CLASSES)} |",
        f"| logits of the calibration split, `--holdout 0.1` | 1.42 M x {LARGE_CLASSES:,} x 4 B | "
        f"{gb(0.4 * LARGE * LARGE_CLASSES)} |",
        f"| the same, `--holdout 0.0035` | 50 k x {LARGE_CLASSES:,} x 4 B | {gb(0.014 * LARGE * LARGE_CLASSES)} |",
    ]
    return lines


if __name__ == "__main__":
    main()
