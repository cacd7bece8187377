"""How often a promised gate breaks its promise, and how often the plain rule would have::

    python examples/studies/gate_promise.py runs/s0-r1 \\
        --max-drop 0.5 1 --images 5000 20000 --table examples/studies/README.md

The images that the cascade was not fitted on stand for all there are. Each of many calibrations draws some of them,
with replacement, and what its gate really loses is counted on all. ``--measure learned`` is fitted anew on half of each
draw.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from study import write_between
from torch import Tensor

from kdcompress.api.cost import member_profiles
from kdcompress.api.fitting import open_data
from kdcompress.api.reference import inherit
from kdcompress.data import Data
from kdcompress.deferral import fit_heads
from kdcompress.engine.distributed import start
from kdcompress.engine.evaluate import collect
from kdcompress.gate_search import search
from kdcompress.gating import LEARNED, Measure, MemberScores, Outcome, learned, measure_of, outcome
from kdcompress.guarantee import guaranteed_gate
from kdcompress.halving import halves
from kdcompress.models.loading import load_network
from kdcompress.options import MEASURES, GateCalibrateOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a cascade")
    parser.add_argument("--max-drop", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20000], help="of a calibration")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--confidence-level", type=float, default=0.95)
    parser.add_argument("--measure", default="confidence", choices=[*MEASURES, LEARNED])
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    parser.add_argument("--mark", default="gate-promise", help="of the table in that file")
    given = parser.parse_args()
    logits, labels, macs, name = collected(given.run)
    top1 = 100 * float((logits[-1].argmax(1) == labels).double().mean())
    print(f"{name}: {len(labels)} images, top-1 {top1:.2f} with all members", flush=True)
    lines = [
        "| allowed, points | calibration images | rule | lost more, % of draws | lost, points | MACs / all members |",
        "| ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for drop, images in itertools.product(given.max_drop, given.images):
        random = torch.Generator().manual_seed(0)
        found: dict[str, list[Outcome]] = {"plain": [], "promised": []}
        for seed in range(given.draws):
            drawn = torch.randint(0, len(labels), (images,), generator=random)
            measure, one, ones = _calibration(logits[:, drawn], labels[drawn], given.measure)
            plain = search(MemberScores.from_logits(one, ones, macs, measure), measure, max_drop=drop)[0]
            level = given.confidence_level
            kept = guaranteed_gate(one, ones, macs, [measure], max_drop=drop, confidence_level=level, seed=seed)
            everybody = MemberScores.from_logits(logits, labels, macs, measure)
            for rule, thresholds in (("plain", plain.thresholds), ("promised", kept.thresholds)):
                found[rule].append(outcome(everybody, measure, thresholds))
        for rule, gates in found.items():
            broken = sum(gate.top1 < top1 - drop for gate in gates) / len(gates)
            lost = top1 - sum(gate.top1 for gate in gates) / len(gates)
            cost = sum(gate.expected_macs for gate in gates) / len(gates) / sum(macs)
            lines.append(f"| {drop:g} | {images} | {rule} | {100 * broken:.1f} | {lost:.2f} | {cost:.3f} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"{name}; {len(labels)} images it was not fitted on stand for all; {given.draws} draws a row; promised at "
        f"level {given.confidence_level:g}; by {given.measure}.",
    ]
    if given.table:
        write_between(given.table, given.mark, lines)


def _calibration(logits: Tensor, labels: Tensor, name: str) -> tuple[Measure, Tensor, Tensor]:
    """A measure of that name, and the logits [M, N, K] and labels [N] to choose its thresholds by."""
    if name != LEARNED:
        return measure_of(name), logits, labels
    fitted, rest = halves(len(labels))
    return learned(fit_heads(logits[:, fitted], labels[fitted])), logits[:, rest], labels[rest]


def collected(run: str, splits: Sequence[str] = ("calibration", "test")) -> tuple[Tensor, Tensor, list[int], str]:
    """A cascade on images it was not fitted on: logits after each member [M, N, K], labels [N], MACs [M], names."""
    network = load_network(run)
    cascade = network.staged("so there is no gate")
    options = inherit(GateCalibrateOptions(run=run), network.record)
    place = start("auto", "fp32")
    data = Data(open_data(options), network.prep, options, place.device)
    cascade.to(place.device).to(memory_format=torch.channels_last)
    parts = [collect(cascade.forward_stages, data.evaluation(split, 128), place) for split in splits]
    macs = [found.macs for found in member_profiles(network)]
    members = " + ".join(member["architecture"] for member in network.model_args["members"])
    return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts]), macs, members


if __name__ == "__main__":
    main()
