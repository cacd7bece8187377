"""The live lines of a training and of a plan, made for the width of the terminal: bar, what fits, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kdcompress.quantities import clock

NARROWEST = 8  # columns of a bar


class Bar:
    """A line that Rich draws anew a few times a second.

    Attributes:
        calibration: Top-1 of the last whole epoch, percent.

    Args:
        steps: Of an epoch.
        done: Epochs that an earlier command has trained.
    """

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs
        self.total, self.first = epochs * steps, done * steps
        self.done, self.current = self.first, done
        self.loss: float | None = None
        self.speed = 0.0
        self.calibration: float | None = None
        self.began = time.perf_counter()

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None:
        """``advance`` steps are done, the last of them in ``epoch`` (from 0)."""
        self.current, self.loss, self.speed = epoch, loss, speed
        self.done += advance

    def left(self) -> str:
        """Time left, by all that this training took so far: the scoring after each epoch, too."""
        steps = self.done - self.first
        if not steps:
            return "-:-- left"
        return f"{clock((time.perf_counter() - self.began) / steps * (self.total - self.done))} left"

    def scores(self, room: int) -> str:
        """As much of loss, accuracy and speed as fits in so many columns."""
        return next((text for text in self._scores() if len(text) <= room), "")

    def _scores(self) -> Iterator[str]:
        if self.loss is None:
            return
        loss, speed = f"loss {self.loss:.3f}", f"{self.speed:,.0f} img/s"
        if self.calibration is None:
            yield from (f"{loss}  {speed}", loss)
            return
        top1 = f"{self.calibration:.1f} %"
        yield from (f"{loss}  calibration {top1}  {speed}", f"{loss}  calibration {top1}", f"{loss}  {top1}", top1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        epoch, left = f"epoch {min(self.current + 1, self.epochs)}/{self.epochs}", self.left()
        room = width - len(f"{epoch}  {left}") - NARROWEST
        scores = self.scores(room - 2)
        if scores:
            left = f"{scores}  {left}"
        yield _line(epoch, self.done / self.total, left, options)


class PlanBar:
    """The line of a plan of several trainings; its time left counts down from an estimate."""

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.began = self.estimated_at = time.perf_counter()
        self.estimate: float | None = None

    def begin(self, step: int, steps: int, left: float | None) -> None:
        """Step number ``step`` of ``steps`` begins; it and all that follow take about ``left`` seconds, if known."""
        self.step, self.steps, self.estimate, self.estimated_at = step, steps, left, time.perf_counter()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name, now = f"step {self.step}/{self.steps}", time.perf_counter()
        if self.estimate is None:
            yield _line(name, (self.step - 1) / self.steps, "-:-- left", options)
            return
        left, passed = max(self.estimate - (now - self.estimated_at), 0.0), now - self.began
        share = passed / (passed + left) if passed + left else 1.0
        yield _line(name, share, f"{clock(left)} left", options)


def _line(name: str, share: float, right: str, options: ConsoleOptions) -> Text:
    """A bar between two texts, as wide as the terminal."""
    width = options.max_width
    bar = max(width - len(f"{name}  {right}"), 0)
    whole, rest = ("#", "-") if options.ascii_only else ("━", "─")
    full = int(bar * share)
    line = Text.assemble(f"{name} ", (whole * full, "green"), (rest * (bar - full), "bright_black"), f" {right}")
    line.truncate(width)
    return line
