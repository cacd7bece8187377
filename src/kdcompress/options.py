"""What a user can set: defaults, help texts and ranges, once for the command line, the config file and Python.

Every command has one dataclass. Nothing in this module imports torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kdcompress.errors import usage_error
from kdcompress.option_set import Options, option

METHODS = ("ce", "label-smoothing", "tf-kd", "kd", "reskd", "rkd-assistant", "lwkd")
LOGIT_LOSSES = ("kl", "dkd", "dist", "mse", "standardized-kl")
MEASURES = ("confidence", "margin", "entropy", "energy", "agreement")
TEACHERLESS = ("ce", "label-smoothing", "tf-kd")
ASSISTANT = "Residual KD with an assistant"
GROWING = "ResKD: a whole cascade at once"
LIGHT = "LW-KD: a lightweight teacher"
DATA, TRAINING, RUN, SHELL = "Data", "Training", "Run", "Shell"
CACHE = "Targets, computed once"
SEARCH = "Architecture search (extra: search)"
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
LEAST_PATIENCE, MOST_PATIENCE = 5, 7 * 86400  # seconds
MOST_EPOCHS, MOST_IMAGES, MOST_CLASSES = 1_000_000, 1_000_000, 1_000_000  # more is a slip of the pen

# what may differ when a run goes on: where things are and how they are watched, not what comes out
FREE_OPTIONS = frozenset(
    (
        "out",
        "resume",
        "plot",
        "tensorboard",
        "workers",
        "device",
        "precision",
        "download",
        "data_dir",
        "run",
        "teacher",
        "data",
        "cache_dir",
        "cache_size",
        "compile",
        "time_budget",
        "dist_timeout",
        "sync_bn",  # what is chosen is kept with the run
        "search_storage",
    )
)


def in_seconds(text: str) -> float | None:
    """A length of time, e.g. ``90``, ``90s``, ``30m`` or ``2h``; None where it is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip(), re.ASCII)
    return None if found is None else float(found[1]) * SECONDS[found[2]]


@dataclass(kw_only=True)
class DataOptions(Options):
    """Which images, and how they are read."""

    data: str | None = option(
        None,
        "digits, synth-digits:K, a folder with train/CLASS and test/CLASS, torch/cifar10, hfds/NAME, wds/NAME, "
        "py:module:function (default: the run's own, else digits)",
        panel=DATA,
    )
    data_dir: str | None = option(None, "where timm's named data sets are stored", panel=DATA, file=True)
    download: bool = option(False, "download a torch/… data set that is not there yet", panel=DATA)
    holdout: float | None = option(
        None,
        "share of the training split kept for calibration (default: the run's own, else 0.1)",
        above=0,
        below=1,
        panel=DATA,
    )
    input_size: str | None = option(
        None,
        "side, HxW or CxHxW that the network sees (default: the images' own where they are small and alike)",
        panel=DATA,
    )
    skip_bad_images: bool = option(False, "leave out images that cannot be read", panel=DATA)
    loading: str = option(
        "auto", "keep images in memory, or stream them", choices=("auto", "memory", "stream"), panel=DATA
    )
    workers: int | None = option(
        None, "processes that read images (default: one a core, up to 8)", low=0, high=1024, panel=DATA
    )


@dataclass(kw_only=True)
class DeviceOptions(Options):
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda", "mps"), panel=RUN)
    precision: str = option(
        "auto",
        "arithmetic; auto trains in the fastest and evaluates in fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
        panel=RUN,
    )
    dist_timeout: str = option(
        "5m", "of several processes: how long to wait for one that gives no sign of life, e.g. 90s or 5m", panel=RUN
    )

    @property
    def patience(self) -> float:
        """Seconds of ``dist_timeout``.

        Raises:
            UserError: It is no length of time, or too short to be told from a busy moment.
        """
        seconds = in_seconds(self.dist_timeout)
        if seconds is None:
            problem = f"--dist-timeout {self.dist_timeout} is no length of time."
            raise usage_error(problem, "Write seconds, minutes or hours: 90s, 5m or 1h.")
        if not LEAST_PATIENCE <= seconds <= MOST_PATIENCE:
            problem = f"--dist-timeout {self.dist_timeout} is out of range."
            raise usage_error(problem, f"Give {LEAST_PATIENCE} seconds to {MOST_PATIENCE // 86400} days, e.g. 5m.")
        return seconds


