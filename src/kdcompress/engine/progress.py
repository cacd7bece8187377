"""What a person sees while a network trains: a live bar on a terminal, a line per epoch elsewhere; all on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Receives the course of a training."""

    def start(self, title: str, epochs: int, steps: int, done: int) -> None:
        """A training, or a phase of one, begins after ``done`` of all its ``epochs``."""

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None:
        """What only ``--verbose`` shows."""


class Silent:
    """Says nothing: other ranks, ``--quiet``, and Python callers unless they ask."""

    def start(self, title: str, epochs: int, steps: int, done: int) -> None: ...

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...

    def stop(self) -> None: ...

    def note(self, text: str) -> None: ...

    def detail(self, text: str) -> None: ...


class Terminal:
    """Writes to standard error.

    Args:
        verbose: A line per epoch also under the live bar.
    """

    def __init__(self, verbose: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not os.environ.get("NO_COLOR")
        self.verbose = verbose
        self.bar: Progress | None = None
        self.epochs = 0
        self.scores = ""  # of the last whole epoch
        self.began = time.perf_counter()
        self.first = 0

    def start(self, title: str, epochs: int, steps: int, done: int) -> None:
        self.epochs, self.first, self.began = epochs, done, time.perf_counter()
        if self.live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(title, total=epochs * steps, completed=done * steps, state="")
        else:
            self.note(f"{title}: {epochs} epochs of {steps} steps" + (f", from epoch {done + 1}" if done else ""))

    def step(self, epoch: int, loss: float, speed: float, advance: int) -> None:
        if self.bar is not None:
            state = f"epoch {epoch + 1}/{self.epochs}  loss {loss:.3f}  {speed:.0f} img/s{self.scores}"
            self.bar.update(self.task, advance=advance, state=state)

    def epoch(self, row: dict[str, Any]) -> None:
        self.scores = f"  train {row['train_top1']:.1f} %  calibration {row['calibration_top1']:.1f} %"
        if self.live and not self.verbose:
            return
        done = row["epoch"] - self.first
        left = (time.perf_counter() - self.began) / max(done, 1) * (self.epochs - row["epoch"])
        self.note(
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f}  train {row['train_top1']:.2f} %"
            f"  calibration {row['calibration_top1']:.2f} %  {row['images_per_second']:.0f} img/s  {left:.0f} s left"
        )

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)
        sys.stderr.flush()

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)
