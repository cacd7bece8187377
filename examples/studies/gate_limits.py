"""Whether another gate on the first member's logits, or another weight of the sum, would be better::

    python examples/studies/gate_limits.py runs/pair --table examples/studies/README.md

At each share of images that go on: by the smallest margin; by boosted trees that predict what going on would change,
fitted to four fifths of the test images for the other fifth; and by an oracle. Then the pair with all members run, at
several weights of the first member's logits in the sum. Nothing is chosen by it: it says what is left to be gained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from gate_promise import collected
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict
from study import write_between
from torch import Tensor

from kdcompress.models.loading import load_network

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a cascade of two members")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.16, 0.26, 0.35, 0.47], help="that go on")
    parser.add_argument("--results", type=Path, help="file that keeps what was found")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    given = parser.parse_args()
    if given.results and given.results.exists():
        found = json.loads(given.results.read_text())
    else:
        found = measured(given.run, given.shares)
        if given.results:
            given.results.write_text(json.dumps(found, indent=1) + "\n")
    lines = [
        "| go on | by margin | by boosted trees, cross-validated | by an oracle |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['share']:.0%} | {row['margin']:.2f} | {row['trees']:.2f} | {row['oracle']:.2f} |"
            for row in found["gates"]
        ),
        "",
        "| weight of the first member in the sum | " + " | ".join(f"{row['weight']:g}" for row in found["sums"]) + " |",
        "| --- |" + " ---: |" * len(found["sums"]),
        "| both run | " + " | ".join(f"{row['top1']:.2f}" for row in found["sums"]) + " |",
        "",
        f"{found['name']}, top-1 on {found['images']} test images; trained with a weight of {found['weight']:.2f}.",
    ]
    print("\n".join(lines))
    if given.table:
        write_between(given.table, "gate-limits", lines)


def measured(run: str, shares: list[float]) -> dict[str, object]:
    """Accuracy of a pair on the test split, by gates and by weights of the sum."""
    (first, both), labels, _, name = collected(run, ["test"])
    weight = float(load_network(run).model.sum_weights[1])  # type: ignore[index, union-attr]
    change = (both.argmax(1) == labels).double() - (first.argmax(1) == labels).double()
    margins = first.softmax(1).topk(2, dim=1).values
    folds = KFold(5, shuffle=True, random_state=0)
    trees = HistGradientBoostingRegressor(max_iter=80, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=50)
    scores = {
        "margin": margins[:, 1] - margins[:, 0],
        "trees": torch.from_numpy(cross_val_predict(trees, _seen(first), change.numpy(), cv=folds)),
        "oracle": change,
    }
    right = (first.argmax(1) == labels).double()

    def top1(score: Tensor, share: float) -> float:
        going = score.argsort(descending=True)[: round(share * len(labels))]
        return 100 * float((right.sum() + change[going].sum()) / len(labels))

    alone = both - weight * first
    sums = [(each, ((each * first + alone).argmax(1) == labels).double().mean()) for each in WEIGHTS]
    return {
        "name": name,
        "images": len(labels),
        "weight": weight,
        "gates": [{"share": share, **{key: top1(score, share) for key, score in scores.items()}} for share in shares],
        "sums": [{"weight": each, "top1": 100 * float(mean)} for each, mean in sums],
    }


def _seen(logits: Tensor) -> np.ndarray:
    """What trees see of each image: probabilities in order, logits in order and by class, the class, the entropy."""
    log = logits.log_softmax(1)
    entropy = -(log.exp() * log).sum(1, keepdim=True)
    ordered, classes = logits.sort(dim=1, descending=True).values, torch.eye(logits.shape[1])[logits.argmax(1)]
    likeliest = log.exp().sort(dim=1, descending=True).values[:, :5]
    return torch.cat([likeliest, ordered, logits, classes, entropy], 1).numpy()


if __name__ == "__main__":
    main()
