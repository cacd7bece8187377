"""Whether a gated cascade is as fast as its MACs promise, beside its teacher and its own full form::

    python examples/benchmarks/bench_inference.py --teacher resnet56_cifar \\
        --members resnet8_cifar resnet20_cifar --stop 0.7

The networks have random weights and see noise; thresholds are set so that of the images that reach a stage the share
``--stop`` stops there. All run in one process, turn by turn. Prints one line of JSON, for each batch size:

* ``macs``: MACs over the teacher's, of the full and of the gated cascade, from the exits that happened;
* ``seconds``: the same for the wall clock, median over the rounds;
* ``kept``: how much of what the MACs promise the clock shows, ``macs / seconds``; 1 is all of it;
* ``gate_ms``: what the gate itself takes, a stage: the gated cascade less its stages on the same sub-batches;
* ``constant_ms``: what a stage that runs takes on top of 1.15 times what its MACs promise: what no MACs account for, as
  the calls of its layers; 0 where there is nothing on top.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import kdcompress.models  # noqa: F401 - registers the networks
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.precision import Process
from kdcompress.flops import profile
from kdcompress.gating import Gate
from kdcompress.models.fold import fold_batchnorm
from kdcompress.models.residual_cascade import ResidualCascade

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between

ALLOWED = 1.15  # seconds over what the MACs promise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56_cifar")
    parser.add_argument("--members", nargs="+", default=["resnet8_cifar", "resnet20_cifar"])
    parser.add_argument("--stop", type=float, default=0.7, help="share of the images that stop at each gate")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 128, 1024])
    parser.add_argument("--images", type=int, default=1024, help="a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    asked = parser.parse_args()
    Process.is_ours = True
    place = start("auto", asked.precision)
    torch.manual_seed(0)
    teacher = _ready(timm.create_model(asked.teacher), place)
    cascade: Any = timm.create_model("residual_cascade", members=[{"architecture": name} for name in asked.members])
    full: ResidualCascade = _ready(cascade, place)
    x = torch.randn(asked.images, 3, 32, 32, device=place.device).contiguous(memory_format=torch.channels_last)
    costs = [profile(member.cpu(), (3, 32, 32)).macs for member in cascade.members]
    whole = profile(timm.create_model(asked.teacher), (3, 32, 32)).macs
    with torch.inference_mode(), place.autocast():
        full.gate = _gate(full, x, asked.stop)
        stopped = full.forward_gated(x)[1]
        ran = [float((stopped >= number).float().mean()) for number in range(len(costs))]
        macs = {
            "full": sum(costs) / whole,
            "gated": sum(share * cost for share, cost in zip(ran, costs, strict=True)) / whole,
        }
        batches = {size: _measured(full, teacher, x, size, macs, asked.rounds, place) for size in asked.batch_sizes}
    result = {
        **{key: getattr(asked, key) for key in ("teacher", "members", "stop", "images")},
        "precision": place.precision,
        "hardware": place.describe(),
        "macs": {name: round(value, 4) for name, value in macs.items()},
        "batch_sizes": batches,
    }
    print(json.dumps(result))
    if asked.table:
        write_between(asked.table, "bench-inference", _table(result))


def _table(result: dict[str, Any]) -> list[str]:
    head = ["images at a time", "full / teacher", "of its MACs", "gated / teacher", "of its MACs"]
    head += ["gate, ms a stage", f"beyond {ALLOWED} of its MACs, ms a stage"]
    lines = [f"| {' | '.join(head)} |", f"|{' ---: |' * len(head)}"]
    for size, found in result["batch_sizes"].items():
        shares = [f"{found['seconds'][name]:.3f} | {1 / found['kept'][name]:.2f}" for name in ("full", "gated")]
        lines.append(f"| {size} | {shares[0]} | {shares[1]} | {found['gate_ms']:.2f} | {found['constant_ms']:.2f} |")
    members = " + ".join(f"`{name}`" for name in result["members"])
    promised = " and ".join(f"{result['macs'][name]:.3f}" for name in ("full", "gated"))
    about = [
        f"{members} beside `{result['teacher']}`: seconds, and how many times what the MACs promise ({promised}).",
        f"{result['stop']:.0%} stop at the gate; {result['precision']}, {result['hardware']}.",
    ]
    return [*lines, "", *about]


def _ready(network: Any, place: Place) -> Any:
    return fold_batchnorm(network.eval()).to(place.device, memory_format=torch.channels_last)


def _gate(cascade: ResidualCascade, x: Tensor, stop: float) -> Gate:
    """Thresholds that let so large a share of those that arrive stop."""
    logits, thresholds = torch.zeros((), device=x.device), []
    going = torch.arange(len(x), device=x.device)
    for member in list(cascade.members)[:-1]:
        logits = logits + member(x).float()
        confidence = logits.softmax(1).amax(1)
        thresholds.append(float(confidence[going].quantile(1 - stop)))
        going = going[confidence[going] < thresholds[-1]]
    return Gate("confidence", tuple(thresholds))


def _measured(
    cascade: ResidualCascade,
    teacher: nn.Module,
    x: Tensor,
    size: int,
    macs: dict[str, float],
    rounds: int,
    place: Place,
) -> dict[str, Any]:
    parts = x.split(size)
    stops = [cascade.forward_gated(part)[1] for part in parts]
    samples = [
        [part[stop >= number] for number in range(len(cascade.members))]
        for part, stop in zip(parts, stops, strict=True)
    ]

    def stages() -> None:
        for part in samples:
            for member, sample in zip(cascade.members, part, strict=True):
                if len(sample):
                    member(sample)

    turns: dict[str, Callable[[], Any]] = {
        "teacher": lambda: [teacher(part) for part in parts],
        "full": lambda: [cascade.forward_full(part) for part in parts],
        "gated": lambda: [cascade.forward_gated(part) for part in parts],
        "stages": stages,
    }
    for turn in turns.values():
        turn()
    found = [{name: _timed(turn, place) for name, turn in turns.items()} for _ in range(rounds)]
    seconds = {name: statistics.median(row[name] / row["teacher"] for row in found) for name in ("full", "gated")}
    gate = statistics.median(row["gated"] - row["stages"] for row in found) / (len(parts) * len(cascade.members))
    beyond = statistics.median(row["gated"] - ALLOWED * macs["gated"] * row["teacher"] for row in found)
    calls = sum(len(sample) > 0 for part in samples for sample in part)
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "kept": {name: round(macs[name] / value, 3) for name, value in seconds.items()},
        "gate_ms": round(1000 * gate, 3),
        "constant_ms": round(max(0.0, 1000 * beyond / calls), 3),
        "teacher_images_per_second": round(len(x) / statistics.median(row["teacher"] for row in found)),
    }


def _timed(work: Callable[[], Any], place: Place) -> float:
    began = time.perf_counter()
    work()
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
