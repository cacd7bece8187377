"""Targets of frozen networks: computed at every step, or once per view and cached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from kdcompress.api.cost import macs_of
from kdcompress.cache import GIB, TARGETS, ArrayStore, cache_dir
from kdcompress.data import Data, EvalBatches, StreamImages, TrainBatches
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.progress import Reporter
from kdcompress.engine.targets import CachedBatches, CachedEval, Targets, precision_error
from kdcompress.errors import usage_error
from kdcompress.methods.base import Frozen, FrozenMaps, StudentTask
from kdcompress.options import AddResStudentOptions, DistillOptions, PolishOptions, TargetOptions, TrainingOptions

Networks = Mapping[str, Frozen | FrozenMaps]

VIEWS = 8
MOST_ERROR = 0.05  # of the spread of the logits, by lower precision: five times that of a ResNet in bf16 (our choice)
WORTH_IT = 0.05  # share of the MACs of frozen networks and student together


def check_views(options: DistillOptions | AddResStudentOptions | PolishOptions) -> None:
    """Refuse cached targets of images that are mixed.

    Raises:
        UserError: ``target_views`` is not a number, or mixup or cutmix is on.
    """
    if options.chosen_views and (options.mixup or options.cutmix):
        problem = "--target-views cannot be combined with --mixup or --cutmix: each epoch mixes other images."
        raise usage_error(problem, "Leave one of the two out.")


def with_cached_targets(
    task: StudentTask,
    batches: TrainBatches,
    calibration: EvalBatches,
    data: Data,
    options: TrainingOptions,
    epochs: int,
    place: Place,
    note: Callable[[str], None],
    known: int | None = None,
) -> tuple[TrainBatches | CachedBatches, EvalBatches | CachedEval]:
    """Batches that carry the cached outputs of a task's frozen networks, if that was asked for or saves time.

    Args:
        known: The number of views that the training was begun with, if it was; for ``--target-views auto``.
    """
    if not isinstance(options, TargetOptions) or not task.frozen():
        return batches, calibration
    views = known if options.chosen_views is None else None
    if views is None:
        views = from_main(lambda: choose_views(task, batches, options, epochs, data.source.num_classes, note))
    if not views:
        return batches, calibration
    for network in task.frozen().values():
        network.to(place.device)
    folder = cache_dir(options.cache_dir) / TARGETS
    store = ArrayStore(folder, options.cache_size * GIB, note)
    shared = data.source.fingerprint, store, place, note

    def targets(networks: Networks, split: TrainBatches | EvalBatches) -> Targets:
        return Targets(networks, _widths(networks, data.source.num_classes), split, *shared)

    size = gib(views, len(batches.images.ids), sum(_widths(task.frozen(), data.source.num_classes).values()))
    outputs = "features" if any(isinstance(network, FrozenMaps) for network in task.frozen().values()) else "logits"
    kind = "view" if batches.augment == "none" else "augmented view"
    note(f"Caching teacher {outputs} for {views} {kind}{'s' if views > 1 else ''} in {folder} ({size:.2g} GiB)")
    cached, eval_networks = CachedBatches(batches, targets(task.frozen(), batches), views), task.eval_frozen()
    return cached, CachedEval(calibration, targets(eval_networks, calibration)) if eval_networks else calibration


def check_precision(task: StudentTask, batches: TrainBatches, place: Place, reporter: Reporter) -> None:
    """Run a frozen network in float32 if lower precision changes its logits by more than a student should learn."""
    if place.precision == "fp32":
        return
    for network in [module for module in task.modules() if isinstance(module, Frozen)]:
        error = precision_error(network.to(place.device), batches, place)
        if not error <= MOST_ERROR:  # not a number, where it overflows
            network.exact = True
            name, change = type(network.model).__name__, f"{error:.0%}" if math.isfinite(error) else "without limit"
            reporter.note(f"Notice: {name} runs in fp32: {place.precision} changes its logits by {change}.")


def choose_views(
    task: StudentTask,
    batches: TrainBatches,
    options: TargetOptions,
    epochs: int,
    num_classes: int,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """K, the number of views to cache; 0 for new views each epoch without a cache.

    The MACs saved on the frozen networks are weighed against reading the images once more per view. From memory that
    costs nothing; from disk it counts as much as a whole step, which may well be waiting for the images (our choice).

    Depends on data, networks and options alone, never on the cache or the speed of this machine, so that results do
    not depend on them either.
    """
    wanted, frozen = options.chosen_views, task.frozen()
    if wanted == 0:
        return 0
    if getattr(options, "mixup", 0) or getattr(options, "cutmix", 0):  # each epoch mixes other images
        return 0
    if wanted:
        return wanted
    if any(isinstance(network, FrozenMaps) for network in frozen.values()):  # thousands of times the size of logits
        return 0
    if batches.augment == "none":
        return 1
    frozen_macs = sum(macs_of(network.model) for network in frozen.values())
    share = frozen_macs / (frozen_macs + 3 * macs_of(task.trained()))  # forward and backward: three times the forward
    read_again = VIEWS / epochs if isinstance(batches.images, StreamImages) else 0.0
    if share * (1 - VIEWS / epochs) - read_again < WORTH_IT:
        return 0
    size = gib(VIEWS + 1, len(batches.images.ids), num_classes * len(frozen))  # one more for the calibration split
    if size > options.cache_size:
        note(
            f"Notice: --cache-size {options.cache_size:g} has no room for {VIEWS} views ({size:.3g} GiB): teacher "
            "logits are computed at every step."
        )
        return 0
    return VIEWS


def shared_views(options: TargetOptions, data: Data, epochs: int, networks: int) -> int:
    """K for many trainings of up to ``epochs`` epochs with the same frozen networks; 0 if images are mixed.

    Caching always pays: the first training computes the targets, the others read them.
    """
    if options.chosen_views is not None:
        return options.chosen_views
    if getattr(options, "mixup", 0) or getattr(options, "cutmix", 0):
        return 0
    if data.source.is_raw or getattr(options, "augment", "auto") == "none":
        return 1
    fits = gib(VIEWS + 1, data.fit_size(), data.source.num_classes * networks) <= options.cache_size
    return min(epochs, VIEWS) if fits else 0


def gib(views: int, images: int, width: int) -> float:
    """GiB of cached outputs: a row [W] in float16 per image and view."""
    return 2 * views * images * width / GIB


def _widths(networks: Networks, num_classes: int) -> dict[str, int]:
    return {
        name: network.width if isinstance(network, FrozenMaps) else num_classes for name, network in networks.items()
    }
