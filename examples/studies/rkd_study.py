"""Residual KD with an assistant against what it stands on, at equal cost; resumes, and skips what is done::

    python examples/studies/rkd_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 4 --jobs 2 --table examples/studies/README.md

Run it again with more ``--epochs`` and another OUT on a better machine. What the teacher shows in each epoch is
computed once for all runs and kept in the cache: for CIFAR-10 and a ResNet-56, 2.4 GiB an epoch. The tables of
``examples/studies/README.md`` are made from what is kept, without training, by ``--so-far --results
examples/results/rkd.json`` and::

    … --students resnet8_cifar
    … --students resnet20_cifar --shares --mark rkd-resnet20

of the former recipe, and of the present one by ``--rows AT "RKD + AT, end to end"`` with ``rkd-newer.json`` and
``rkd-tiny100.json``, by ``--rows AT "RKD + AT, progressive" --epochs 8 --seeds 2`` with ``rkd-longer.json``, and the
mark of that name.

``--weights 1 3 --also="--logit-weight 1" --mark rkd-weights --results examples/results/rkd-weights.json`` compares
weights of the transfer, and other options, on the calibration split instead.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from study import Study, arguments, data_name, mean_std, show, spread_over, teacher_of, titled

from kdcompress.option_set import flag
from kdcompress.options.methods import DIVIDED

ASSISTED = ["--method", "rkd-assistant"]
# row -> arguments after TEACHER; the student alone has no teacher
VARIANTS: dict[str, list[str]] = {
    "student alone": ["--method", "ce"],
    "KD": ["--method", "kd"],
    "FitNets": [*ASSISTED, "--undivided", "--transfer", "fitnets"],
    "AT": [*ASSISTED, "--undivided", "--transfer", "at"],
    "RKD + FitNets, progressive": [*ASSISTED, "--transfer", "fitnets", "--scheme", "progressive"],
    "RKD + FitNets, end to end": [*ASSISTED, "--transfer", "fitnets", "--scheme", "end-to-end"],
    "RKD + AT, progressive": [*ASSISTED, "--transfer", "at", "--scheme", "progressive"],
    "RKD + AT, end to end": [*ASSISTED, "--transfer", "at", "--scheme", "end-to-end"],
}
Results = dict[int, dict[str, Any]]  # what eval said, by seed
WIDELY = "RKD + FitNets, end to end"  # at several shares of the assistant
SHARE = "0.1"  # where none is given
SHARES = ("0.05", "0.2", "0.5")


def main() -> None:
    parser = arguments(__doc__, epochs=4)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="+", default=["resnet8_cifar", "resnet20_cifar"])
    parser.add_argument(
        "--rows", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="ROW", help="(default: all)"
    )
    parser.add_argument("--shares", nargs="*", default=list(SHARES), help=f"of the first student, besides {SHARE}")
    parser.add_argument("--weights", nargs="+", default=[], help="of AT: compare these instead")
    parser.add_argument("--also", action="append", default=[], metavar="OPTIONS", help="with --weights: these, too")
    parser.add_argument("--views", type=int, help="of each image that are cached (default: --epochs)")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    parser.add_argument("--mark", default="rkd-table", help="of the table in that file")
    given = parser.parse_args()
    study = Study.of(given)
    teacher = [*teacher_of(given), "--target-views", str(given.views or given.epochs)]
    if given.also and not given.weights:
        parser.error("--also needs --weights")
    if given.weights:
        _weights(study, given, teacher)
        return

    def command(student: str, name: str) -> list[str]:
        first = [] if name == "student alone" else teacher
        return ["distill", *first, "--student", student, *VARIANTS[name]]

    pairs = list(itertools.product(given.students, given.rows))
    shares = given.shares if WIDELY in given.rows else []
    runs = {}
    for seed, (student, name) in itertools.product(range(given.seeds), pairs):  # a seed of everything before the next
        runs[_folder(student, name, f"seed{seed}")] = [*command(student, name), "--seed", str(seed)]
    wide = given.students[0]
    for share in shares:
        runs[_folder(wide, share)] = [*command(wide, WIDELY), "--assistant-share", share]
    if not given.so_far:
        study.run(runs)
    done = study.results()

    def results(student: str, name: str) -> Results:
        folders = {seed: _folder(student, name, f"seed{seed}") for seed in range(given.seeds)}
        return {seed: done[folder]["eval"] for seed, folder in folders.items() if folder in done}

    lines = [
        "| student | trained by | top-1 | above its control | S alone | MACs of the undivided |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for student, name in pairs:
        if found := results(student, name):
            control = _control(name)
            lines.append(_row(student, titled(name, found, given), found, results(student, control) if control else {}))
    first = {seed: result for seed, result in results(wide, "FitNets").items() if seed == 0}
    for share in sorted({*shares, SHARE}) if shares else ():
        folder = _folder(wide, WIDELY, "seed0") if share == SHARE else _folder(wide, share)
        if folder in done:
            lines.append(_row(wide, f"{WIDELY}, share {share}", {0: done[folder]["eval"]}, first))
    lines += [
        "",
        f"{data_name(given)} test, {spread_over(given)}, {given.epochs} epochs, last epoch"
        + ("; shares with the first seed alone" if shares else "")
        + ". The control of RKD is the undivided student, trained by the same transfer with the same seed. "
        f"{study.machines()}.",
    ]
    show(lines, given, given.mark)


def _weights(study: Study, given: argparse.Namespace, teacher: list[str]) -> None:
    """AT at several weights and with other options, undivided and divided."""
    student = given.students[0]
    learn = ["distill", *teacher, "--student", student, *ASSISTED, "--transfer", "at"]
    rows = [*itertools.product(given.weights, [""]), *itertools.product(given.weights[:1], given.also)]
    runs: dict[str, list[str]] = {}
    for seed, (weight, more) in itertools.product(range(given.seeds), rows):
        own = [*learn, "--transfer-weight", weight, *(["--seed", str(seed)] if seed else [])]
        control, divided = _weighted(weight, more, seed)
        runs |= {control: [*own, *_shared(more).split(), "--undivided"], divided: [*own, *more.split()]}
    if not given.so_far:
        study.run(runs, score=False)
    done = study.results()
    lines = [
        "| | AT | RKD + AT, end to end | difference | seeds |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for weight, more in rows:
        pairs = [_weighted(weight, more, seed) for seed in range(given.seeds)]
        top1 = [[study.training(name)["top1"] for name in pair] for pair in pairs if set(pair) <= done.keys()]
        if top1:
            control, divided = map(mean_std, zip(*top1, strict=True))
            above = mean_std(divided - control for control, divided in top1)
            title = f"`--transfer-weight {weight}`" + (f", `{more}`" if more else "")
            lines.append(f"| {title} | {control} | {divided} | {above} | {len(top1)} |")
    lines += [
        "",
        f"`{student}` on the calibration split of {data_name(given)}, {given.epochs} epochs, last epoch, mean ± "
        f"standard deviation; {study.machines()}.",
    ]
    show(lines, given, given.mark)


def _shared(more: str) -> str:
    """What the undivided student is given of other options."""
    return "" if {flag(name) for name in DIVIDED} & set(more.split()) else more


def _weighted(weight: str, more: str, seed: int) -> tuple[str, str]:
    """Names of two runs: the undivided student, and the divided one."""

    def name(options: str) -> str:
        parts = [f"weight{weight}", *([f"seed{seed}"] if seed else []), *([options.strip("-")] if options else [])]
        return _folder(*parts)

    return f"{name(_shared(more))}-undivided", name(more)


def _folder(*parts: str) -> str:
    return "-".join(parts).replace(" ", "").replace(",", "-").replace("+", "-")


def _control(name: str) -> str | None:
    """The row that a divided student is to be compared with."""
    base = name.removeprefix("RKD + ").split(",")[0]
    return base if base != name else None


def _row(student: str, name: str, results: Results, control: Results) -> str:
    top1 = mean_std(result["top1"] for result in results.values())
    both = results.keys() & control.keys()
    above = mean_std(results[seed]["top1"] - control[seed]["top1"] for seed in both) if both else "–"
    first = next(iter(results.values()))
    alone = mean_std(result["stage_top1"][0] for result in results.values()) if "stage_top1" in first else "–"
    whole = first.get("undivided_macs", first["macs"])
    return f"| `{student}` | {name} | {top1} | {above} | {alone} | {first['macs'] / whole:.3f} |"


if __name__ == "__main__":
    main()
