"""LW-KD against what it has to beat; resumes, and skips what is done::

    python examples/studies/lwkd_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 4 --table examples/studies/README.md --mark lwkd-newer
    python examples/studies/lwkd_study.py OUT2 --data digits --epochs 15 \\
        --table examples/studies/README.md --mark lwkd-digits

With ``--sweep`` its options are compared instead, with one seed and on the calibration split: what the defaults were
chosen by. Without ``--teacher``, KD learns from a ``resnet32_cifar`` that is trained first. The table is made from the
runs' JSON.
"""

from __future__ import annotations

import argparse
import itertools

from study import Study, arguments, data_name, mean_std, show, spread_over, titled

from kdcompress.options import METHODS, DistillOptions

LIGHT = ["--method", "lwkd"]
ADVERSARIAL = ["--adversarial-weight", "0.1"]
VARIANTS: dict[str, list[str]] = {
    "CE": ["--method", "ce"],
    "label smoothing": ["--method", "label-smoothing"],
    "Tf-KD": ["--method", "tf-kd"],
    "KD": ["--method", "kd"],
    "LW-KD without the adversarial part": LIGHT,
    "LW-KD without KD": [*LIGHT, "--alpha", "0", *ADVERSARIAL],
    "LW-KD": [*LIGHT, *ADVERSARIAL],
}


SWEEP = {
    "temperature": ("1", "2", "4"),
    "alpha": ("0.1", "0.2", "0.5", "0.8"),
    "teacher-top1": ("90", "97", "99.5"),
    "adversarial-weight": ("0", "0.1"),
    "class-map": ("identity", "similar"),
}


def main() -> None:
    parser = arguments(__doc__, epochs=6)
    parser.add_argument("--teacher", help="of KD; trained first where it is not given")
    parser.add_argument("--student", default="resnet8_cifar")
    parser.add_argument("--without", nargs="*", default=[], choices=VARIANTS, metavar="ROW", help="rows to leave out")
    parser.add_argument("--sweep", action="store_true", help="compare options of LW-KD on the calibration split")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    parser.add_argument("--mark", default="lwkd-table")
    given = parser.parse_args()
    study = Study.of(given)
    if given.sweep:
        _sweep(study, given)
        return
    heavy = given.teacher or study.path("teacher")
    teacher = [heavy, *(["--teacher-arch", given.arch] if given.arch else [])]
    runs = {} if given.teacher or "KD" in given.without else {"teacher": ["train-teacher", "--model", "resnet32_cifar"]}
    variants = [name for name in VARIANTS if name not in given.without]
    for seed, name in itertools.product(range(given.seeds), variants):  # a seed of everything before the next
        first = teacher if name == "KD" else []
        learn = ["distill", *first, "--student", given.student, *VARIANTS[name]]
        runs[_folder(name, seed)] = [*learn, "--seed", str(seed)]
    if not given.so_far:
        study.run(runs)
    done = study.results()
    lines = [
        "| student trained by | top-1 | calibration error | teacher, s | teacher and student, s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in VARIANTS:
        folders = [folder for seed in range(given.seeds) if (folder := _folder(name, seed)) in done]
        if not folders:
            continue
        results = [study.result(folder) for folder in folders]
        fastest = min(min(study.training(folder)["epoch_seconds"]) for folder in folders)  # others use the machine, too
        entry = study.training(folders[0]).get("teacher", {})
        cost = entry.get("seconds", 0.0)
        if name == "KD":
            cost = sum(study.training("teacher")["epoch_seconds"]) if "teacher" in done else None
        shown = ["not known", "–"] if cost is None else [f"{cost:.0f}", f"{cost + given.epochs * fastest:.0f}"]
        top1, ece = (mean_std(result[key] for result in results) for key in ("top1", "ece"))
        lines.append(f"| {titled(name, folders, given)} | {top1} | {ece} | {shown[0]} | {shown[1]} |")
    hardware = next(iter(done.values()))["training"]["hardware"]
    lines += [
        "",
        f"`{given.student}` on the test split of {data_name(given)}, {given.epochs} epochs, last epoch, "
        f"{spread_over(given)}; seconds from the fastest epoch, on {hardware}.",
    ]
    show(lines, given, given.mark)


def _sweep(study: Study, given: argparse.Namespace) -> None:
    """One option at a time, the others at their defaults; the default itself comes in every group, from one run."""
    defaults, own = DistillOptions(), METHODS["lwkd"]
    usual = {"alpha": own.alpha, "temperature": own.temperature}
    runs: dict[str, list[str]] = {}
    names: dict[tuple[str, str], str] = {}
    for option, values in SWEEP.items():
        default = usual.get(option, getattr(defaults, option.replace("-", "_")))
        for value in values:
            same = value == (default if isinstance(default, str) else f"{default:g}")
            name = names[option, value] = "LW-KD" if same else f"LW-KD-{option}-{value}"
            runs[name] = ["distill", "--student", given.student, *LIGHT, *([] if same else [f"--{option}", value])]
    if not given.so_far:
        study.run(runs, score=False)
    done = study.results()
    lines = ["| option | value | calibration top-1 | entropy of the bank |", "| --- | ---: | ---: | ---: |"]
    for (option, value), name in names.items():
        if name not in done:
            continue
        found = study.training(name)
        top1, entropy = found["top1"], found["teacher"]["softened_entropy"]
        lines.append(f"| `--{option}` | {value} | {top1:.2f} | {entropy:.2f} |")
    lines += [
        "",
        f"`{given.student}`, {given.epochs} epochs, one seed; entropy in nats, softened as for the loss.",
    ]
    show(lines, given, given.mark)


def _folder(name: str, seed: int) -> str:
    return f"{name.replace(' ', '-')}-seed{seed}"


if __name__ == "__main__":
    main()
