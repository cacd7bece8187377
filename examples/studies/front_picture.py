"""Draw the picture of the front page from what ``reskd_study.py`` found::

    python examples/studies/front_picture.py examples/results/reskd.json docs/accuracy-over-macs.svg

Plain SVG in colours that can be read on white and on black, with its text as text.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 744, 20, 366  # of the axes
MACS, TOP1 = (0.0, 50.0), (74.0, 92.0)  # their ranges
GREY, FAINT, BLUE, ORANGE = "#767676", "#76767640", "#3b82c4", "#d2691e"
SHORT = "resnet{}_cifar,shortcut=A"
LONG = "single-resnet14_cifar,shortcut=A-standardized-kl-long-0"
LABELLED = {"pair1": -10, "pair2": 18}  # how far below its last point the text ends
PAIRS = {"pair1": "ResNet-8 + ResNet-20", "pair2": "ResNet-14 + ResNet-32"}


@dataclass(frozen=True)
class Point:
    """The mean over seeds; ``spread`` is their standard deviation, 0 for one seed."""

    macs: float
    top1: float
    spread: float
    label: str


def points(runs: dict[str, Any], pattern: str) -> list[Point]:
    """Those of the runs whose name matches, by what is left of the name when the seed, group ``s``, is taken out."""
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for name, run in runs.items():
        if (match := re.fullmatch(pattern, name)) and "eval" in run:
            place = name[: match.start("s")] + name[match.end("s") :]
            found.setdefault(place, (match.groupdict().get("label") or "", []))[1].append(run["eval"])
    made = []
    for label, results in found.values():
        top1 = [result["top1"] for result in results]
        macs = statistics.mean(result.get("expected_macs") or result["macs"] for result in results) / 1e6
        spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
        made.append(Point(macs, statistics.mean(top1), spread, f"ResNet-{label}" if label else ""))
    return sorted(made, key=lambda point: point.macs)


def picture(runs: dict[str, Any]) -> str:
    """The SVG."""
    teacher = runs["teacher"]["eval"]
    shape = re.escape(SHORT)
    single = shape.replace(r"\{\}", r"(?P<label>\d+)")
    series = [
        (ORANGE, True, points(runs, r"s0-r1-r2-r3-(?P<s>\d)-gated-[\d.]+")),
        (ORANGE, False, points(runs, rf"single-{single}-standardized-kl-(?P<s>\d)")),
        *((BLUE, True, points(runs, rf"{pair}-(?P<s>\d)-gated-[\d.]+")) for pair in PAIRS),
        (BLUE, False, points(runs, rf"single-{single}-standardized-kl-long-(?P<s>\d)")),
    ]
    parts = [*_axes(), *_teacher(teacher["top1"], teacher["macs"] / 1e6)]
    for colour, gated, found in series:
        parts += _series(colour, gated, found)
    for pair, name in PAIRS.items():
        last = points(runs, rf"{pair}-(?P<s>\d)-gated-[\d.]+")[-1]
        epochs = f"{_epochs(runs, LONG)} + {_epochs(runs, f'{pair}-0')} epochs"
        parts.append(_text(_x(last.macs) + 4, _y(last.top1) + LABELLED[pair], f"{name}, {epochs}", BLUE, "end"))
    parts += _legend(
        [
            (BLUE, True, "gated cascade of two networks"),
            (BLUE, False, f"single student by KD, {_epochs(runs, LONG)} epochs"),
            (ORANGE, True, f"gated cascade of four networks, {_epochs(runs, 's0-0')} epochs each, 3 seeds"),
            (ORANGE, False, f"single student by KD, {_epochs(runs, LONG.replace('-long', ''))} epochs, 3 seeds"),
        ]
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="13">',
            "<title>CIFAR-10: top-1 accuracy over MACs per image</title>",
            *parts,
            "</svg>\n",
        ]
    )


def _epochs(runs: dict[str, Any], name: str) -> int:
    return int(runs[name]["training"]["epochs"])


def _x(macs: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * (macs - MACS[0]) / (MACS[1] - MACS[0]), 1)


def _y(top1: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (top1 - TOP1[0]) / (TOP1[1] - TOP1[0]), 1)


def _text(x: float, y: float, text: str, colour: str = GREY, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}"{more}>{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{more}/>'


def _axes() -> list[str]:
    parts = []
    for top1 in range(int(TOP1[0]), int(TOP1[1]) + 1, 2):
        parts.append(_line(LEFT, _y(top1), RIGHT, _y(top1), FAINT))
        parts.append(_text(LEFT - 8, _y(top1) + 4.5, f"{top1}", anchor="end"))
    for macs in range(int(MACS[0]), int(MACS[1]) + 1, 10):
        parts.append(_line(_x(macs), BOTTOM, _x(macs), BOTTOM + 5, GREY))
        parts.append(_text(_x(macs), BOTTOM + 20, f"{macs}", anchor="middle"))
    parts.append(_line(LEFT, BOTTOM, RIGHT, BOTTOM, GREY))
    parts.append(
        _text(
            (LEFT + RIGHT) / 2, BOTTOM + 42, "MACs per image, million (expected, for a gated cascade)", anchor="middle"
        )
    )
    middle = (TOP + BOTTOM) / 2
    turned = f' transform="rotate(-90 18 {middle})"'
    parts.append(_text(18, middle, "top-1 on the CIFAR-10 test split, %", anchor="middle", more=turned))
    return parts


def _teacher(top1: float, macs: float) -> list[str]:
    text = f"teacher: ResNet-56, {top1:.2f} % at {macs:.1f} M MACs"
    return [
        _line(LEFT, _y(top1), RIGHT, _y(top1), GREY, ' stroke-width="2" stroke-dasharray="7 4"'),
        _text(LEFT + 8, _y(top1) - 7, text),
    ]


def _mark(x: float, y: float, colour: str, gated: bool) -> str:
    how = f'fill="{colour if gated else "none"}" stroke="{colour}" stroke-width="2"'
    if gated:
        return f'<circle cx="{x}" cy="{y}" r="5" {how}/>'
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" {how}/>'


def _series(colour: str, gated: bool, found: list[Point]) -> list[str]:
    way = " ".join(f"{_x(point.macs)},{_y(point.top1)}" for point in found)
    dashes = "" if gated else ' stroke-dasharray="3 3"'
    parts = [f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>']
    for point in found:
        x, y = _x(point.macs), _y(point.top1)
        if point.spread:
            parts.append(_line(x, _y(point.top1 - point.spread), x, _y(point.top1 + point.spread), colour))
        parts.append(_mark(x, y, colour, gated))
        if point.label:
            where = (x - 9, y - 4) if colour == BLUE else (x + 9, y + 15)
            parts.append(_text(*where, point.label, colour, "end" if colour == BLUE else "start"))
    return parts


def _legend(rows: list[tuple[str, bool, str]]) -> list[str]:
    parts = []
    for number, (colour, gated, text) in enumerate(rows):
        y = BOTTOM - 80 + 20 * number
        parts += [_mark(LEFT + 206, y, colour, gated), _text(LEFT + 218, y + 4.5, text)]
    return parts


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(picture(json.loads(Path(sys.argv[1]).read_text())["runs"]))
