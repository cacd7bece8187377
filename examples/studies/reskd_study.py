"""A gated ResKD cascade against single students of the same MACs; resumes, and skips what is done::

    python examples/studies/reskd_study.py OUT --data cifar10/ --teacher resnet56-cifar10.safetensors \\
        --arch resnet56_cifar,shortcut=A --epochs 30 --jobs 2 --table examples/studies/README.md

The logit loss is chosen first: the one whose single student is best on the calibration split (one seed, half of the
epochs); for the cascade, of those that leave no scale open, for it sums logits. Then for each seed, all from the
teacher's weights, where layers fit: S0, its res-students, gates at several budgets, and single students with a gate for
each that lets the cascade cost as much. The first of them is trained by labels and by KD, too. With the first seed, the
cascade is polished behind the gates of the single students' cost, and each single student learns for as many epochs as
all members of the polished cascade together. The oracle stops each image at the first member that is right: no gate of
the same members can do better. How near longer schedules come to the teacher, with the first seed: ``--long-epochs``
trains the last two res-students once more, for so many; ``--pair-epochs`` trains pairs, a single student that learned
for longer and one res-student for so many, gated for budgets of half as much again to three times of what their student
costs. ``--so-far`` trains nothing, and makes table and figure of what is done.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from gate_promise import collected
from study import Study, arguments, count_of, data_name, mean_std, show, spread_over, teacher_of

import kdcompress
from kdcompress.options import LOGIT_LOSSES

Results = dict[int, dict[str, Any]]  # what eval said, by seed


class Row(NamedTuple):
    """Of the table.

    Attributes:
        single: Results of the student to compare with.
        epochs: Of all members together.
        seeds: How many there are to be.
    """

    title: str
    results: Results
    single: Results
    epochs: int
    seeds: int


class Pair(NamedTuple):
    """A student that learned for longer, and one res-student.

    Attributes:
        name: Of its run, without the seed.
        epochs: Of the res-student.
        budgets: Of its gates.
    """

    name: str
    student: str
    res_student: str
    epochs: int
    budgets: list[float]


def main() -> None:
    parser = arguments(__doc__, epochs=30)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", default="resnet8_cifar,width=0.5")
    res_students = [f"resnet{depth}_cifar,shortcut=A" for depth in (8, 20, 32)]
    parser.add_argument("--res-students", nargs="+", default=res_students)
    singles = ["resnet14_cifar,shortcut=A", "resnet20_cifar,shortcut=A"]
    parser.add_argument("--singles", nargs="+", default=singles, help="students to compare with")
    budgets = [0.05, 0.1, 0.1804, 0.35]  # the paper's 18.04 % of ResNet-110 are 36 % of ResNet-56
    parser.add_argument("--budgets", type=float, nargs="+", default=budgets, help="shares of the teacher's MACs")
    parser.add_argument("--polish-epochs", type=int, help="of all members together (default: a fifth of --epochs)")
    parser.add_argument("--long-epochs", type=int, help="of the last two res-students of the first seed, once more")
    pairs_of = [f"resnet{one}_cifar,shortcut=A+resnet{other}_cifar,shortcut=A" for one, other in ((8, 20), (14, 32))]
    parser.add_argument("--pairs", nargs="+", default=pairs_of, help="STUDENT+RES_STUDENT")
    parser.add_argument(
        "--pair-epochs", type=int, nargs="+", default=[], help="of each pair's res-student; else no pairs"
    )
    parser.add_argument("--size", default="3x32x32", help="of the images")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    parser.add_argument("--plot", type=Path, help="figure of accuracy over MACs")
    given = parser.parse_args()
    study = Study.of(given)
    teacher = teacher_of(given)

    if "teacher" not in study.results():
        arch = ["--arch", given.arch] if given.arch else []
        study.keep("teacher", study.call("eval", given.teacher, *arch, "--data", given.data))
    whole = study.result("teacher")["macs"]
    both = [pair.split("+") for pair, _ in zip(given.pairs, given.pair_epochs, strict=False)]
    lengthened = dict.fromkeys([*given.singles, *(student for student, _ in both)])
    counted = {spec: kdcompress.profile_flops(model=spec, input_size=given.size).macs for spec in lengthened}
    beside = {spec: round(counted[spec] / whole, 4) for spec in given.singles}  # budgets of the gates to compare
    half = str(max(1, given.epochs // 2))
    views = ["--target-views", half]  # each is seen twice; long trainings have more of them, by default
    seen_twice = [*teacher, *views]
    first = given.singles[0]
    tried = {loss: _distill(seen_twice, first, "kd", 0, loss) for loss in LOGIT_LOSSES}
    if not given.so_far:
        study.run({f"loss-{loss}": [*command, "--epochs", half] for loss, command in tried.items()}, score=False)
    best = max(tried, key=lambda loss: study.training(f"loss-{loss}")["top1"])
    summed = max(
        sorted(name for name in tried if LOGIT_LOSSES[name].has_scale),
        key=lambda loss: study.training(f"loss-{loss}")["top1"],
    )

    members = [given.student, *given.res_students]
    names = ["s0"]
    for _ in given.res_students:
        names.append(f"{names[-1]}-r{len(names)}")
    polishing = given.polish_epochs or max(1, given.epochs // 5)
    together = given.epochs * len(members) + polishing
    singles = {_single(spec, best): (spec, best) for spec in given.singles}
    singles |= {_single(first, loss): (first, loss) for loss in ("kl", "ce")}
    trainings: dict[str, list[str]] = {}
    gates: dict[str, list[str]] = {}
    shares = sorted({*given.budgets, *beside.values()})
    pairs = []
    for (student, res_student), epochs in zip(both, given.pair_epochs, strict=False):
        own = counted[student] / whole
        budgets = [share for share in shares if 1.5 * own <= share <= 3 * own]
        pairs.append(Pair(f"pair{len(pairs) + 1}", student, res_student, epochs, budgets))
    for seed in range(given.seeds):
        chain = {f"s0-{seed}": _distill(seen_twice, given.student, "reskd", seed, summed)}
        for (before, name), arch in zip(itertools.pairwise(names), given.res_students, strict=True):
            chain[f"{name}-{seed}"] = _grow(study.path(f"{before}-{seed}"), arch, views, summed, seed)
        others = {
            f"{name}-{seed}": _distill(seen_twice, spec, "ce" if loss == "ce" else "kd", seed, loss)
            for name, (spec, loss) in singles.items()
        }
        full = f"{names[-1]}-{seed}"
        trainings |= {**_alternating(chain, others), **gates}  # the gates one seed later: they wait for all of a chain
        gates = _gates(study, full, shares)
        for budget in beside.values() if seed == 0 else ():
            gated = _gated(full, budget)
            learn = ["polish", study.path(gated), "--epochs", str(polishing), "--logit-loss", summed]
            gates[f"{gated}-polished"] = learn
    long_singles = {
        f"{_single(spec, best)}-long-0": [*_distill(teacher, spec, "kd", 0, best), "--epochs", str(together)]
        for spec in lengthened
    }
    long_chain: dict[str, list[str]] = {}
    if given.long_epochs:
        before, *last_two = names[-3:]
        epochs = ["--epochs", str(given.long_epochs)]
        for name, arch in zip(last_two, given.res_students[-2:], strict=True):
            long_chain[f"{name}-long-0"] = _grow(study.path(f"{before}-0"), arch, epochs, summed, 0)
            before = f"{name}-long"
        long_chain |= _gates(study, f"{before}-0", shares)
    for pair in pairs:
        student = f"{_single(pair.student, best)}-long-0"
        shown = ["--epochs", str(pair.epochs), "--target-views", str(max(8, pair.epochs // 3))]
        long_chain[f"{pair.name}-0"] = _grow(study.path(student), pair.res_student, shown, summed, 0)
        long_chain |= _gates(study, f"{pair.name}-0", pair.budgets)
    if not given.so_far:
        runs = {**trainings, **gates, **_alternating(long_singles, long_chain)}
        study.run(runs)
        for full in (*(f"{names[-1]}-{seed}" for seed in range(given.seeds)), *(f"{pair.name}-0" for pair in pairs)):
            study.measure(f"{full}-oracle", full, runs, _oracle)

    done = study.results()

    def found(*parts: str) -> Results:
        """By seed; the seed comes after the first part of a run's name."""
        folders = {seed: "-".join([parts[0], str(seed), *parts[1:]]) for seed in range(given.seeds)}
        return {seed: done[name]["eval"] for seed, name in folders.items() if "eval" in done.get(name, {})}

    last = names[-1]
    rows = [Row("teacher", {0: study.result("teacher")}, {}, 0, 1)]
    for number, name in enumerate(names, start=1):
        title = ("S0 alone, " if number == 1 else "all run: ") + " + ".join(f"`{m}`" for m in members[:number])
        rows.append(Row(title, found(name), {}, number * given.epochs, given.seeds))
    equal = {budget: spec for spec, budget in beside.items()}
    how = "**gated, `--target-macs {}`{}**"
    for budget in shares:
        single = found(_single(equal[budget], best)) if budget in equal else {}
        title = how.format(budget, "")
        rows.append(Row(title, found(last, f"gated-{budget}"), single, len(members) * given.epochs, given.seeds))
    for budget in sorted(equal):
        results = found(last, f"gated-{budget}", "polished")
        kept = done.get(f"{last}-0-gated-{budget}-polished", {}).get("training", {}).get("polished")
        title = how.format(budget, f", polished{'' if kept else ' (no better: not kept)'}")
        rows.append(Row(title, results, found(_single(equal[budget], best)), together, 1))
    for name, (spec, loss) in sorted(singles.items()):
        title = f"`{spec}`, {'labels' if loss == 'ce' else f'KD ({loss})'}"
        rows.append(Row(title, found(name), {}, given.epochs, given.seeds))
    long = {spec: found(f"{_single(spec, best)}-long") for spec in lengthened}
    rows += [Row(f"`{spec}`, KD ({best}), first seed", results, {}, together, 1) for spec, results in long.items()]
    longer, spent = f"{last}-long", given.epochs * (len(members) - 2) + 2 * (given.long_epochs or 0)
    since = f"the last two for {given.long_epochs} epochs, first seed"
    rows.append(Row(f"all run, {since}", found(longer), {}, spent, 1))
    for budget in shares:
        single = long[equal[budget]] if budget in equal else {}
        title = f"{how.format(budget, '')}, {since}"
        rows.append(Row(title, found(longer, f"gated-{budget}"), single, spent, 1))
    for pair in pairs:
        since = f"`{pair.student}` + `{pair.res_student}`, {together} and {pair.epochs} epochs, first seed"
        spent = together + pair.epochs
        rows.append(Row(f"all run: {since}", found(pair.name), {}, spent, 1))
        for budget in pair.budgets:
            single = long[equal[budget]] if budget in equal else {}
            title = f"{how.format(budget, '')}, {since}"
            rows.append(Row(title, found(pair.name, f"gated-{budget}"), single, spent, 1))
        rows.append(Row(f"oracle gate, {since}", found(pair.name, "oracle"), {}, spent, 1))
    rows.append(Row("oracle gate", found(last, "oracle"), {}, len(members) * given.epochs, given.seeds))
    lines = [
        "| | top-1 | above the single of these MACs | MACs, M | of the teacher | epochs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(_row(row, whole) for row in rows if row.results),
        "",
        f"{data_name(given)} test, {spread_over(given)}, last epoch; epochs of all "
        "members together. A cascade of longer trainings is compared with a single student of longer training. "
        f"The logit loss of a single student is {best}, the best on the calibration split; that of the cascade is "
        f"{summed}, the best of those that leave no scale open. What learns by KD starts from the teacher's weights, "
        "where layers fit. By the calibration split losses and gates are chosen; a teacher that has learned from it "
        "flatters there what starts from it, so that a gate may cost more on new images than it was asked to. "
        f"{study.machines()}.",
    ]
    show(lines, given, "reskd-table")
    if given.plot:
        oracles = [found(run, "oracle") for run in (last, *(pair.name for pair in pairs))]
        curves = {
            "all members run": [found(name) for name in names],
            "gated": [found(last, f"gated-{budget}") for budget in shares],
            "gated, the last two members longer": [found(longer, f"gated-{budget}") for budget in shares],
            **{
                f"gated {_brief(pair.student)} + {_brief(pair.res_student)}, longer": [
                    found(pair.name, f"gated-{budget}") for budget in pair.budgets
                ]
                for pair in pairs
            },
            f"single student, {best}": [found(_single(equal[budget], best)) for budget in sorted(equal)],
            "single student, longer": sorted(filter(None, long.values()), key=_macs),
            "oracle gates": sorted(filter(None, oracles), key=_macs),
            "teacher": [rows[0].results],
        }
        _plot(curves, whole, given.plot)


