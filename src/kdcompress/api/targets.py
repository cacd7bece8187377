"""How often frozen networks are asked: at every step, or once a view."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kdcompress.api.cost import macs_of
from kdcompress.cache import GIB, TARGETS, ArrayStore, cache_dir
from kdcompress.data import Data, EvalBatches, StreamImages, TrainBatches
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.progress import Reporter
from kdcompress.engine.targets import CachedBatches, CachedEval, Targets, precision_agreement
from kdcompress.errors import usage_error
from kdcompress.methods.base import Frozen, FrozenMaps, StudentTask
from kdcompress.options import AddResStudentOptions, DistillOptions, PolishOptions, TargetOptions, TrainingOptions

Networks = Mapping[str, Frozen | FrozenMaps]

VIEWS = 8
AGREEMENT = 0.995  # of the top-1 in lower precision with that in float32
WORTH_IT = 0.05  # of the frozen networks' and the student's work together


def check_views(options: DistillOptions | AddResStudentOptions | PolishOptions) -> None:
    """Refuse views that there cannot be.

    Raises:
        UserError: ``target_views`` is no number, or images are mixed.
    """
    if options.chosen_views and (options.mixup or options.cutmix):
        problem = "--target-views does not go with --mixup or --cutmix: no two epochs mix alike."
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
) -> tuple[TrainBatches | CachedBatches, EvalBatches | CachedEval]:
    """Batches that bring what the frozen networks of a task say about them, where that is chosen or saves time."""
    if not isinstance(options, TargetOptions) or not task.frozen():
        return batches, calibration
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
    note(
        f"What frozen networks say is computed once for {views} view(s) of the images, and kept in {folder} "
        f"({size:.2g} GiB)"
    )
    found, asked = CachedBatches(batches, targets(task.frozen(), batches), views), task.eval_frozen()
    return found, CachedEval(calibration, targets(asked, calibration)) if asked else calibration


def check_precision(task: StudentTask, batches: TrainBatches, place: Place, reporter: Reporter) -> None:
    """Let frozen networks that lower precision changes run in float32: those whose top-1 differs on over 0.5 %."""
    if place.precision == "fp32":
        return
    for network in [module for module in task.modules() if isinstance(module, Frozen)]:
        agreement = precision_agreement(network.to(place.device), batches, place)
        if agreement < AGREEMENT:
            network.exact = True
            name = type(network.model).__name__
            reporter.note(
                f"Notice: in {place.precision} {name} agrees with itself on {agreement:.1%}; it runs in fp32."
            )


def choose_views(
    task: StudentTask,
    batches: TrainBatches,
    options: TargetOptions,
    epochs: int,
    num_classes: int,
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """K, or 0 where every epoch has a view of its own.

    The work of the frozen networks that is saved is weighed against the images that are read once more for each view:
    from memory that is nothing, from the disk as much as the whole step, which may well wait for them (our choice).

    A function of data, networks and options alone, never of what is in the cache or how fast this machine is: a result
    must not depend on them.
    """
    wanted, frozen = options.chosen_views, task.frozen()
    if wanted == 0:
        return 0
    if getattr(options, "mixup", 0) or getattr(options, "cutmix", 0):  # no two epochs mix alike
        return 0
    if wanted:
        return wanted
    if any(isinstance(network, FrozenMaps) for network in frozen.values()):  # thousands of times the size of logits
        return 0
    if batches.augment == "none":
        return 1
    asked = sum(macs_of(network.model) for network in frozen.values())
    share = asked / (asked + 3 * macs_of(task.trained()))  # forward and backward: three times the forward
    read_again = VIEWS / epochs if isinstance(batches.images, StreamImages) else 0.0
    if share * (1 - VIEWS / epochs) - read_again < WORTH_IT:
        return 0
    size = gib(VIEWS + 1, len(batches.images.ids), num_classes * len(frozen))  # one more for the calibration split
    if size > options.cache_size:
        note(
            f"Notice: --cache-size {options.cache_size:g} has no room for {VIEWS} views ({size:.3g} GiB): what frozen "
            "networks say is computed at every step."
        )
        return 0
    return VIEWS


def shared_views(options: TargetOptions, data: Data, epochs: int, networks: int) -> int:
    """K for many trainings of up to ``epochs`` epochs that ask the same frozen networks; 0 where images are mixed.

    Always worth it: what the first one computes, the others read.
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
    """Of what is kept: a row [W] in float16 for each image of each view."""
    return 2 * views * images * width / GIB


def _widths(networks: Networks, num_classes: int) -> dict[str, int]:
    return {
        name: network.width if isinstance(network, FrozenMaps) else num_classes for name, network in networks.items()
    }
