"""What images without labels are worth, at an equal number of steps; resumes, and skips what is done::

    python examples/studies/unlabelled_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --table examples/studies/README.md

Of the training images 100 a class keep their labels; 1,000 others a class lose them. A step has as many images in all
rows, so that a row with more images takes fewer epochs.
"""

from __future__ import annotations

import math
from pathlib import Path

from study import Study, arguments, mean_std, show, spread_over, teacher_of, titled

LABELLED, UNLABELLED = 100, 1000  # images a class
BATCH = 64


def main() -> None:
    parser = arguments(__doc__, epochs=40)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar")
    parser.add_argument("--steps", type=int, nargs="+", default=[240, 1560])
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    given = parser.parse_args()
    few, more = given.out / "few", given.out / "more"
    _divide(Path(given.data).resolve(), few, more)
    given.data = str(few)
    study = Study.of(given)
    classes = len(list((few / "train").iterdir()))
    fit = 0.9 * LABELLED * classes  # without the calibration split
    for seed in range(given.seeds) if not given.so_far else ():
        for steps in given.steps:
            for with_more in (False, True):
                images = fit + with_more * UNLABELLED * classes
                epochs = max(1, round(steps / math.ceil(images / BATCH)))
                learn = ["distill", *teacher_of(given), "--student", given.student, "--batch-size", str(BATCH)]
                own = [
                    "--epochs",
                    str(epochs),
                    "--seed",
                    str(seed),
                    *(["--unlabelled", str(more)] if with_more else []),
                ]
                study.run({_run(steps, with_more, seed): [*learn, *own]})
    done = study.results()
    lines = ["| steps | labelled images alone | with unlabelled ones | gain |", "| ---: | ---: | ---: | ---: |"]
    for steps in given.steps:
        pairs = [
            [study.result(_run(steps, with_more, seed))["top1"] for with_more in (False, True)]
            for seed in range(given.seeds)
            if all(_run(steps, with_more, seed) in done for with_more in (False, True))
        ]
        if pairs:
            alone, both = zip(*pairs, strict=True)
            gain = mean_std(more - less for less, more in pairs)
            lines.append(f"| {titled(str(steps), pairs, given)} | {mean_std(alone)} | {mean_std(both)} | {gain} |")
    lines += [
        "",
        f"`{given.student}` by KD, test split, last epoch, {spread_over(given)}; "
        f"{LABELLED} labelled and {UNLABELLED:,} unlabelled images a class; {study.machines()}.",
    ]
    show(lines, given, "unlabelled")


def _divide(data: Path, few: Path, more: Path) -> None:
    """Folders of links: the first images of each class with labels, the next ones without."""
    if more.exists():
        return
    for folder in sorted((data / "train").iterdir()):
        images = sorted(folder.iterdir())
        (few / "train" / folder.name).mkdir(parents=True)
        more.mkdir(parents=True, exist_ok=True)
        for image in images[:LABELLED]:
            (few / "train" / folder.name / image.name).symlink_to(image)
        for image in images[LABELLED : LABELLED + UNLABELLED]:
            (more / f"{folder.name}-{image.name}").symlink_to(image)
    (few / "test").symlink_to(data / "test")


def _run(steps: int, with_more: bool, seed: int) -> str:
    return f"{'both' if with_more else 'alone'}-{steps}-seed{seed}"


if __name__ == "__main__":
    main()
