"""Numbers as people read them."""

from __future__ import annotations

SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scaled(number: float) -> str:
    """``30.8 M``: three digits and a letter."""
    for scale, letter in SCALES:
        if number >= scale * 0.9995:
            return f"{number / scale:.3g} {letter}" if number < scale * 999.5 else f"{number / scale:,.0f} {letter}"
    return f"{number:.3g}" if number % 1 else f"{number:.0f}"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