@dataclass(kw_only=True)
class OutputOptions(Options):
    out: str | None = option(None, "folder of the new run (default: a new one under runs/)", panel=RUN, file=True)
    resume: bool = option(
        False, "continue the run in --out if it was cut off; a finished one is left as it is", panel=RUN
    )


@dataclass(kw_only=True)
class TrainingOptions(DataOptions, DeviceOptions, OutputOptions):
    """How a network is trained; the same for every method."""

    epochs: int = option(30, "passes over the fit split", low=1, high=MOST_EPOCHS, panel=TRAINING)
    batch_size: int | None = option(
        None,
        "images a step, over all devices (default: up to 128, at least 40 steps an epoch)",
        low=1,
        high=MOST_IMAGES,
        panel=TRAINING,
    )
    lr: float | None = option(
        None,
        "peak learning rate (default: 0.1 (sgd) or 0.001 (others) times batch/128; a tenth to fine-tune)",
        above=0,
        panel=TRAINING,
    )
    weight_decay: float | None = option(None, "(default: 5e-4 for sgd, else 0.05)", low=0, panel=TRAINING)
    momentum: float = option(0.9, "of sgd (Nesterov)", low=0, below=1, panel=TRAINING)
    opt: str = option("sgd", "optimiser: sgd, adamw or any other of timm's", panel=TRAINING)
    sched: str = option("cosine", "learning rate schedule", choices=("cosine", "step"), panel=TRAINING)
    warmup_epochs: float | None = option(
        None, "of linear warm-up, fewer than --epochs (default: 5 % of them)", low=0, high=MOST_EPOCHS, panel=TRAINING
    )
    decay_epochs: float | None = option(
        None,
        "epochs between drops of the step schedule (default: a third)",
        low=0.001,
        high=MOST_EPOCHS,
        panel=TRAINING,
    )
    decay_rate: float = option(0.1, "factor of each drop of the step schedule", above=0, high=1, panel=TRAINING)
    label_smoothing: float | None = option(
        None, "(default: 0.1 for --method label-smoothing, else 0)", low=0, below=1, panel=TRAINING
    )
    mixup: float = option(0.0, "alpha of mixup, 0 for none", low=0, high=1000, panel=TRAINING)
    cutmix: float = option(0.0, "alpha of cutmix, 0 for none", low=0, high=1000, panel=TRAINING)
    clip_grad: float | None = option(None, "largest norm of the gradient", above=0, panel=TRAINING)
    grad_accum: int = option(
        1, "steps whose gradients are added up before an update", low=1, high=MOST_IMAGES, panel=TRAINING
    )
    ema_decay: float | None = option(
        None, "keep (and save) a moving average of the weights, e.g. 0.999", above=0, below=1, panel=TRAINING
    )
    augment: str = option(
        "auto",
        "crop: shifted crops, rrc: random resized crops (streamed images)",
        choices=("auto", "none", "crop", "crop-flip", "rrc-flip"),
        panel=TRAINING,
    )
    stop_top1: float | None = option(
        None, "stop as soon as the calibration accuracy reaches so many percent", above=0, high=100, panel=TRAINING
    )
    compile: bool = option(
        False, "translate the networks by torch.compile: a step is faster, the start takes a minute or two", panel=RUN
    )
    sync_bn: str = option(
        "auto",
        "of several processes: BatchNorm sees the images of all; auto: where one has fewer than 32 a step",
        choices=("auto", "on", "off"),
        panel=TRAINING,
    )
    seed: int = option(0, "of weights, order and augmentation", low=0, high=2**31 - 1, panel=TRAINING)
    tensorboard: bool = option(False, "also write TensorBoard events (extra: tensorboard)", panel=RUN)

    @property
    def fine_tunes(self) -> bool:
        """Whether training starts from good weights, which a full learning rate would destroy."""
        return bool(getattr(self, "pretrained", False))


@dataclass(kw_only=True)
class TrainTeacherOptions(TrainingOptions):
    model: str = option("resnet32_cifar", "model spec, NAME[,key=value…]: ours or any of timm's")
    pretrained: bool = option(False, "start from timm's pretrained weights")


@dataclass(kw_only=True)
class LogitOptions(Options):
    """The loss shared by the methods that learn from logits."""

    alpha: float | None = option(
        None,
        "weight of the distillation loss (default: 0.9; tf-kd 0.1; lwkd 0.5; of other logit losses their authors')",
        low=0,
        high=1,
    )
    temperature: float | None = option(
        None, "softens the logits (default: 4; tf-kd 20; standardized-kl 2)", above=0, high=1e6
    )
    logit_loss: str = option(
        "kl",
        "how far logits are from the teacher's: KL divergence, decoupled KD, DIST (correlations), squared error, KL of "
        "standardized logits",
        choices=LOGIT_LOSSES,
    )


