"""The options of ``compress``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kdcompress.errors import usage_error
from kdcompress.option_set import option
from kdcompress.options.commands import ENGINES, MOST_BATCH
from kdcompress.options.groups import TeacherOptions, UnlabelledOptions, time_limit
from kdcompress.options.methods import meaningless
from kdcompress.options.training import (
    MOST_EPOCHS,
    RUN,
    TRAINING,
    CacheOptions,
    DataOptions,
    DeviceOptions,
    LogOptions,
    OutputOptions,
)

BUDGETS = ("target_macs", "target_ms", "max_drop")
EXPORTS = ("none", "onnx", "onnx-int8")


@dataclass(kw_only=True)
class CompressOptions(
    TeacherOptions, UnlabelledOptions, CacheOptions, DataOptions, DeviceOptions, LogOptions, OutputOptions
):
    """Options of ``compress``."""

    teacher: str = option(
        "-",
        "run folder, '-', timm name, local-dir:PATH, hf-hub:ORG/NAME, or a checkpoint with --teacher-arch",
        argument=True,
        affects_result=False,
    )
    target_macs: float | None = option(None, "best top-1 within this share of the teacher's MACs", above=0, below=1)
    target_ms: float | None = option(
        None, "best top-1 within this many milliseconds, on average, for a batch of --batch-size images", above=0
    )
    max_drop: float | None = option(
        None, "fewest MACs that lose at most this many points of the teacher's top-1", low=0, high=100
    )
    engine: str = option("torch", "what --target-ms is for (onnxruntime needs the extra onnx)", choices=ENGINES)
    batch_size: int = option(1, "images per batch that --target-ms is for", low=1, high=MOST_BATCH)
    epochs: int = option(
        30, "of each member of a cascade, without --time-budget", low=1, high=MOST_EPOCHS, panel=TRAINING
    )
    time_budget: str | None = option(
        None, "how long all of it may take, e.g. 30m or 2h; sets the epochs", panel=TRAINING, affects_result=False
    )
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31 - 1, panel=TRAINING)
    export: str = option(
        "none",
        "also export the result, int8 with thresholds of its own (extra: onnx)",
        choices=EXPORTS,
        affects_result=False,
    )
    report: bool = option(True, "write a report, RUN/report.html", affects_result=False)
    yes: bool = option(False, "do not ask before the plan is carried out", panel=RUN, affects_result=False)
    dry_run: bool = option(False, "stop after the plan", panel=RUN, affects_result=False)

    def check(self) -> None:
        """Refuse what contradicts itself, or would have no effect.

        Raises:
            UserError: For the first such option.
        """
        name, _ = self.budget
        unused = [] if name == "target_ms" else [("engine", "no --target-ms"), ("batch_size", "no --target-ms")]
        if self.time_limit < math.inf:
            unused.append(("epochs", "--time-budget sets them"))
        for option_name, why in unused:
            if option_name in self.changed():
                raise meaningless(option_name, why)

    @property
    def budget(self) -> tuple[str, float]:
        """Name and value of the one that is given.

        Raises:
            UserError: None, or several.
        """
        given = [(name, getattr(self, name)) for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            problem = "compress needs a budget." if not given else "compress takes one budget."
            raise usage_error(problem, "Give one of --target-macs RATIO, --target-ms X and --max-drop POINTS.")
        return given[0]

    @property
    def timed_precision(self) -> str:
        """Precision of what is timed: the trainings' own, but ONNX Runtime gets networks in fp32."""
        return "auto" if self.engine == "onnxruntime" else self.precision

    @property
    def time_limit(self) -> float:
        """As :func:`~kdcompress.options.groups.time_limit`."""
        return time_limit(self.time_budget)