def _single(spec: str, loss: str) -> str:
    return f"single-{spec}-{loss}"


def _brief(spec: str) -> str:
    """The network's name without its arguments."""
    return spec.split(",")[0].removesuffix("_cifar")


def _gated(run: str, budget: float) -> str:
    return f"{run}-gated-{budget}"


def _gates(study: Study, run: str, budgets: list[float]) -> dict[str, list[str]]:
    """A gate for each budget."""
    calibrate = ["gate-calibrate", study.path(run)]
    targets = {budget: ["--target-macs", str(budget), "--measure", "auto"] for budget in budgets}
    return {_gated(run, budget): [*calibrate, *target] for budget, target in targets.items()}


def _macs(results: Results) -> float:
    """Of an image on average, the mean over seeds."""
    return sum(result.get("expected_macs") or result["macs"] for result in results.values()) / len(results)


def _row(row: Row, whole: int) -> str:
    title = row.title if len(row.results) == row.seeds else f"{row.title} ({count_of(len(row.results))})"
    both = row.results.keys() & row.single.keys()
    above = mean_std(row.results[seed]["top1"] - row.single[seed]["top1"] for seed in both) if both else "–"
    top1, macs = mean_std(result["top1"] for result in row.results.values()), _macs(row.results)
    cells = [title, top1, above, f"{macs / 1e6:.1f}", f"{macs / whole:.1%}", str(row.epochs or "–")]
    return f"| {' | '.join(cells)} |"


