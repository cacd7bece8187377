"""How much memory a folder of images needs that is streamed, by its number of images::

    python examples/benchmarks/bench_memory.py --images 20000 200000

The folders hold one and the same JPEG under many names. Each size is opened, split and streamed for some batches by a
process of its own with its workers; then targets of ``--classes`` classes are computed for as many batches, into a
cache's file for all images. Prints a line of JSON each: MiB of the processes together, shared memory counted once and
without what is mapped from files (Linux alone tells it), after the first batch, in the second half, and in the second
half with targets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between

CLASSES, LINKS = 10, 50_000  # a file system gives a file so many names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    parser.add_argument("--folder", help="of an earlier call, for the process that measures")
    asked = parser.parse_args()
    if asked.folder:
        print(json.dumps(_measured(asked.folder, asked.steps, asked.workers, asked.classes)))
        return
    head = "| images | MiB after the first batch | later | with targets | MiB of their file |"
    lines = [head, "|" + " ---: |" * 5]
    for images in asked.images:
        with tempfile.TemporaryDirectory() as folder:
            _fill(Path(folder), images, asked.side)
            options = {"steps": asked.steps, "workers": asked.workers, "classes": asked.classes, "folder": folder}
            more = [text for name, value in options.items() for text in (f"--{name}", str(value))]
            done = subprocess.run([sys.executable, __file__, *more], stdout=subprocess.PIPE, text=True, check=True)
            found = {"images": images, **json.loads(done.stdout)}
            print(json.dumps(found), flush=True)
            cells = [f"{found[name]:.0f}" for name in ("first_mib", "later_mib", "targets_mib", "file_mib")]
            lines.append(f"| {images} | {' | '.join(cells)} |")
    if asked.table:
        write_between(asked.table, "bench-memory", lines)


def _fill(root: Path, images: int, side: int) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    for name in range(CLASSES):
        (root / "train" / f"class-{name}").mkdir(parents=True)
    for number in range(images):
        first = root / f"image-{number // LINKS}.jpg"
        if number % LINKS == 0:
            picture.save(first)
        os.link(first, root / "train" / f"class-{number % CLASSES}" / f"{number:08}.jpg")


def _measured(folder: str, steps: int, workers: int, classes: int) -> dict[str, float]:
    import torch
    from torch import nn

    from kdcompress.cache import ArrayStore
    from kdcompress.data import Data, Preprocess, load_source
    from kdcompress.engine.distributed import Place
    from kdcompress.engine.targets import Targets
    from kdcompress.options import TrainingOptions

    torch.set_num_threads(1)
    before = _pss()
    source = load_source(folder)
    prep = Preprocess((224, 224), 3, (0.5,) * 3, (0.5,) * 3)
    data = Data(source, prep, TrainingOptions(loading="stream", workers=workers), torch.device("cpu"))
    batches, found, told = data.training(32, 0, "auto"), list[float](), list[float]()
    for number, _ in enumerate(batches.epoch(0)):
        found.append(_pss() - before)
        if number == steps - 1:
            break
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes)).eval()

    def enough() -> bool:
        told.append(_pss() - before)
        return len(told) > steps

    with tempfile.TemporaryDirectory() as cache:
        store = ArrayStore(Path(cache) / "targets", 1e12)
        place = Place(torch.device("cpu"), "fp32")
        Targets({"told": network}, {"told": classes}, batches, "folder", store, place, print).prepare(0, enough)
    # how many batches are on their way from the workers is a matter of chance: the least says what is always needed
    later, targets = (min(each[len(each) // 2 :]) for each in (found, told))
    values = {"first": found[0], "later": later, "targets": targets}
    file = 2 * classes * len(batches.images.ids) / 2**20
    return {f"{name}_mib": round(value, 1) for name, value in {**values, "file": file}.items()}


def _pss() -> float:
    """MiB of this process and its children, but for what is mapped from files."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for process in ["self", *children]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        sizes = {name: int(size) for name, size, _ in (line.split() for line in lines[1:])}
        total += sizes["Pss_Anon:"] + sizes["Pss_Shmem:"]
    return total / 1024


if __name__ == "__main__":
    main()
