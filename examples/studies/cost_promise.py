"""How often a gate costs more on new images than it was asked to, with and without ``--confidence-level``::

    python examples/studies/cost_promise.py runs/s0-r1 --table examples/studies/README.md

As in ``gate_promise.py``, the images that the cascade was not fitted on stand for all there are.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from gate_promise import collected
from study import write_between

from kdcompress.cost_bound import search_within
from kdcompress.gate_search import search
from kdcompress.gating import MemberScores, Outcome, outcome
from kdcompress.options import MEASURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a cascade")
    parser.add_argument("--target", type=float, nargs="+", default=[0.4, 0.6], help="of the MACs of all members")
    parser.add_argument("--images", type=int, nargs="+", default=[300, 5000], help="of a calibration")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--confidence-level", type=float, default=0.9)
    parser.add_argument("--measure", default="margin", choices=MEASURES)
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    given = parser.parse_args()
    logits, labels, macs, name = collected(given.run)
    everybody = MemberScores.from_logits(logits, labels, macs, given.measure)
    lines = [
        "| asked, MACs / all members | calibration images | rule | over it, % of draws | MACs / all members | top-1 |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for target, images in itertools.product(given.target, given.images):
        random, most = torch.Generator().manual_seed(0), target * sum(macs)
        found: dict[str, list[Outcome]] = {"plain": [], "bounded": []}
        for _ in range(given.draws):
            drawn = torch.randint(0, len(labels), (images,), generator=random)
            scores = MemberScores.from_logits(logits[:, drawn], labels[drawn], macs, given.measure)
            plain, _curve = search(scores, given.measure, max_macs=most)
            bounded, _curve = search_within(scores, given.measure, most, given.confidence_level)
            for rule, gate in (("plain", plain), ("bounded", bounded)):
                found[rule].append(outcome(everybody, given.measure, gate.thresholds))
        for rule, gates in found.items():
            over = sum(gate.expected_macs > most for gate in gates) / len(gates)
            cost = sum(gate.expected_macs for gate in gates) / len(gates) / sum(macs)
            top1 = sum(gate.top1 for gate in gates) / len(gates)
            lines.append(f"| {target:g} | {images} | {rule} | {100 * over:.1f} | {cost:.3f} | {top1:.2f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{name}; {len(labels)} images it was not fitted on stand for all; {given.draws} draws a row; bounded at level "
        f"{given.confidence_level:g}; by {given.measure}.",
    ]
    if given.table:
        write_between(given.table, "cost-promise", lines)


if __name__ == "__main__":
    main()
