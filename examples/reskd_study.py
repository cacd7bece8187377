"""A gated ResKD cascade against single students of the same MACs; resumes, and skips what is done::

    python examples/reskd_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 30 --jobs 2 --table examples/README.md

The logit loss is chosen first: the one whose single student is best on the calibration split (one seed, a third of the
epochs). Then for each seed, all by this loss: S0, its res-students, gates at several budgets, and for some of these
budgets the cascade polished, and a single student as dear as it may be on average, trained on labels and by KD, too.
The oracle stops each image at the first member that is right: no gate can do better.
"""

from __future__ import annotations

import itertools
from typing import Any

from gate_promise import collected
from study import Study, arguments, mean_std, nearest, show, teacher_of

from kdcompress.options import LOGIT_LOSSES

SINGLE = "resnet20_cifar"


def main() -> None:
    parser = arguments(__doc__, epochs=30)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar,width=0.5")
    parser.add_argument("--res-students", nargs="+", default=["resnet8_cifar", "resnet20_cifar", "resnet14_cifar"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.18, 0.22, 0.26, 0.3, 0.36])
    parser.add_argument("--singles", type=float, nargs="+", default=[0.18, 0.36], help="budgets of single students")
    parser.add_argument("--polish-epochs", type=int, help="of all members together (default: a fifth of --epochs)")
    parser.add_argument("--size", default="3x32x32", help="of the images")
    given = parser.parse_args()
    study = Study.of(given)
    teacher = teacher_of(given)
    seeds = range(given.seeds)

    if "teacher" not in study.results():
        arch = ["--arch", given.arch] if given.arch else []
        study.keep("teacher", study.call("eval", given.teacher, *arch, "--data", given.data))
    teacher_macs = study.result("teacher")["macs"]
    specs = {budget: nearest(SINGLE, budget * teacher_macs, given.size) for budget in given.singles}
    short = ["--epochs", str(max(1, given.epochs // 3))]
    tried = {loss: _distill(teacher, specs[given.singles[0]], "kd", 0, loss) for loss in LOGIT_LOSSES}
    study.run({f"loss-{loss}": [*command, *short] for loss, command in tried.items()}, score=False)
    best = max(tried, key=lambda loss: study.training(f"loss-{loss}")["top1"])

    names = ["s0"]
    for _ in given.res_students:
        names.append(f"{names[-1]}-r{len(names)}")
    polishing = ["--epochs", str(given.polish_epochs or max(1, given.epochs // 5)), "--logit-loss", best]
    losses = list(dict.fromkeys([best, "kl", "ce"]))
    for seed in seeds:  # everything of a seed before the next one
        chain = {f"s0-{seed}": _distill(teacher, given.student, "reskd", seed, best)}
        for (before, name), arch in zip(itertools.pairwise(names), given.res_students, strict=True):
            grown = ["add-res-student", study.path(f"{before}-{seed}"), "--arch", arch, "--logit-loss", best]
            chain[f"{name}-{seed}"] = [*grown, "--seed", str(seed)]
        singles = {
            _folder(budget, loss, seed): _distill(teacher, specs[budget], "ce" if loss == "ce" else "kd", seed, loss)
            for loss, budget in itertools.product(losses, given.singles)
        }
        full = f"{names[-1]}-{seed}"
        gates, polished = {}, {}
        for budget in sorted({*given.budgets, *given.singles}):
            target = ["--target-macs", str(budget), "--measure", "auto"]
            gates[f"{full}-gated-{budget}"] = ["gate-calibrate", study.path(full), *target]
        for budget in given.singles:
            gated = f"{full}-gated-{budget}"
            polished[f"{gated}-polished"] = ["polish", study.path(gated), *polishing]
        study.run(dict([*_alternating(chain, singles), *gates.items(), *polished.items()]))
        if f"{full}-oracle" not in study.results():
            study.keep(f"{full}-oracle", _oracle(study.path(full)))

    rows: list[tuple[str, list[dict[str, Any]]]] = [("teacher", [study.result("teacher")])]
    for name in names:
        members = [given.student, *given.res_students][: len(name.split("-"))]
        title = "S0 alone, " if name == "s0" else "all run: "
        rows.append((title + " + ".join(f"`{m}`" for m in members), [study.result(f"{name}-{seed}") for seed in seeds]))
    for budget in given.budgets:
        found = [study.result(f"{names[-1]}-{seed}-gated-{budget}") for seed in seeds]
        rows.append((f"**gated, `--target-macs {budget}`**", found))
    for budget in given.singles:
        found = [study.result(f"{names[-1]}-{seed}-gated-{budget}-polished") for seed in seeds]
        rows.append((f"**gated, `--target-macs {budget}`, polished**", found))
    for budget, loss in itertools.product(given.singles, reversed(losses)):
        found = [study.result(_folder(budget, loss, seed)) for seed in seeds]
        rows.append((f"`{specs[budget]}`, {'labels' if loss == 'ce' else f'KD ({loss})'}", found))
    rows.append(("oracle gate", [study.result(f"{names[-1]}-{seed}-oracle") for seed in seeds]))
    lines = ["| | top-1 | MACs, M | of the teacher |", "| --- | ---: | ---: | ---: |"]
    for name, results in rows:
        macs = sum(result.get("expected_macs") or result["macs"] for result in results) / len(results)
        top1 = mean_std(result["top1"] for result in results)
        lines.append(f"| {name} | {top1} | {macs / 1e6:.1f} | {macs / teacher_macs:.1%} |")
    lines += [
        "",
        f"Test split, {given.epochs} epochs a member, last epoch, {given.seeds} seed(s), mean ± deviation; the "
        f"cascade's logit loss is {best}.",
    ]
    show(lines, given, "reskd-table")


def _distill(teacher: list[str], student: str, method: str, seed: int, loss: str = "kl") -> list[str]:
    first = [] if method == "ce" else teacher
    logits = ["--logit-loss", loss] if loss not in ("ce", "kl") else []
    return ["distill", *first, "--student", student, "--method", method, *logits, "--seed", str(seed)]


def _folder(budget: float, loss: str, seed: int) -> str:
    return f"single-{budget}-{loss}-{seed}"


def _alternating(one: dict[str, list[str]], other: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """A run of one after each of the other, so that nobody waits for what a chain stands on."""
    pairs = itertools.zip_longest(one.items(), other.items())
    return [each for pair in pairs for each in pair if each is not None]


def _oracle(run: str) -> dict[str, float]:
    """Each image stops at the first member with which it is right, or at once if there is none."""
    logits, labels, macs, _ = collected(run, ("test",))
    right = logits.cumsum(0).argmax(-1) == labels
    stops = right.int().argmax(0)  # 0 where none is right
    spent = [sum(macs[: stage + 1]) for stage in range(len(macs))]
    costs = sum(spent[stage] for stage in stops.tolist()) / len(labels)
    return {"top1": 100 * float(right.any(0).float().mean()), "macs": costs}


if __name__ == "__main__":
    main()
