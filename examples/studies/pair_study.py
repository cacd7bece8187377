"""A ResKD pair, gated, beside what costs as much: a single student, and the first member with the teacher behind it::

    python examples/studies/pair_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 8 --table examples/studies/README.md --mark pair-cifar10

For each seed: S0 and its res-student R1 with ``--epochs`` each; R1 once more on the half of the images that S0 is least
sure of (``--focus``), for as many epochs and for as many images; and, for as many epochs as S0 and R1 together, single
students, and S0 with the teacher behind it. Everything starts from the teacher's layers, where any fit. At each budget
a gate is calibrated for each cascade, for the pair with a learned measure, too. The single student that they are
compared with may cost up to a fifth more, never less. ``--so-far`` trains nothing, and makes the table of what is done.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from study import Study, arguments, data_name, mean_std, show, spread_over, teacher_of, titled

import kdcompress

START = ["--from-teacher", "--logit-loss"]
SUMMED, ALONE = "mse", "standardized-kl"  # the best for logits that are summed, and for a student alone
VIEWS = 8  # of the images, with the teacher's targets: the networks of a seed share them
FOCUS = "0.5"
SEEN = 0.55  # of the images by an epoch of that: a tenth of the others is drawn as well
DEARER = 1.2  # that a single student may be than a gate that is compared with it
LONGER = "focused-longer"
# gates at each budget: title, cascade, measure
GATES = (
    ("gated pair", "pair", "auto"),
    ("gated pair, learned measure", "pair", "learned"),
    (f"gated pair, R1 by `--focus {FOCUS}`", "focused", "auto"),
    (f"gated pair, R1 by `--focus {FOCUS}` for as many images in all", LONGER, "auto"),
    ("S0, then the teacher", "handover", "auto"),
    ("S0 trained for longer, then the teacher", "longer-handover", "auto"),
)
SHORTER = "handover"  # of an earlier version, as it was kept: of S0 as the pair has it
Results = dict[int, dict[str, Any]]  # what eval said, by seed


def main() -> None:
    parser = arguments(__doc__, epochs=8)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--first", default="resnet8_cifar,shortcut=A", help="S0")
    parser.add_argument("--second", default="resnet20_cifar,shortcut=A", help="R1")
    singles = ["resnet14_cifar,shortcut=A", "resnet8_cifar,width=1.25,shortcut=A"]
    parser.add_argument("--singles", nargs="+", default=singles)
    budgets = [0.15, 0.1804, 0.2107]  # of ResNet-56, the singles have the first and the last
    parser.add_argument("--budgets", type=float, nargs="+", default=budgets, help="shares of the teacher's MACs")
    parser.add_argument("--size", default="3x32x32", help="of the images")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    parser.add_argument("--mark", default="pair-cifar10", help="of the table in that file")
    given = parser.parse_args()
    study = _study(given)
    if "teacher" not in study.results():
        arch = ["--arch", given.arch] if given.arch else []
        study.keep("teacher", study.call("eval", given.teacher, *arch, "--data", given.data))
    if not given.so_far:
        for seed in range(given.seeds):
            study.run(_runs(study, given, seed))
    _table(study, given)


def _study(given: argparse.Namespace) -> Study:
    """One whose trainings share the teacher's targets; the runs kept before this had new views in each epoch."""
    study = Study.of(given)
    return dataclasses.replace(study, common=[*study.common, "--target-views", str(VIEWS)])


def _runs(study: Study, given: argparse.Namespace, seed: int) -> dict[str, list[str]]:
    """Everything of a seed."""

    def path(name: str) -> str:
        return study.path(f"{name}-seed{seed}")

    teacher, own = teacher_of(given), ["--seed", str(seed), "--cache-dir", str(given.out / "cache")]
    start = [*START, SUMMED, *own]
    arch = ["--arch", given.arch] if given.arch else []
    longer = ["--epochs", str(2 * given.epochs)]
    second = ["add-res-student", path("first"), "--arch", given.second, *start]
    runs = {
        "first": ["distill", *teacher, "--method", "reskd", "--student", given.first, *start],
        "pair": second,
        "focused": [*second, "--focus", FOCUS],
        LONGER: [*second, "--focus", FOCUS, "--epochs", str(_longer(given))],
        "longer": ["distill", *teacher, "--student", given.first, *START, ALONE, *own, *longer],
        "longer-handover": ["cascade", path("longer"), given.teacher, *arch, "--data", given.data],
    }
    for budget in given.budgets:
        for _, cascade, measure in GATES:
            if cascade == SHORTER:
                continue
            target = ["--target-macs", str(budget), "--measure", measure]
            runs[_gate(cascade, measure, budget)] = ["gate-calibrate", path(cascade), *target]
    for spec in given.singles:
        runs[_single(spec)] = ["distill", *teacher, "--student", spec, *START, ALONE, *own, *longer]
    return {f"{name}-seed{seed}": command for name, command in runs.items()}


