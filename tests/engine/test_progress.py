"""What a terminal shows of a training: one line that fits, and a line per epoch only where epochs are long."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from heard import Heard
from kdcompress.engine import progress_bar
from kdcompress.engine.progress import NoticesOnce, Terminal
from kdcompress.engine.progress_bar import Bar, PlanBar


def drawn(bar: Bar | PlanBar, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(bar)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> Bar:
    """A training of 15 epochs with 40 steps each, in its 4th epoch, after 60 seconds."""
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: 0.0)
    made = Bar(15, 40, 0)
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: 60.0)
    made.calibration = 93.4
    made.step(3, 0.4123, 12345.6, 150)
    return made


def test_eighty_columns_show_bar_epoch_scores_and_time_left(bar: Bar) -> None:
    """The bar and the time left were cut off at the width that most terminals have."""
    line = drawn(bar, 80)
    assert len(line.rstrip("\n")) == 80
    for part in ("epoch 4/15", "━━━", "───", "loss 0.412", "calibration 93.4 %", "3:00 left"):
        assert part in line


def test_forty_columns_keep_what_matters_most(bar: Bar) -> None:
    """A split terminal would see a line that wraps, and scrolls at every refresh."""
    line = drawn(bar, 40)
    assert len(line.rstrip("\n")) == 40
    for part in ("epoch 4/15", "━━", "──", "93.4 %", "3:00 left"):
        assert part in line


@pytest.mark.parametrize("width", [1, 5, 12, 20, 27, 33, 60, 79, 120, 200])
@pytest.mark.parametrize("calibration", [None, 7.0, 100.0])
def test_no_width_is_exceeded(bar: Bar, width: int, calibration: float | None) -> None:
    """A line that wraps is drawn anew below itself four times a second."""
    bar.calibration = calibration
    line = drawn(bar, width).rstrip("\n")
    assert len(line) <= width
    assert "\n" not in line


def test_the_bar_is_as_long_as_the_work_done() -> None:
    """People plan their evening by it."""
    bar = Bar(10, 10, 0)
    shares = []
    for _ in range(10):
        bar.step(0, 1.0, 1.0, 10)
        line = drawn(bar, 80)
        shares.append(line.count("━") / (line.count("━") + line.count("─")))
    assert shares == pytest.approx([0.1 * number for number in range(1, 11)], abs=0.03)


def test_a_resumed_training_counts_only_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of yesterday took no time today: the time left would be far too short."""
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: 0.0)
    bar = Bar(10, 10, 8)
    assert bar.left() == "-:-- left"
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: 3600.0)
    bar.step(8, 1.0, 1.0, 10)
    assert bar.left() == "1:00:00 left"
    assert "epoch 9/10" in drawn(bar, 80)


def row(epoch: int, seconds: float) -> dict[str, Any]:
    scores = {"train_loss": 1.0, "train_top1": 50.0, "calibration_top1": 60.0, "images_per_second": 10.0}
    return {"epoch": epoch, "seconds": seconds, **scores}


def shown(seconds: float, *, terminal: bool, verbose: bool = False) -> str:
    """All that is written of a training of two epochs."""
    console = Console(width=80, file=io.StringIO(), force_terminal=terminal, color_system=None)
    reporter = Terminal(verbose, console)
    reporter.start("distill resnet8_cifar", 2, 5, 0)
    for epoch in range(2):
        reporter.step(epoch, 1.0, 10.0, 5)
        reporter.epoch(row(epoch + 1, seconds))
    reporter.stop()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_short_epochs_leave_no_lines_on_a_terminal() -> None:
    """A minute on digits would scroll the last result out of sight."""
    text = shown(1.0, terminal=True)
    assert "epoch 1/2  loss" not in text
    assert "━" in text
    assert text.startswith("distill resnet8_cifar: 2 epochs of 5 steps\n")


