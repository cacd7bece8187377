"""Does it matter that a student sees the same few views of the images again and again? Resumes, skips what is done::

    python examples/views_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --table examples/README.md

The same KD with views whose targets are computed once (``--target-views K``), and with new views each epoch, for which
the teacher is asked at every step (0). The cache is the study's own, so that the first run with kept targets is the one
that computes them.
"""

from __future__ import annotations

import statistics

from study import Study, arguments, mean_std, show, teacher_of


def main() -> None:
    parser = arguments(__doc__, epochs=20)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 8], help="0: new ones each epoch")
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
    lines = ["| views | top-1 | minutes of the first run | of the others |", "| --- | ---: | ---: | ---: |"]
    for views in given.views:
        names = [f"views-{views}-seed{seed}" for seed in seeds]
        top1 = mean_std(study.result(name)["top1"] for name in names)
        first, *others = [study.training(name)["seconds"] / 60 for name in names]
        later = f"{statistics.mean(others):.0f}" if others else "–"
        lines.append(f"| {views or 'new each epoch'} | {top1} | {first:.0f} | {later} |")
    lines += [
        "",
        f"`{given.student}` by KD on the test split, {given.epochs} epochs, last epoch, {given.seeds} seed(s), mean ± "
        f"standard deviation; on {study.training(names[0])['hardware']}.",
    ]
    show(lines, given, "views")


if __name__ == "__main__":
    main()