@dataclass(kw_only=True)
class TeacherOptions(Options):
    teacher_arch: str | None = option(None, "model spec of a teacher that is a checkpoint file")


@dataclass(kw_only=True)
class StartOptions(Options):
    from_teacher: bool = option(
        False, "start from the teacher's weights, where layers fit: of a shallower network of its family and width"
    )


@dataclass(kw_only=True)
class CacheOptions(Options):
    cache_dir: str | None = option(
        None, "where targets and lightweight teachers are kept (default: ~/.cache/kdcompress)", panel=CACHE, file=True
    )


@dataclass(kw_only=True)
class TargetOptions(CacheOptions):
    """Whether frozen networks are asked at every step, or once."""

    target_views: str = option(
        "auto",
        "how many views of the images there are, whose targets are computed once and kept; 0: new ones each epoch; "
        "auto: 8, where that saves time",
        panel=CACHE,
    )
    cache_size: float = option(20.0, "GiB of targets that are kept", low=0, high=2**40, panel=CACHE)

    @property
    def chosen_views(self) -> int | None:
        """None for ``auto``.

        Raises:
            UserError: Neither that nor a whole number.
        """
        if self.target_views == "auto":
            return None
        if not self.target_views.isascii() or not self.target_views.isdigit():
            raise usage_error(f"--target-views {self.target_views} is no number.", "Give auto, 0, or e.g. 8.")
        if len(self.target_views) > 4:
            raise usage_error(f"--target-views {self.target_views} is too many.", "Give at most 9999.")
        return int(self.target_views)


@dataclass(kw_only=True)
class ResidualOptions(LogitOptions):
    residual_loss: str = option(
        "kl",
        "res-students learn from labels and teacher through the sum (kl), or fit the residual itself (mse)",
        choices=("kl", "mse"),
    )
    sum_weight: float | None = option(
        None,
        "of the logits so far beside those of a res-student; 1 sums them in full (default: the share of the MACs that "
        "the members so far have)",
        low=0,
        high=1,
    )
    residual_warmup: float = option(
        0.5,
        "share of the training in which a res-student turns from learning all that the teacher says to what the others "
        "leave of it",
        low=0,
        high=1,
    )
    arch: tuple[str, ...] = option((), "model spec of the res-student")


@dataclass(kw_only=True)
class AssistantOptions(Options):
    """Residual KD with an assistant (not Relational KD)."""

    assistant_share: float = option(
        0.1, "rkd-assistant: the assistant's part of --student's MACs", above=0, below=1, panel=ASSISTANT
    )
    scheme: str = option(
        "end-to-end",
        "student, then assistant, then classifier (60, 30 and 10 % of the epochs); or all at once",
        choices=("progressive", "end-to-end"),
        panel=ASSISTANT,
    )
    transfer: str = option(
        "at", "distance between feature maps: of attention maps, or L2", choices=("at", "fitnets"), panel=ASSISTANT
    )
    transfer_weight: float = option(1.0, "of the feature maps beside the cross-entropy", low=0, panel=ASSISTANT)
    logit_weight: float = option(0.0, "of the teacher's logits beside the cross-entropy", low=0, panel=ASSISTANT)
    student_weight: float = option(
        0.2,
        "share of the cross-entropy that is the student's alone, if all learn at once: behind a gate it answers first",
        low=0,
        high=1,
        panel=ASSISTANT,
    )
    undivided: bool = option(
        False, "train --student itself with the same transfer: the control, and plain FitNets or AT", panel=ASSISTANT
    )
    reuse_teacher_classifier: bool = option(False, "start from the teacher's classifier", panel=ASSISTANT)
    freeze_classifier: bool = option(
        False, "keep the classifier that --reuse-teacher-classifier takes as it is", panel=ASSISTANT
    )


