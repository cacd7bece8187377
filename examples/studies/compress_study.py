"""Whether ``compress`` reaches what a person reaches by hand in the same time; resumes, and skips what is done::

    python examples/studies/compress_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 40 --table examples/studies/README.md

By hand: a pair that earlier studies found to be good for this budget, ``--epochs`` for each member, and a gate that
keeps the budget on new images as surely as that of ``compress``. The pair must be known beforehand; ``compress`` finds
out. ``--jobs 2`` does both at the same time, with half of the cores each. Leave the machine alone meanwhile: the time
is part of the result.
"""

from __future__ import annotations

from typing import Any

from study import Study, arguments, mean_std, show, spread_over, teacher_of, titled

HAND = ["first", "pair", "gated"]
KEPT = ["--confidence-level", "0.9"]
FIRST, SECOND = "resnet8_cifar,shortcut=A", "resnet20_cifar,shortcut=A"


def main() -> None:
    parser = arguments(__doc__, epochs=40)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--target-macs", default="0.25")
    parser.add_argument("--time-budget", default="60m")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    given = parser.parse_args()
    study = Study.of(given)
    budget = ["--target-macs", given.target_macs]
    for seed in range(given.seeds) if not given.so_far else ():
        own = ["--seed", str(seed)]
        place = ["--data", given.data, "--precision", given.precision]
        start = ["--from-teacher", "--logit-loss", "mse", *own, "--cache-dir", str(given.out / "by-hand")]
        first, pair = f"first-seed{seed}", f"pair-seed{seed}"
        study.run(
            {
                f"compress-seed{seed}": [
                    *("compress", *teacher_of(given), *budget, "--time-budget", given.time_budget, "--yes"),
                    *(*place, "--cache-dir", str(given.out / "compress"), *own),
                ],
                first: ["distill", *teacher_of(given), "--method", "reskd", "--student", FIRST, *start],
                pair: ["add-res-student", study.path(first), "--arch", SECOND, *start],
                f"gated-seed{seed}": ["gate-calibrate", study.path(pair), *budget, "--measure", "auto", *KEPT],
            }
        )
    done = study.results()
    lines = ["| | top-1 | of the teacher's MACs | minutes |", "| --- | ---: | ---: | ---: |"]
    by_hand = f"by hand: `{FIRST}` + `{SECOND}`, {given.epochs} epochs each"
    for name, runs in ((f"`compress --time-budget {given.time_budget}`", ["compress"]), (by_hand, HAND)):
        seeds = [seed for seed in range(given.seeds) if all(f"{run}-seed{seed}" in done for run in runs)]
        if not seeds:
            continue
        last = [study.result(f"{runs[-1]}-seed{seed}") for seed in seeds]
        minutes = [sum(study.training(f"{run}-seed{seed}")["seconds"] for run in runs) / 60 for seed in seeds]
        ratios = [each.get("expected_macs_ratio") or each["macs_ratio"] for each in last]
        values = mean_std(each["top1"] for each in last), sum(ratios) / len(ratios), sum(minutes) / len(minutes)
        lines.append(f"| {titled(name, seeds, given)} | {values[0]} | {values[1]:.3f} | {values[2]:.0f} |")
    compressed = [study.training(name) for name in done if name.startswith("compress")]
    won = "; ".join(map(_chosen, compressed))
    lines += [
        "",
        f"Test split, `--target-macs {given.target_macs}`, {spread_over(given)}; on "
        f"{compressed[0]['hardware']}. What `compress` chose: {won}.",
    ]
    show(lines, given, "compress")


def _chosen(found: dict[str, Any]) -> str:
    """The networks that won."""
    return next(f"{found['form']}, `{row['networks']}`" for row in found["contenders"] if row.get("chosen"))


if __name__ == "__main__":
    main()
