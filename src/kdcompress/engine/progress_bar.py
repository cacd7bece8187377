"""The live line of a training, made for the width of the terminal: epoch, bar, what fits of the scores, time left."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

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
        seconds = (time.perf_counter() - self.began) / steps * (self.total - self.done)
        minutes, second = divmod(round(seconds), 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours}:{minute:02}:{second:02} left" if hours else f"{minute}:{second:02} left"

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
        bar = max(width - len(f"{epoch}  {left}"), 0)
        whole, rest = ("#", "-") if options.ascii_only else ("━", "─")
        full = bar * self.done // self.total
        line = Text.assemble(f"{epoch} ", (whole * full, "green"), (rest * (bar - full), "bright_black"), f" {left}")
        line.truncate(width)
        yield line