def test_long_epochs_leave_a_line_each() -> None:
    """Of a night's training nothing would be left to read in the morning."""
    text = shown(60.0, terminal=True)
    assert "epoch 1/2  loss 1.0000  train 50.00 %  calibration 60.00 %" in text
    assert "epoch 2/2  loss" in text


def test_verbose_leaves_a_line_per_epoch() -> None:
    """It is what --verbose promises."""
    assert "epoch 2/2  loss" in shown(1.0, terminal=True, verbose=True)


def test_a_log_has_lines_and_no_animation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log file full of escape codes."""
    text = shown(1.0, terminal=False)
    assert "\x1b" not in text
    assert text.count("epoch ") == 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(1.0, terminal=True) == text
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in shown(1.0, terminal=True)


def test_long_notices_are_not_broken() -> None:
    """A command or a path that is cut into lines cannot be copied."""
    console = Console(width=40, file=io.StringIO())
    Terminal(console=console).note("Notice: " + "x" * 100)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Notice: " + "x" * 100 + "\n"


def test_the_line_of_a_plan_counts_down_between_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """During a training of half an hour it would stand still."""
    now = 0.0
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now)
    bar = PlanBar()
    bar.begin(2, 7, 600.0)
    line = drawn(bar, 80)
    assert line.startswith("step 2/7 ─")
    assert line.rstrip("\n").endswith(" 10:00 left")
    now = 300.0
    line = drawn(bar, 80)
    assert line.rstrip("\n").endswith(" 5:00 left")
    assert line.count("━") == pytest.approx(line.count("─"), abs=1)
    now = 900.0
    assert "0:00 left" in drawn(bar, 80)
    for width in (1, 8, 20, 40):
        assert len(drawn(bar, width).rstrip("\n")) <= width


def test_the_plan_stays_above_the_training_and_goes_with_it() -> None:
    """One bar for the plan and one for the step; none is left on the screen."""
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    reporter = Terminal(console=console)
    reporter.plan(1, 2, 100.0)
    reporter.start("distill resnet8_cifar", 2, 5, 0)
    assert isinstance(console.file, io.StringIO)
    assert reporter.live is not None
    reporter.live.refresh()
    lines = console.file.getvalue().replace("\r", "\n").splitlines()
    plan = max(number for number, line in enumerate(lines) if "step 1/2" in line)
    assert "epoch 1/2" in "".join(lines[plan : plan + 2])
    reporter.stop()
    assert reporter.live is not None, "the plan goes on"
    reporter.plan_over()
    assert reporter.live is None
    assert shown(1.0, terminal=True).count("step ") == 0


def test_a_log_has_a_line_for_each_step_of_a_plan() -> None:
    """Whoever reads the log in the morning sees how far it had come."""
    console = Console(width=80, file=io.StringIO())
    reporter = Terminal(console=console)
    reporter.plan(3, 9, 1290.4)
    reporter.plan_over()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Step 3 of 9, 21:30 left\n"


def test_a_plan_whose_time_is_not_known_yet_counts_steps() -> None:
    """A number that nothing supports would be worse than none."""
    bar = PlanBar()
    bar.begin(2, 4, None)
    line = drawn(bar, 80)
    assert line.startswith("step 2/4 ")
    assert line.rstrip("\n").endswith("-:-- left")
    assert line.count("─") == pytest.approx(3 * line.count("━"), abs=3)
    console = Console(width=80, file=io.StringIO())
    Terminal(console=console).plan(2, 4, None)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Step 2 of 4\n"


def test_several_commands_give_a_notice_once() -> None:
    """A plan of ten trainings would say ten times that two images were left out; but each of its steps is said."""
    heard = Heard()
    once = NoticesOnce(heard)
    for _ in range(2):
        once.start("distill", 2, 10, 0)
        once.note("Notice: two images were left out.")
        once.note("Training with sgd")
    assert heard.notes == ["Notice: two images were left out.", "Training with sgd", "Training with sgd"]
