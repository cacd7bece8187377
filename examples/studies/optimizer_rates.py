"""Which learning rates suit the families of timm's optimisers: by these ``engine/rates.py`` was chosen::

    python examples/studies/optimizer_rates.py --table examples/studies/README.md

A ``resnet14_cifar`` learns scikit-learn's digits for five epochs, one seed, with each rate; top-1 on the calibration
split. Resumes, and skips what is done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from study import write_between

import kdcompress
from kdcompress.engine.rates import rate_of

RATES = {
    "sgd": (0.03, 0.1, 0.3),
    "lars": (0.1, 0.3, 1, 3, 10),
    "nlarc": (0.1, 0.3, 1, 3),
    "nmuon": (0.001, 0.003, 0.01, 0.03, 0.1),
    "adamuon": (0.001, 0.003, 0.01, 0.03),
    "lion": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "lamb": (0.001, 0.003, 0.01, 0.03),
    "adamw": (3e-4, 1e-3, 3e-3, 0.01),
    "nadamw": (1e-3, 3e-3, 0.01),
    "adan": (1e-3, 3e-3, 0.01),
    "adafactor": (1e-3, 3e-3, 0.01, 0.03),
    "adafactorbv": (1e-3, 3e-3, 0.01),
    "adagrad": (1e-3, 0.01, 0.03, 0.1),
    "adadelta": (0.01, 0.1, 1, 3),
    "madgrad": (3e-4, 1e-3, 3e-3, 0.01),
    "rmsprop": (3e-4, 1e-3, 3e-3),
    "rmsproptf": (1e-3, 3e-3, 0.01, 0.03),
    "novograd": (1e-3, 0.003, 0.01, 0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("examples/results/optimizer-rates.json"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    done: dict[str, float] = json.loads(given.results.read_text()) if given.results.exists() else {}
    for opt, rates in RATES.items():
        for lr in rates:
            if (key := f"{opt} {lr:g}") not in done:
                done[key] = _top1(opt, lr)
                given.results.write_text(json.dumps(done, indent=0) + "\n")
    found = defaultdict(list)
    for key, top1 in done.items():
        opt, lr = key.split()
        found[opt].append(f"{lr}: {top1:.1f}")
    lines = ["| optimiser | learning rate: top-1 | default |", "| --- | --- | ---: |"]
    lines += [f"| `{opt}` | {', '.join(rows)} | {rate_of(opt).lr:g} |" for opt, rows in found.items()]
    print("\n".join(lines))
    if given.table:
        write_between(given.table, "optimizer-rates", lines)


def _top1(opt: str, lr: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        given = {"model": "resnet14_cifar", "data": "digits", "epochs": 5, "opt": opt, "lr": lr, "precision": "fp32"}
        return kdcompress.train_teacher(**given, out=f"{folder}/run").top1


if __name__ == "__main__":
    main()