def _longer(given: argparse.Namespace) -> int:
    """Epochs of R1 by --focus in which it sees as many images as in ``--epochs`` without."""
    return int(given.epochs / SEEN)


def _gate(cascade: str, measure: str, budget: float) -> str:
    return f"{cascade}-{measure}-{budget}"


def _single(spec: str) -> str:
    return f"single-{spec.split(',')[0]}"


def _table(study: Study, given: argparse.Namespace) -> None:
    done, whole = study.results(), study.result("teacher")["macs"]
    shares = {spec: kdcompress.profile_flops(model=spec, input_size=given.size).macs / whole for spec in given.singles}

    def found(name: str) -> Results:
        folders = {seed: f"{name}-seed{seed}" for seed in range(given.seeds)}
        return {seed: done[folder]["eval"] for seed, folder in folders.items() if folder in done}

    def row(title: str, results: Results, epochs: int | None, single: Results | None = None) -> list[str]:
        if not results:
            return []
        macs = sum(each.get("expected_macs") or each["macs"] for each in results.values()) / len(results)
        both = results.keys() & (single or {}).keys()
        above = mean_std(results[seed]["top1"] - single[seed]["top1"] for seed in sorted(both)) if both else "–"
        title = titled(title, results, given) if epochs is not None else title
        top1 = mean_std(each["top1"] for each in results.values())
        return [f"| {title} | {top1} | {above} | {macs / 1e6:.1f} | {macs / whole:.1%} | {epochs or '–'} |"]

    teacher = {0: study.result("teacher")}
    lines = [
        "| | top-1 | above the single | MACs, M | of the teacher | epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *row("teacher", teacher, None),
        *row(f"S0 alone, `{given.first}`", found("first"), given.epochs),
        *row(f"both run: S0 + R1, `{given.second}`", found("pair"), 2 * given.epochs),
        *row(f"both run, R1 by `--focus {FOCUS}`", found("focused"), 2 * given.epochs),
        *row(
            f"both run, R1 by `--focus {FOCUS}` for as many images in all", found(LONGER), given.epochs + _longer(given)
        ),
    ]
    for spec in given.singles:
        lines += row(f"single `{spec}`", found(_single(spec)), 2 * given.epochs)
    for budget in given.budgets:
        dearer = [spec for spec in given.singles if budget <= shares[spec] + 1e-4 <= DEARER * budget]
        single = found(_single(min(dearer, key=lambda spec: shares[spec]))) if dearer else {}
        for title, cascade, measure in GATES:
            epochs = {SHORTER: given.epochs, LONGER: given.epochs + _longer(given)}.get(cascade, 2 * given.epochs)
            bold = "**" if (cascade, measure) == ("pair", "auto") else ""
            results = found(_gate(cascade, measure, budget))
            lines += row(f"{bold}{budget:.1%}: {title}{bold}", results, epochs, single)
    lines += [
        "",
        f"{data_name(given)} test, {spread_over(given)}, last epoch; epochs of all networks that were trained. A gate "
        "is compared with the cheapest single student that costs as much, or up to a fifth more."
        f"{_saved(study, given)}{_viewed(done)}{_seen(done)} {study.machines()}.",
    ]
    show(lines, given, given.mark)


def _saved(study: Study, given: argparse.Namespace) -> str:
    """What a table has to say of the time that --focus saves."""
    done = study.results()
    seeds = [seed for seed in range(given.seeds) if {f"pair-seed{seed}", f"focused-seed{seed}"} <= done.keys()]
    if not seeds:
        return ""
    # the fastest epoch of each: in others, targets are cached
    focused, whole = ([study.training(f"{name}-seed{seed}") for seed in seeds] for name in ("focused", "pair"))
    epochs = [sum(min(each["epoch_seconds"]) for each in runs) for runs in (focused, whole)]
    commands = [sum(each["seconds"] for each in runs) for runs in (focused, whole)]
    return (
        f" An epoch of R1 by --focus took {epochs[0] / epochs[1]:.2f} of one of R1, the whole command, with the "
        f"members' targets of all images, {commands[0] / commands[1]:.2f}."
    )


def _viewed(done: dict[str, dict[str, Any]]) -> str:
    """What a table has to say of the images that its networks saw."""
    views = {
        run["training"].get("target_views") for name, run in done.items() if name.startswith(("first", "pair-seed"))
    }
    if len(views) < 2:
        return ""
    return f" Some members saw {VIEWS} views of each image, whose targets were kept; others a new view in each epoch."


def _seen(done: dict[str, dict[str, Any]]) -> str:
    """What a table has to say of its gates."""
    if not any(run.get("training", {}).get("calibration_seen") for run in done.values()):
        return ""
    images = "the images that gates are chosen on"
    return f" The teacher may have been trained on {images}, where all that starts from it then looks better."


if __name__ == "__main__":
    main()
