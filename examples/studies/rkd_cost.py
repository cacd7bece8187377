"""What model separation makes of well-known networks, counted twice: by fvcore, as everywhere, and by torch itself::

    python examples/studies/rkd_cost.py --table examples/studies/README.md

torch counts products alone, fvcore BatchNorm and pooling as well, so their shares differ a little.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from study import write_between
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcompress.models.build import ModelSpec, build, config_of
from kdcompress.models.separate import separate
from kdcompress.models.student_assistant import ARCHITECTURE

CIFAR = ["resnet8_cifar", "resnet20_cifar", "resnet56_cifar", "wrn_16_2_cifar", "wrn_40_2_cifar"]
IMAGENET = [
    "resnet18",
    "resnet50",
    "efficientnet_b0",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "convnext_atto",
    "regnetx_002",
]
HEAD = "| model | image | widths of S and A | S | A | integration | of the undivided | by torch's count |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="model specs; all of the table, where none are given")
    parser.add_argument("--share", type=float, default=0.1, help="of the MACs, for the assistant")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    given = parser.parse_args()
    lines = [HEAD, "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for spec in given.models or [*CIFAR, *IMAGENET]:
        lines.append(_row(spec, given.share))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"`--assistant-share {given.share:g}`; M MACs of one image. CIFAR networks: 10 classes, and a summed "
        "feature of 64 numbers (that of a ResNet-56); the others: 1000 classes, 512 numbers (that of a ResNet-34).",
    ]
    if given.table:
        write_between(given.table, "rkd-cost", lines)


def _row(spec: str, share: float) -> str:
    parsed = ModelSpec.parse(spec)
    features, classes = (64, 10) if "cifar" in spec else (512, 1000)  # those of a ResNet-56, and of a ResNet-34
    whole, _ = build(parsed, num_classes=classes)
    size = config_of(whole)["input_size"]
    found = separate(parsed, share, features=features, num_classes=classes)
    made = {"model": {"architecture": parsed.name, "model_args": parsed.args}, "widths": list(found.widths)}
    both, _ = build(ModelSpec(ARCHITECTURE, {**made, "features": features}), num_classes=classes)
    parts = [found.student_macs, found.assistant_macs, found.integration_macs]
    cells = [
        f"`{spec}`",
        f"{size[-1]}²",
        " + ".join(f"{width:g}" for width in found.widths),
        *(f"{part / 1e6:.2f}" for part in parts),
        f"{found.macs / found.undivided_macs:.3f}",
        f"{_torchs_count(both, size) / _torchs_count(whole, size):.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _torchs_count(model: nn.Module, size: tuple[int, ...]) -> int:
    """FLOPs of convolutions and matrix products for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *size))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