def _plot(curves: dict[str, list[Results]], whole: int, file: Path) -> None:
    """Accuracy over MACs, with the deviation over seeds."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), marker in zip(curves.items(), itertools.cycle("so*XDPv^")):
        points = [(_macs(found) / whole, [result["top1"] for result in found.values()]) for found in curve if found]
        if points:
            x, y = [macs for macs, _ in points], [statistics.mean(values) for _, values in points]
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
            axes.errorbar([100 * macs for macs in x], y, spread, fmt=f"{marker}-", capsize=2, label=name)
    axes.set(xlabel="expected MACs per image, % of the teacher's", ylabel="top-1 on the test split, %")
    axes.grid(alpha=0.3)
    axes.legend()
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(file, dpi=150)


def _distill(teacher: list[str], student: str, method: str, seed: int, loss: str = "kl") -> list[str]:
    first = [] if method == "ce" else [*teacher, "--from-teacher"]
    logits = ["--logit-loss", loss] if loss not in ("ce", "kl") else []
    return ["distill", *first, "--student", student, "--method", method, *logits, "--seed", str(seed)]


def _grow(run: str, arch: str, more: list[str], loss: str, seed: int) -> list[str]:
    grown = ["add-res-student", run, "--arch", arch, "--from-teacher", *more]
    return [*grown, "--logit-loss", loss, "--seed", str(seed)]


def _alternating(one: dict[str, list[str]], other: dict[str, list[str]]) -> dict[str, list[str]]:
    """A run of one after each of the other, so that nobody waits for what a chain stands on."""
    pairs = itertools.zip_longest(one.items(), other.items())
    return dict(each for pair in pairs for each in pair if each is not None)


def _oracle(run: str) -> dict[str, float]:
    """Each image stops at the first member with which it is right, or at once if there is none."""
    logits, labels, macs, _ = collected(run, ("test",))
    right = logits.argmax(-1) == labels
    stops = right.int().argmax(0)  # 0 where none is right
    spent = [sum(macs[: stage + 1]) for stage in range(len(macs))]
    costs = sum(spent[stage] for stage in stops.tolist()) / len(labels)
    return {"top1": 100 * float(right.any(0).float().mean()), "macs": costs}


if __name__ == "__main__":
    main()
