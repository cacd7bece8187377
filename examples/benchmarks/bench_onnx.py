"""Whether an exported cascade is as fast as its MACs promise, beside its teacher, and beside our PyTorch path::

    OMP_NUM_THREADS=1 python examples/benchmarks/bench_onnx.py --teacher resnet56_cifar \\
        --members resnet8_cifar resnet20_cifar --stop 0.7

The networks have random weights and see noise; thresholds are set so that of the images that reach a stage the share
``--stop`` exits there. All run in one process on one thread, turn by turn. Prints one line of JSON, for each batch
size, medians over the rounds:

* ``of_macs``: time of the gated cascade over that of the teacher, both in ONNX Runtime, over what their MACs promise;
* ``over_pytorch``: how many times as fast the exported cascade is as the same cascade in PyTorch;
* ``int8``: time of the int8 file over that of the float32 file, at the same exits;
* ``milliseconds``: of a batch, for each network.

``bytes`` are the sizes of the files.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import kdcompress.models  # noqa: F401 - registers the networks
from kdcompress.engine.distributed import start
from kdcompress.export.compose import Cascade, compose, serialized
from kdcompress.export.members import export_member
from kdcompress.export.onnx_network import member_by_member, new_session, runner
from kdcompress.export.quantize import quantize_member
from kdcompress.flops import profile
from kdcompress.gating import MEASURES, Gate
from kdcompress.models.fold import fold_batchnorm

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from study import write_between

SIZE, CLASSES, OPSET = (3, 32, 32), 10, 20
RANGES = 128  # images on which the int8 ranges are measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56_cifar")
    parser.add_argument("--members", nargs="+", default=["resnet8_cifar", "resnet20_cifar"])
    parser.add_argument("--stop", type=float, default=0.7, help="share of the images that exit at each gate")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 128, 1024])
    parser.add_argument("--images", type=int, default=1024, help="a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    place = start("cpu", "fp32")
    teacher: Any = fold_batchnorm(timm.create_model(asked.teacher).eval())
    entries = [{"architecture": name} for name in asked.members]
    model: Any = fold_batchnorm(timm.create_model("residual_cascade", members=entries).eval())
    x = torch.randn(asked.images, *SIZE)
    fp32 = _with_gate(_exported(model.stages()), x, asked.stop)
    members = [quantize_member(each, [x[:RANGES].numpy()], "a member") for each in fp32.members]
    int8 = _with_gate(dataclasses.replace(fp32, members=members), x, asked.stop)
    files = {
        "teacher": serialized(compose(_exported([teacher]), SIZE)),
        "gated": serialized(compose(fp32, SIZE)),
        "int8": serialized(compose(int8, SIZE)),
    }
    turns: dict[str, Callable[[Tensor], Any]] = {name: runner(new_session(file, 1)) for name, file in files.items()}
    model.gate = fp32.gate
    turns["pytorch"] = model.to(memory_format=torch.channels_last).forward_gated
    with torch.inference_mode():
        _, exits = turns["gated"](x)
        macs = [profile(each, SIZE).macs for each in model.members]
        ran = [float((exits >= stage).float().mean()) for stage in range(len(macs))]
        promised = sum(share * cost for share, cost in zip(ran, macs, strict=True)) / profile(teacher, SIZE).macs
        sizes = {size: _measured(turns, x, size, promised, asked.rounds) for size in asked.batch_sizes}
    result = {
        **{key: getattr(asked, key) for key in ("teacher", "members", "stop", "images", "rounds")},
        "hardware": place.describe(),
        "promised": round(promised, 4),
        "bytes": {name: len(file) for name, file in files.items()},
        "batch_sizes": sizes,
    }
    print(json.dumps(result))
    if asked.table:
        write_between(asked.table, "bench-onnx", _table(result))


def _exported(stages: list[Any]) -> Cascade:
    members = [export_member(stage, SIZE, OPSET, "a member") for stage in stages]
    return Cascade(members, CLASSES, [1.0] * len(members))


def _with_gate(cascade: Cascade, x: Tensor, stop: float) -> Cascade:
    """With thresholds that let so large a share of those that arrive exit."""
    confidence, going, limits = MEASURES["confidence"], torch.arange(len(x)), []
    for logits in member_by_member(cascade)(x)[:-1]:
        values = confidence.value(logits[going])
        limits.append(float(values.quantile(1 - stop)))
        going = going[values < limits[-1]]
    return dataclasses.replace(cascade, gate=Gate("confidence", tuple(limits)))


def _measured(
    turns: dict[str, Callable[[Tensor], Any]], x: Tensor, size: int, promised: float, rounds: int
) -> dict[str, Any]:
    parts = x.split(size)
    for turn in turns.values():
        turn(parts[0])
    found = [{name: _timed(turn, parts) for name, turn in turns.items()} for _ in range(rounds)]

    def ratio(one: str, other: str) -> float:
        return statistics.median(row[one] / row[other] for row in found)

    return {
        "of_macs": round(ratio("gated", "teacher") / promised, 3),
        "over_pytorch": round(ratio("pytorch", "gated"), 3),
        "int8": round(ratio("int8", "gated"), 3),
        "milliseconds": {
            name: round(1000 * statistics.median(row[name] for row in found) / len(parts), 4) for name in turns
        },
    }


def _timed(turn: Callable[[Tensor], Any], parts: tuple[Tensor, ...]) -> float:
    began = time.perf_counter()
    for part in parts:
        turn(part)
    return time.perf_counter() - began


def _table(result: dict[str, Any]) -> list[str]:
    head = ["images at a time", "teacher, ms", "gated, ms", "over its MACs' promise", "as fast as PyTorch", "int8"]
    lines = [f"| {' | '.join(head)} |", f"|{' ---: |' * len(head)}"]
    for size, found in result["batch_sizes"].items():
        took = found["milliseconds"]
        times = f"{took['teacher']:.2f} | {took['gated']:.2f}"
        lines.append(
            f"| {size} | {times} | {found['of_macs']:.2f} | {found['over_pytorch']:.2f} | {found['int8']:.2f} |"
        )
    members = " + ".join(f"`{name}`" for name in result["members"])
    share = result["bytes"]["int8"] / result["bytes"]["gated"]
    about = [
        f"{members} beside `{result['teacher']}` in ONNX Runtime, one thread; {result['stop']:.0%} exit at the gate: "
        f"the MACs promise {result['promised']:.3f} of the teacher's time.",
        f"int8: time over that of the float32 file, which is {1 / share:.1f} times as large. {result['hardware']}.",
    ]
    return [*lines, "", *about]


if __name__ == "__main__":
    main()
