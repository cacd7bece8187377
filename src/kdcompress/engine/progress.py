"""What a person sees of long work: live bars on a terminal, a line per epoch and per step elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live

from kdcompress.engine.progress_bar import Bar, PlanBar
from kdcompress.quantities import clock

LONG_EPOCH = 10  # seconds; on a terminal, only an epoch that takes longer leaves a line


class Reporter(Protocol):
    """Receives the course of a training."""

    def plan(self, step: int, steps: int, left: float | None) -> None:
        """Of a plan of several trainings, step number ``step`` of ``steps`` (from 1) begins.

        Args:
            left: Estimated seconds, of this step and all that follow; None while nothing is known.
        """

    def plan_over(self) -> None:
        """The plan is carried out, or was interrupted."""

    def start(self, title: str, epochs: int, steps: int, done: int) -> None:
        """A training, or a phase of one, begins after ``done`` of all its ``epochs``."""

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None:
        """``advance`` more steps of epoch ``epoch`` are done: loss, and images per second."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over; ``row`` is its row of ``metrics.csv``."""

    def stop(self) -> None:
        """The training, or the phase, is over or was interrupted."""

    def note(self, text: str) -> None:
        """A line for the user: what is being done, or a notice."""

    def detail(self, text: str) -> None:
        """What only ``--verbose`` shows."""


class Silent:
    """Says nothing: other ranks, ``--quiet``, and Python callers unless they ask."""

    def plan(self, step: int, steps: int, left: float | None) -> None: ...

    def plan_over(self) -> None: ...

    def start(self, title: str, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...


class NoticesOnce:
    """Passes everything on, but the same notice only once: several commands on the same data would all repeat it."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.plan, self.plan_over = reporter.plan, reporter.plan_over
        self.start, self.step, self.epoch, self.stop = reporter.start, reporter.step, reporter.epoch, reporter.stop
        self.detail, self.said = reporter.detail, set[str]()

    def note(self, text: str) -> None:
        if text not in self.said:
            self.reporter.note(text)
        if text.startswith(("Notice:", "Warning:")):
            self.said.add(text)


class Terminal:
    """Writes to standard error.

    Args:
        verbose: A line per epoch also under the live bar.
        console: By default one on standard error.
    """

    def __init__(self, verbose: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        animated = self.console.is_terminal and not self.console.is_dumb_terminal
        self.animated = animated and not os.environ.get("NO_COLOR")
        self.verbose = verbose
        self.live: Live | None = None
        self.bar: Bar | None = None
        self.overall: PlanBar | None = None
        self.epochs = 0
        self.began = time.perf_counter()
        self.first = 0

    def plan(self, step: int, steps: int, left: float | None) -> None:
        self.note(f"Step {step} of {steps}" + (f", {clock(left)} left" if left is not None else ""))
        if self.animated:
            self.overall = self.overall or PlanBar()
            self.overall.begin(step, steps, left)
            self._draw()

    def plan_over(self) -> None:
        self.overall = None
        self._draw()

    def start(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.first, self.began = epochs, done, time.perf_counter()
        length = f"{epochs} epoch{'s' * (epochs != 1)} of {steps} step{'s' * (steps != 1)}"
        self.note(f"{title}: {length}" + (f", from epoch {done + 1}" if done else ""))
        if self.animated:
            self.bar = Bar(epochs, steps, done)
            self._draw()

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None:
        if self.bar is not None:
            self.bar.step(epoch, loss, speed, advance)

    def epoch(self, row: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.calibration = row["calibration_top1"]
            if not self.verbose and row["seconds"] < LONG_EPOCH:
                return
        done = row["epoch"] - self.first
        left = (time.perf_counter() - self.began) / max(done, 1) * (self.epochs - row["epoch"])
        self.note(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f}  train {row['train_top1']:.2f} %"
            f"  calibration {row['calibration_top1']:.2f} %  {row['images_per_second']:.0f} img/s  {clock(left)} left"
        )

    def stop(self) -> None:
        self.bar = None
        self._draw()

    def _draw(self) -> None:
        """Show the bars that there are, one below the other."""
        bars = [bar for bar in (self.overall, self.bar) if bar is not None]
        if self.live is not None:
            self.live.stop()
            self.live = None
        if bars:
            self.live = Live(Group(*bars), console=self.console, transient=True)
            self.live.start()

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, emoji=False, soft_wrap=True)
        sys.stderr.flush()

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)
