"""Options of every training: data, device, output, schedule, cache."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdcompress.errors import usage_error
from kdcompress.option_set import Options, option
from kdcompress.references import Reference

DATA, TRAINING, RUN, SHELL = "Data", "Training", "Run", "Shell"
CACHE = "Cached targets"
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
LEAST_PATIENCE, MOST_PATIENCE = 5, 7 * 86400  # seconds
AUGMENTATIONS = ("auto", "none", "flip", "crop", "crop-flip", "rrc-flip")
SHORT_TRANSFER = 10  # epochs
MOST_EPOCHS, MOST_IMAGES, MOST_CLASSES = 1_000_000, 1_000_000, 1_000_000  # more is a typing error


def in_seconds(text: str) -> float | None:
    """Seconds of a duration such as ``90``, ``90s``, ``30m`` or ``2h``; None if it is not one."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip(), re.ASCII)
    return None if match is None else float(match[1]) * SECONDS[match[2]]


@dataclass(kw_only=True)
class DataOptions(Options):
    """Which images, and how they are read."""

    data: str | None = option(
        None,
        "digits, synth-digits:K, a folder of class folders (in train/ and test/, or in neither), a .csv or .jsonl file "
        "of paths and labels, unlabelled:DIR, torch/cifar10, hfds/NAME, wds/NAME, py:module:function (default: that of "
        "the run, else digits)",
        panel=DATA,
        affects_result=False,
    )
    data_dir: str | None = option(
        None, "where named data sets (torch/, hfds/, wds/) are stored", panel=DATA, file=True, affects_result=False
    )
    download: bool = option(False, "download a torch/… data set if it is missing", panel=DATA, affects_result=False)
    holdout: float | None = option(
        None,
        "share of the training split held out for calibration (default: that of the run, else 0.1)",
        above=0,
        below=1,
        panel=DATA,
    )
    input_size: str | None = option(
        None,
        "input size of the network: side, HxW or CxHxW (default: that of the images if they are small and of one size)",
        panel=DATA,
    )
    skip_bad_images: bool = option(False, "leave out images that cannot be read", panel=DATA)
    loading: str = option(
        "auto", "keep images in memory, or stream them", choices=("auto", "memory", "stream"), panel=DATA
    )
    workers: int | None = option(
        None,
        "processes that read images (default: one per core, up to 8)",
        low=0,
        high=1024,
        panel=DATA,
        affects_result=False,
    )


@dataclass(kw_only=True)
class DeviceOptions(Options):
    """Where and in which precision to compute."""

    device: str = option(
        "auto", "device to compute on", choices=("auto", "cpu", "cuda", "mps"), panel=RUN, affects_result=False
    )
    precision: str = option(
        "auto",
        "floating-point precision; auto trains in the fastest and evaluates in fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
        panel=RUN,
        affects_result=False,
    )
    dist_timeout: str = option(
        "5m",
        "with several processes: how long to wait for one that does not respond, e.g. 90s or 5m",
        panel=RUN,
        affects_result=False,
    )

    @property
    def patience(self) -> float:
        """Seconds of ``dist_timeout``.

        Raises:
            UserError: It is not a duration, or so short that a busy process would count as dead.
        """
        seconds = in_seconds(self.dist_timeout)
        if seconds is None:
            problem = f"--dist-timeout {self.dist_timeout!r} is not a duration."
            raise usage_error(problem, "Write seconds, minutes or hours: 90s, 5m or 1h.")
        if not LEAST_PATIENCE <= seconds <= MOST_PATIENCE:
            problem = f"--dist-timeout {self.dist_timeout!r} is out of range."
            raise usage_error(problem, f"Give {LEAST_PATIENCE} seconds to {MOST_PATIENCE // 86400} days, e.g. 5m.")
        return seconds


@dataclass(kw_only=True)
class OutputOptions(Options):
    """The run folder that a command writes."""

    out: str | None = option(
        None, "folder of the new run (default: a new one under runs/)", panel=RUN, file=True, affects_result=False
    )
    resume: bool = option(
        False,
        "continue the run in --out if it was interrupted; a finished one is left as it is",
        panel=RUN,
        affects_result=False,
    )


@dataclass(kw_only=True)
class LogOptions(Options):
    """Where the rows of ``metrics.csv`` go, too."""

    tensorboard: bool = option(
        False, "also write TensorBoard events (extra: tensorboard)", panel=RUN, affects_result=False
    )
    log: str | None = option(
        None,
        "also log epochs to Weights & Biases or MLflow; their own variables say where (extras: wandb, mlflow)",
        choices=("wandb", "mlflow"),
        panel=RUN,
        affects_result=False,
    )