@dataclass(kw_only=True)
class LightTeacherOptions(Options):
    """LW-KD."""

    teacher_top1: float = option(
        97.0,
        "lwkd: accuracy at which the lightweight teacher stops learning, for a perfect one has nothing to tell but "
        "the label",
        above=0,
        high=100,
        panel=LIGHT,
    )
    bank_size: int | None = option(
        None,
        "images of each class whose soft targets are kept (default: up to 128, in 512 MiB)",
        low=1,
        high=10**9,
        panel=LIGHT,
    )
    adversarial_weight: float = option(
        0.1, "of the discriminator's verdict beside the other losses; 0 for none", low=0, panel=LIGHT
    )
    adversarial_warmup: float = option(
        0.1, "share of the training in which that weight grows to its value", low=0, high=1, panel=LIGHT
    )
    class_map: str = option(
        "identity",
        "which number stands for a class: its own, a random one, or one that is confused as the class is (after an "
        "epoch's warm-up)",
        choices=("identity", "random", "similar"),
        panel=LIGHT,
    )


@dataclass(kw_only=True)
class GrowOptions(Options):
    """ResKD in one command."""

    res_students: int = option(
        0, "how many res-students to add (with --arch or --search)", low=0, high=1000, panel=GROWING
    )
    grow: bool = option(False, "add res-students (with --arch or --search) until there are enough", panel=GROWING)
    target_macs: float | None = option(
        None, "enough: what all members together may cost, as a share of the teacher's MACs", above=0, panel=GROWING
    )
    max_drop: float | None = option(
        None,
        "enough: top-1 within so many points of the teacher's, on the calibration split",
        low=0,
        high=100,
        panel=GROWING,
    )
    min_energy_drop: float = option(
        0.02,
        "a res-student that takes less than this share of the residual's energy away is left out, and ends it",
        low=0,
        high=1,
        panel=GROWING,
    )


@dataclass(kw_only=True)
class SearchOptions(Options):
    """Which res-student: the best of many that were trained for a short while."""

    search: bool = option(False, "find the architecture of each res-student, in place of --arch", panel=SEARCH)
    max_macs: float | None = option(
        None,
        "what a res-student may cost at most, as a share of the teacher's MACs (distill --grow: by default what "
        "--target-macs leaves)",
        above=0,
        high=1,
        panel=SEARCH,
    )
    trials: int | None = option(
        None, "how many architectures are tried (default: 20)", low=1, high=100_000, panel=SEARCH
    )
    time_budget: str | None = option(
        None,
        "no trial begins after so long, e.g. 90s, 30m or 2h, in the search for a res-student; then the best is trained "
        "in full (default: no limit)",
        panel=SEARCH,
    )

    @property
    def time_limit(self) -> float:
        """Seconds; infinity where there is no limit.

        Raises:
            UserError: ``time_budget`` is no length of time, or none at all.
        """
        if self.time_budget is None:
            return math.inf
        seconds = in_seconds(self.time_budget)
        if seconds is None or self.time_budget.strip()[-1] not in SECONDS:
            problem = f"--time-budget {self.time_budget} is no length of time."
            raise usage_error(problem, "Write seconds, minutes or hours: 90s, 30m or 2h.")
        if not 0 < seconds < math.inf:
            raise usage_error(f"--time-budget {self.time_budget} leaves no time to search.", "Give more, e.g. 30m.")
        return seconds


@dataclass(kw_only=True)
class DistillOptions(
    GrowOptions,
    SearchOptions,
    LightTeacherOptions,
    AssistantOptions,
    ResidualOptions,
    StartOptions,
    TeacherOptions,
    TargetOptions,
    TrainingOptions,
):
    teacher: str | None = option(
        None,
        "run folder, '-', timm name, local-dir:PATH, hf-hub:ORG/NAME, or a checkpoint with --arch or --teacher-arch",
        argument=True,
    )
    method: str = option("kd", "how the student is trained", choices=METHODS)
    student: str = option("resnet20_cifar", "model spec of the student")
    pretrained: bool = option(False, "start the student from timm's pretrained weights")
    arch: tuple[str, ...] = option(
        (),
        "model spec of a TEACHER that is a checkpoint; after it, or alone, of the res-students: repeat it for several, "
        "the last one serves the rest",
    )


@dataclass(kw_only=True)
class AddResStudentOptions(
    SearchOptions, ResidualOptions, StartOptions, TeacherOptions, TargetOptions, TrainingOptions
):
    run: str = option("-", "a distilled student or a cascade; '-' reads it from standard input", argument=True)
    teacher: str | None = option(None, "the teacher, where it is not the one RUN was distilled from")
    search_storage: str | None = option(
        None,
        "share the trials of --search among machines that start the same command: a file that all see, or a database's "
        "URL (postgresql://…); those with --out train the best there, the others help",
        panel=SEARCH,
    )


