"""Reporters that keep what they are told."""

from __future__ import annotations

from kdcompress.engine.progress import Silent


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Steps(Silent):
    """Keeps what the bar of a plan would show: step, steps, seconds left."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, int, float | None]] = []
        self.over = 0

    def plan(self, step: int, steps: int, left: float | None) -> None:
        self.shown.append((step, steps, left))

    def plan_over(self) -> None:
        self.over += 1
