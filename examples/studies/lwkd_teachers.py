"""What the lightweight teacher of LW-KD costs and has to tell, for several numbers of classes::

    python examples/studies/lwkd_teachers.py 10 100 1000 --table examples/studies/README.md

Each is trained anew, in a cache of its own that is thrown away.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from study import write_between

from kdcompress.api.job import Job
from kdcompress.api.recipes.light_teacher import bank_images, light_teacher, soft_targets
from kdcompress.data import load_source
from kdcompress.engine.progress import Silent
from kdcompress.methods.lwkd import SoftTargetBank
from kdcompress.options import DistillOptions

TEMPERATURE = 4.0  # of a softened loss
HEAD = "| classes | seconds | epochs | top-1 | bank: images a class | seconds | entropy | at temperature 4 |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classes", nargs="+", type=int)
    parser.add_argument("--teacher-top1", type=float, default=DistillOptions().teacher_top1)
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    given = parser.parse_args()
    options = DistillOptions(method="lwkd", teacher_top1=given.teacher_top1, precision="fp32")
    lines = [HEAD, "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for classes in given.classes:
        with tempfile.TemporaryDirectory() as folder:
            options.cache_dir = folder
            lines.append(_row(classes, options))
        print(lines[-1], flush=True)
    hardware = Job.begin("distill", "lwkd", options, None).place.describe()
    lines += ["", f"`--teacher-top1 {given.teacher_top1:g}`; entropies in nats; on {hardware}."]
    if given.table:
        write_between(given.table, "lwkd-teachers", lines)


def _row(classes: int, options: DistillOptions) -> str:
    job = Job.begin("distill", "lwkd", options, None)
    began = time.perf_counter()
    teacher = light_teacher(classes, options, job.place, Silent())
    made = time.perf_counter()
    images = bank_images(classes, None)
    bank = SoftTargetBank(soft_targets(teacher, images, options, job, load_source("digits")))
    done = time.perf_counter()
    top1, epochs = teacher.record["result"]["top1"], len((teacher.path / "metrics.csv").read_text().splitlines()) - 1
    cells = [classes, f"{made - began:.0f}", epochs, f"{top1:.1f}", images, f"{done - made:.0f}"]
    return f"| {' | '.join(map(str, cells))} | {bank.entropy():.3f} | {bank.entropy(TEMPERATURE):.2f} |"


if __name__ == "__main__":
    main()
