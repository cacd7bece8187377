"""How each method is trained: the half of the table (:mod:`kdcompress.options.methods`) that imports torch."""

from __future__ import annotations

from collections.abc import Callable

from kdcompress.api.job import Job
from kdcompress.api.recipes.logits import by_task, kd, supervised, tf_kd
from kdcompress.api.recipes.lwkd import train_lwkd
from kdcompress.api.recipes.rkd_assistant import train_rkd_assistant
from kdcompress.options import DistillOptions
from kdcompress.results import TrainResult

RECIPES: dict[str, Callable[[Job[DistillOptions]], TrainResult]] = {
    "ce": by_task(supervised),
    "label-smoothing": by_task(supervised),
    "tf-kd": by_task(tf_kd),
    "kd": by_task(kd),
    "reskd": by_task(kd, as_first_member=True),
    "rkd-assistant": train_rkd_assistant,
    "lwkd": train_lwkd,
}
