"""What the default recipe is worth, beside SGD and beside an earlier version; resumes, and skips what is done::

    git worktree add ../former f9d5f80  # before alternating flips and Muon
    python examples/studies/recipe_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --former ../former/src --table examples/studies/README.md

A student by KD, with new views in each epoch whose targets are cached for all runs of one version.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from study import Study, arguments, mean_std, show, spread_over, teacher_of, titled

FORMER = "SGD, flips at random (version before)"
ROWS = {FORMER: ["--opt", "sgd"], "SGD": ["--opt", "sgd"], "default": []}


def main() -> None:
    parser = arguments(__doc__, epochs=6)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet20_cifar")
    parser.add_argument("--former", type=Path, help="src folder of an earlier version")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    given = parser.parse_args()
    study = Study.of(given)
    earlier = dataclasses.replace(study, environment={"PYTHONPATH": str(given.former)})
    cache = ["--cache-dir", str(given.out / "cache"), "--target-views", str(given.epochs)]
    learn = ["distill", *teacher_of(given), "--student", given.student, "--method", "kd", *cache]
    for seed in range(given.seeds) if not given.so_far else ():  # a seed of everything before the next
        for name, own in ROWS.items():
            if name != FORMER or given.former:
                made = earlier if name == FORMER else study
                made.run({_run(name, seed): [*learn, *own, "--seed", str(seed)]})
    done = study.results()
    lines = ["| recipe | top-1 | above the version before |", "| --- | ---: | ---: |"]
    for name in ROWS:
        found = {seed: study.result(run) for seed in range(given.seeds) if (run := _run(name, seed)) in done}
        if not found:
            continue
        before = {seed: study.result(run) for seed in found if (run := _run(FORMER, seed)) in done}
        above = mean_std(found[seed]["top1"] - before[seed]["top1"] for seed in before) if before else "–"
        top1 = mean_std(each["top1"] for each in found.values())
        shown = "–" if name == FORMER else above
        lines.append(f"| {titled(name, found, given)} | {top1} | {shown} |")
    lines += [
        "",
        f"`{given.student}` by KD on the test split, {given.epochs} epochs, last epoch, {spread_over(given)}; "
        f"{study.machines()}.",
    ]
    show(lines, given, "recipe")


def _run(name: str, seed: int) -> str:
    return f"{name.split(',')[0].lower()}{'-former' if name == FORMER else ''}-seed{seed}"


if __name__ == "__main__":
    main()
