"""The res-student that a search finds beside those picked by hand, of equal MACs; resumes, and skips what is done::

    python examples/studies/search_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 9 --jobs 2 --table examples/studies/README.md

One search, on one student. Then its winner, and ResNets as wide as cost the same, are trained in full on the same
student with each seed, and gated for what the search ranked them by: the sum at a third of ``--max-macs`` on top of the
student. The calibration split, on which they are compared, has chosen the winner, too; so the gated ones are scored on
the test split at last, which has had no part in any choice.
"""

from __future__ import annotations

from typing import Any

from study import Study, arguments, mean_std, nearest, show, spread_over, teacher_of


def main() -> None:
    parser = arguments(__doc__, epochs=9)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar,width=0.5")
    parser.add_argument("--max-macs", type=float, default=0.15, help="of a res-student, as a share of the teacher's")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--by-hand", nargs="+", default=["resnet8_cifar", "resnet20_cifar"], help="made as wide")
    parser.add_argument("--size", default="3x32x32", help="of the images")
    given = parser.parse_args()
    study = Study.of(given)
    views = [
        "--target-views",
        str(max(1, given.epochs // 2)),
    ]  # each is seen twice; their targets serve every res-student
    s0 = ["distill", *teacher_of(given), "--student", given.student, "--method", "reskd", *views]
    grown = ["add-res-student", study.path("s0"), *views]
    search = [*grown, "--search", "--max-macs", str(given.max_macs), "--trials", str(given.trials)]
    base = {"s0": s0}
    study.run({**base, "search": search}, score=False)

    winner = study.training("search")["members"][-1]
    wide = [nearest(family, winner["macs"], given.size) for family in given.by_hand]
    specs = dict.fromkeys([winner["architecture"], *wide])
    before = study.training("s0")["macs_ratio"]
    gate = ["--target-macs", str(round(before + given.max_macs / 3, 4)), "--measure", "auto"]
    runs, gates = dict(base), {}
    seeds = range(1, given.seeds + 1)  # not the search's own: the winner's training would be its trial again
    for seed in seeds:
        for spec in specs:
            name = _folder(spec, seed)
            runs[name] = [*grown, "--arch", spec, "--seed", str(seed)]
            gates[f"{name}-gated"] = ["gate-calibrate", study.path(name), *gate]
    study.run(runs, score=False)
    study.run(gates)

    lines = [
        "| res-student | of the teacher's MACs | both run | gated | gated, test | expected MACs, of the teacher's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for spec in specs:
        names = [_folder(spec, seed) for seed in seeds]
        full = [study.training(name) for name in names]
        gated: list[dict[str, Any]] = [study.training(f"{name}-gated") for name in names]
        share = full[0]["macs_ratio"] - before
        how = "found" if spec == winner["architecture"] else "by hand"
        expected = sum(result["expected_macs_ratio"] for result in gated) / len(gated)
        scored = [study.result(f"{name}-gated") for name in names]
        columns = (("top1", full), ("gated_top1", gated), ("top1", scored))
        tops = " | ".join(mean_std(result[key] for result in results) for key, results in columns)
        lines.append(f"| `{spec}`, {how} | {share:.3f} | {tops} | {expected:.3f} |")
    found = study.training("search")
    lines += [
        "",
        f"On `{given.student}`; top-1, on the calibration split where not said otherwise, {given.epochs} epochs a "
        f"member, last epoch, {spread_over(given)}; "
        f"`--max-macs {given.max_macs} --trials {given.trials}`, "
        f"{found['seconds'] / 60:.0f} minutes on {found['hardware']}.",
    ]
    show(lines, given, "search-table")


def _folder(spec: str, seed: int) -> str:
    return f"{spec.replace(',', '-')}-seed{seed}"


if __name__ == "__main__":
    main()
