"""A small plotter: axes, lines, marks with labels that keep apart, as SVG that takes its colours from the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 44, 14, 26, 42
LETTER, LINE = 6.4, 14  # pixels of a label: width of a letter, height
MOST_TICKS = 7
STEPS = 12  # between two points of a line that labels keep off
SHAPES = {
    "gated": '<path d="M0 -7L7 0L0 7L-7 0Z"/>',
    "full": '<rect x="-5" y="-5" width="10" height="10"/>',
    "member": '<rect x="-4" y="-4" width="8" height="8"/>',
    "teacher": '<circle r="6"/>',
    "single": '<path d="M0 -6L6 5L-6 5Z"/>',
    "oracle": '<circle r="4"/>',
}


@dataclass(frozen=True)
class Axis:
    """A scale: what it is of, its limits, and how its ticks are written."""

    label: str
    low: float
    high: float
    log: bool = False
    text: Callable[[float], str] = lambda value: f"{value:g}"

    @classmethod
    def around(
        cls,
        label: str,
        values: Iterable[float],
        *,
        log: bool = False,
        floor: float = -math.inf,
        ceiling: float = math.inf,
        text: Callable[[float], str] = lambda value: f"{value:g}",
    ) -> Axis:
        """Limits with some room around all values, but not beyond ``floor`` and ``ceiling``."""
        low, high = min(values := list(values)), max(values)
        if log:
            room = (high / low) ** 0.08 if high > low else 2.0
            return cls(label, low / room, high * room, True, text)
        room = 0.08 * (high - low) or max(abs(high) * 0.05, 0.5)
        return cls(label, max(low - room, floor), min(high + room, ceiling), False, text)

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low limit and 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers between the limits."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            finer = [((1, 2, 5), 1), ((1, 3), 1), ((1,), 1)]
            for steps, stride in [*finer, *(((1,), stride) for stride in range(2, last - first + 1))]:
                found = [step * 10.0**power for power in range(first, last + 1, stride) for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if 2 <= len(found) <= MOST_TICKS:
                    return found
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = next(each * power for each in (1, 2, 5, 10) if span / (each * power) <= MOST_TICKS - 1)
        numbers = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [float(f"{number * step:.12g}") for number in numbers]


@dataclass
class Plot:
    """A figure of one pair of axes.

    Attributes:
        title: Of the figure, for those who hear it.
    """

    x: Axis
    y: Axis
    title: str
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[tuple[float, float, str, str]] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = LEFT + self.x.share(x) * (self.width - LEFT - RIGHT)
        down = self.height - BOTTOM - self.y.share(y) * (self.height - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    def line(self, points: Sequence[tuple[float, float]], kind: str, *, apart: bool = False) -> None:
        """A line through points, of the class ``kind``.

        Args:
            apart: Keep labels off it.
        """
        places = [self.at(*point) for point in points]
        for start, end in itertools.pairwise(places if apart else []):
            for part in range(STEPS):
                across, down = (one + (other - one) * part / STEPS for one, other in zip(start, end, strict=True))
                self.boxes.append((across - 1, down - 1, across + 1, down + 1))
        shown = " ".join(f"{across},{down}" for across, down in places)
        self.parts.append(f'<polyline class="line {kind}" points="{shown}"/>')

    def level(self, y: float, kind: str) -> None:
        """A horizontal line from side to side."""
        self.line([(self.x.low, y), (self.x.high, y)], f"level {kind}")

    def mark(self, x: float, y: float, kind: str, label: str = "", told: str = "") -> None:
        """A point, with a label beside it and ``told`` when the pointer rests on it."""
        across, down = self.at(x, y)
        title = f"<title>{escape(told)}</title>" if told else ""
        self.parts.append(f'<g class="mark {kind}" transform="translate({across} {down})">{title}{SHAPES[kind]}</g>')
        self.boxes.append((across - 7, down - 7, across + 7, down + 7))
        if label:
            self.labels.append((across, down, label, kind))

    def text(self, across: float, down: float, text: str, kind: str = "", anchor: str = "start") -> None:
        """Words at a place in pixels."""
        self.parts.append(f'<text x="{across}" y="{down}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> Markup:
        """The figure."""
        for across, down, label, kind in self.labels:
            self._label(across, down, label, kind)
        return Markup(
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.title)}">'
            f"{self._axes()}{''.join(self.parts)}</svg>"
        )

    def _axes(self) -> str:
        left, right, bottom = LEFT, self.width - RIGHT, self.height - BOTTOM
        parts = [f'<text class="name" x="2" y="11">{escape(self.y.label)}</text>']
        for value in self.y.ticks():
            down = self.at(self.x.low, value)[1]
            parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{down}" y2="{down}"/>')
            parts.append(
                f'<text class="tick" x="{left - 7}" y="{down + 4}" text-anchor="end">{self.y.text(value)}</text>'
            )
        for value in self.x.ticks():
            across = self.at(value, self.y.low)[0]
            parts.append(f'<line class="tickmark" x1="{across}" x2="{across}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text class="tick" x="{across}" y="{bottom + 17}" text-anchor="middle">{self.x.text(value)}</text>'
            )
        parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        middle = (left + right) / 2
        parts.append(
            f'<text class="name" x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(self.x.label)}</text>'
        )
        return "".join(parts)

    def _label(self, across: float, down: float, label: str, kind: str) -> None:
        """A label beside its mark, where nothing else is; none where there is no such place."""
        wide = LETTER * len(label)
        places = [(10, -4, 0), (10, 13, 0), (-10, -4, 1), (-10, 13, 1), (0, -12, 0.5), (0, 22, 0.5)]
        for right, below, turned in [*places, (10, -18, 0), (10, 26, 0), (-10, -18, 1), (-10, 26, 1)]:
            x, y = across + right - turned * wide, down + below
            box = (x, y - LINE + 3, x + wide, y + 3)
            inside = box[0] >= LEFT and box[2] <= self.width - 2 and box[1] >= 0 and box[3] <= self.height - BOTTOM
            if inside and not any(_overlap(box, other) for other in self.boxes):
                self.boxes.append(box)
                self.text(round(x, 1), round(y, 1), label, f"label {kind}")
                return


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