@dataclass(kw_only=True)
class GateCalibrateOptions(DataOptions, DeviceOptions, OutputOptions):
    run: str = option("-", "a cascade; '-' reads it from standard input", argument=True)
    max_drop: float | None = option(
        None, "least MACs that lose at most so many points of top-1 against running all members", low=0, high=100
    )
    target_macs: float | None = option(None, "best top-1 at this share of the teacher's MACs", above=0)
    threshold: tuple[float, ...] = option((), "set it by hand: one for all stages, or one a stage", low=0, high=1)
    confidence_level: float | None = option(
        None,
        "promise --max-drop of new images with this probability over the draw of the calibration images, e.g. 0.95",
        above=0,
        below=1,
    )
    measure: str = option(
        "confidence",
        "what the gate looks at; auto: what serves the target best on the calibration split",
        choices=("auto", *MEASURES),
    )
    batch_size: int = option(128, "images at a time", low=1, high=MOST_IMAGES)
    plot: str | None = option(
        None, "file for a picture of accuracy and MACs: .png, .svg or .pdf (extra: plot)", file=True
    )


@dataclass(kw_only=True)
class PolishOptions(LogitOptions, TeacherOptions, TargetOptions, TrainingOptions):
    run: str = option("-", "a gated cascade; '-' reads it from standard input", argument=True)
    teacher: str | None = option(None, "the teacher, where it is not the one RUN was distilled from")
    epochs: int = option(5, "passes over the fit split", low=1, high=MOST_EPOCHS, panel=TRAINING)

    @property
    def fine_tunes(self) -> bool:
        return True


@dataclass(kw_only=True)
class ModelOptions(Options):
    """A network to look at, by any reference."""

    arch: str | None = option(None, "model spec, where the argument is a checkpoint file")


@dataclass(kw_only=True)
class ProfileFlopsOptions(ModelOptions):
    model: str = option(
        "-", "a run, '-', a model spec, local-dir:…, hf-hub:…, or a checkpoint with --arch", argument=True
    )
    by_module: bool = option(False, "list every module")
    input_size: str | None = option(None, "side, HxW or CxHxW (default: the model's own)")
    num_classes: int | None = option(None, "classes of a model spec (default: its own)", low=1, high=MOST_CLASSES)


@dataclass(kw_only=True)
class EvalOptions(ModelOptions, DataOptions, DeviceOptions):
    run: str = option("-", "a run, '-', or any other trained network with --data", argument=True)
    split: str = option("test", "which split", choices=("test", "calibration"))
    batch_size: int = option(128, "images at a time", low=1, high=MOST_IMAGES)
    plot: str | None = option(
        None, "file for a picture of accuracy and MACs: .png, .svg or .pdf (extra: plot)", file=True
    )


@dataclass(kw_only=True)
class DescribeDataOptions(DataOptions):
    data: str | None = option(
        "digits",
        "digits, synth-digits:K, a folder, torch/NAME, hfds/NAME, wds/NAME or py:module:function",
        argument=True,
    )
    preview: str | None = option(None, "file for a contact sheet, e.g. sheet.png", file=True)
    images: int = option(64, "pictures on the sheet", low=1, high=4096)
    split: str = option("fit", "which split", choices=("fit", "calibration", "test"))
    augment: str = option(
        "none", "as for training; auto is what training does", choices=("auto", "none", "crop", "crop-flip", "rrc-flip")
    )
    seed: int = option(0, "of the choice and the augmentation", low=0, high=2**31 - 1)


@dataclass(kw_only=True)
class VerifyOptions(Options):
    run: str = option("-", "a run folder; '-' reads it from standard input", argument=True)
    accept: bool = option(False, "take the files as they are for what was written, after a change of your own")


@dataclass(kw_only=True)
class CacheCommandOptions(CacheOptions):
    clear: bool = option(False, "remove all that is kept")


@dataclass(kw_only=True)
class ShellOptions(Options):
    """How the command line itself behaves."""

    config: str | None = option(
        None, "YAML or JSON file of options; those of one command under its name", panel=SHELL, file=True
    )
    json: bool | None = option(None, "result as one line of JSON (default: off a terminal)", panel=SHELL)
    quiet: bool = option(False, "no progress", panel=SHELL)
    trust_code: bool = option(False, "run py:module:function where a run folder names it", panel=SHELL)
    verbose: bool = option(False, "a line per epoch, and the libraries' own warnings", panel=SHELL)