@dataclass(kw_only=True)
class TrainingOptions(DataOptions, DeviceOptions, OutputOptions, LogOptions):
    """How a network is trained; the same for every method."""

    epochs: int = option(30, "passes over the fit split", low=1, high=MOST_EPOCHS, panel=TRAINING)
    batch_size: int | None = option(
        None,
        "images per step, over all devices (default: up to 128, at least 40 steps per epoch; to fine-tune 400 in all)",
        low=1,
        high=MOST_IMAGES,
        panel=TRAINING,
    )
    lr: float | None = option(
        None,
        "peak learning rate (default, for a batch of 128: muon 0.01, sgd 0.1, a tenth of that to fine-tune; adam and "
        "most others 0.001; sgd's is proportional to the batch, others' grows with the root of larger ones)",
        above=0,
        panel=TRAINING,
    )
    weight_decay: float | None = option(
        None, "weight decay (default: 5e-4 for sgd, lars and larc, else 0.05)", low=0, panel=TRAINING
    )
    momentum: float = option(0.9, "Nesterov momentum of sgd and nmuon", low=0, below=1, panel=TRAINING)
    opt: str = option(
        "auto",
        "optimiser: sgd, adamw or any other of timm's; auto: nadamw to fine-tune, adamw for networks with LayerNorm, "
        "depthwise convolutions or no normalisation, else nmuon (Muon), or sgd for tiny images and batches",
        panel=TRAINING,
    )
    layer_decay: float | None = option(
        None,
        "lower the learning rate by this factor from each group of layers to the one before it (default: "
        "with --opt auto 0.75 to fine-tune networks with LayerNorm, else 1)",
        above=0,
        high=1,
        panel=TRAINING,
    )
    sched: str = option("cosine", "learning rate schedule", choices=("cosine", "step"), panel=TRAINING)
    warmup_epochs: float | None = option(
        None,
        "epochs of linear warm-up, fewer than --epochs (default: 5 % of them; to fine-tune 20 %)",
        low=0,
        high=MOST_EPOCHS,
        panel=TRAINING,
    )
    decay_epochs: float | None = option(
        None,
        "epochs between drops of the step schedule (default: a third of --epochs)",
        low=0.001,
        high=MOST_EPOCHS,
        panel=TRAINING,
    )
    decay_rate: float = option(0.1, "factor of each drop of the step schedule", above=0, high=1, panel=TRAINING)
    label_smoothing: float | None = option(
        None, "label smoothing (default: 0; distill --method label-smoothing: 0.1)", low=0, below=1, panel=TRAINING
    )
    mixup: float = option(0.0, "alpha of mixup, 0 for none", low=0, high=1000, panel=TRAINING)
    cutmix: float = option(0.0, "alpha of cutmix, 0 for none", low=0, high=1000, panel=TRAINING)
    clip_grad: float | None = option(None, "clip the gradient to this norm", above=0, panel=TRAINING)
    grad_accum: int = option(
        1, "steps over which gradients are accumulated before an update", low=1, high=MOST_IMAGES, panel=TRAINING
    )
    ema_decay: float | None = option(
        None, "keep (and save) a moving average of the weights, e.g. 0.999", above=0, below=1, panel=TRAINING
    )
    augment: str = option(
        "auto",
        "crop: shifted crops, rrc: random resized crops (streamed images); auto: rrc from 20 000 streamed images, else "
        "no crops to fine-tune for fewer than 10 epochs, no flips where images are grey or mirrored ones look like "
        "other classes",
        choices=AUGMENTATIONS,
        panel=TRAINING,
    )
    stop_top1: float | None = option(
        None, "stop as soon as the calibration accuracy reaches this percentage", above=0, high=100, panel=TRAINING
    )
    compile: bool = option(
        False,
        "compile the networks with torch.compile: faster steps, after a minute or two at the start",
        panel=RUN,
        affects_result=False,
    )
    sync_bn: str = option(
        "auto",
        "with several processes: BatchNorm statistics over all of them; auto: if one has fewer than 32 images per step",
        choices=("auto", "on", "off"),
        panel=TRAINING,
        affects_result=False,
    )
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31 - 1, panel=TRAINING)

    @property
    def learner(self) -> Reference | None:
        """The network that is trained, where the options name one: trained weights, or a model spec."""
        return None

    @property
    def fine_tunes(self) -> bool:
        """Whether training starts from trained weights, which a full learning rate would destroy."""
        return bool(getattr(self, "pretrained", False)) or (self.learner is not None and self.learner.has_weights)

    @property
    def is_short_transfer(self) -> bool:
        """Whether trained weights get new images for a few epochs only, which crops would make harder (our choice)."""
        return self.fine_tunes and self.epochs < SHORT_TRANSFER


@dataclass(kw_only=True)
class CacheOptions(Options):
    """The cache that runs share."""

    cache_dir: str | None = option(
        None,
        "where targets and lightweight teachers are cached (default: ~/.cache/kdcompress)",
        panel=CACHE,
        file=True,
        affects_result=False,
    )


@dataclass(kw_only=True)
class TargetOptions(CacheOptions):
    """Whether the outputs of frozen networks are computed at every step, or once and cached."""

    target_views: str = option(
        "auto",
        "augmented views of the images whose targets are computed once and cached; 0: no cache, new views each epoch; "
        "auto: 8 if that saves time",
        panel=CACHE,
    )
    cache_size: float = option(
        20.0, "GiB of targets to keep in the cache", low=0, high=2**40, panel=CACHE, affects_result=False
    )

    @property
    def chosen_views(self) -> int | None:
        """Number of views to cache; None for ``auto``.

        Raises:
            UserError: Neither ``auto`` nor a whole number.
        """
        if self.target_views == "auto":
            return None
        if not self.target_views.isascii() or not self.target_views.isdigit():
            raise usage_error(f"--target-views {self.target_views!r} is not a number.", "Give auto, 0, or e.g. 8.")
        if len(self.target_views) > 4:
            raise usage_error(f"--target-views {self.target_views!r} is too many.", "Give at most 9999.")
        return int(self.target_views)
