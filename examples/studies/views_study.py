"""Does it matter that a student sees the same few views of the images again and again? Resumes, skips what is done::

    python examples/studies/views_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --table examples/studies/README.md

The same KD with views whose targets are computed once (``--target-views K``), and with new views each epoch, for which
the teacher is asked at every step (0). The cache is the study's own, so that the first run with kept targets is the one
that computes them. ``--front docs/caching-and-speed.md`` also writes there what was saved and what it cost.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from study import Study, arguments, mean_std, show, spread_over, teacher_of, write_between


def main() -> None:
    parser = arguments(__doc__, epochs=20)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 8], help="0: new views each epoch, no cache")
    parser.add_argument("--front", type=Path, help="file with the marks of the sentence that sums it up")
    given = parser.parse_args()
    study = Study.of(given)
    teacher = teacher_of(given)
    cache = ["--cache-dir", str(given.out / "cache")]
    learn = ["distill", *teacher, "--student", given.student, "--method", "kd", *cache]
    seeds = range(given.seeds)
    study.run(
        {
            f"views-{views}-seed{seed}": [*learn, "--target-views", str(views), "--seed", str(seed)]
            for seed in seeds  # one of each before the next seed
            for views in given.views
        }
    )

    def named(views: int) -> list[str]:
        return [f"views-{views}-seed{seed}" for seed in seeds]

    def top1(views: int) -> str:
        return mean_std(study.result(name)["top1"] for name in named(views))

    def minutes(views: int) -> list[float]:
        return [sum(study.training(name)["epoch_seconds"]) / 60 for name in named(views)]  # cut off and resumed or not

    lines = ["| views | top-1 | minutes of the first training | of the others |", "| --- | ---: | ---: | ---: |"]
    for views in given.views:
        first, *others = minutes(views)
        later = f"{statistics.mean(others):.0f}" if others else "–"
        lines.append(f"| {views or 'new each epoch'} | {top1(views)} | {first:.0f} | {later} |")
    hardware = study.training(named(given.views[0])[0])["hardware"]
    lines += [
        "",
        f"`{given.student}` by KD on the test split, {given.epochs} epochs, last epoch, {spread_over(given)}; "
        f"on {hardware}, {given.jobs} trainings at a time.",
    ]
    show(lines, given, "views")
    live, cached = given.views[0], given.views[-1]
    if given.front and len(seeds) > 1:
        usual = statistics.mean(minutes(live))
        first, *others = (each / usual for each in minutes(cached))
        text = [
            f"{given.epochs} epochs of `kd` with {cached} cached views took {first:.0%} of the time that new views in "
            f"every epoch take, and {statistics.mean(others):.0%} with the targets in the cache from an earlier run; "
            f"`{given.student}` reached {top1(cached)} % top-1 instead of {top1(live)} %."
        ]
        write_between(given.front, "views-front", text)


if __name__ == "__main__":
    main()
