"""The plotter: ticks are round and within the axis, points where they belong, labels apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcompress.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Plot

values = st.floats(1e-3, 1e13)


@given(low=values, high=values, log=st.booleans())
def test_ticks_are_within_the_axis(low: float, high: float, log: bool) -> None:
    """A label would stand outside the figure, or none would be there to read it by."""
    axis = Axis.around("x", [low, high], log=log, floor=0.0)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in ticks)


def test_points_are_where_they_belong() -> None:
    """The plot would show another number than the table."""
    plot = Plot(Axis("x", 0, 10), Axis("y", 50, 100), "a title")
    assert plot.at(0, 50) == (LEFT, HEIGHT - BOTTOM)
    assert plot.at(10, 100) == (WIDTH - RIGHT, TOP)
    log = Plot(Axis("x", 1, 100, log=True), Axis("y", 50, 100), "a title")
    assert log.at(10, 75)[0] == pytest.approx((LEFT + WIDTH - RIGHT) / 2)


def test_labels_do_not_lie_on_each_other() -> None:
    """Two networks of about the same accuracy and cost could not be told apart."""
    plot = Plot(Axis("x", 0, 10), Axis("y", 50, 100), "a title")
    for number in range(6):
        plot.mark(5 + number / 20, 75 + number / 20, "single", f"network {number}")
    shown = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="label', str(plot.svg()))
    assert len(shown) >= 3
    places = [(float(x), float(y)) for x, y in shown]
    for number, (x, y) in enumerate(places):
        assert all(abs(x - left) >= 50 or abs(y - top) >= 13 for left, top in places[:number])


def test_labels_are_text() -> None:
    """A folder named like markup would break the page."""
    plot = Plot(Axis("<b>", 0, 10), Axis("&", 50, 100), '"><script>')
    plot.mark(5, 75, "gated", "<i>", "<u>")
    text = str(plot.svg())
    assert not re.search(r"<(b|i|u|script)>", text)
    assert "&lt;i&gt;" in text
