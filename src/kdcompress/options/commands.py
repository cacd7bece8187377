"""The options of each command."""

from __future__ import annotations

from dataclasses import dataclass

from kdcompress.option_set import Options, option
from kdcompress.options.groups import (
    AssistantOptions,
    GrowOptions,
    LightTeacherOptions,
    LogitOptions,
    ResidualOptions,
    SearchOptions,
    StartOptions,
    TeacherOptions,
)
from kdcompress.options.methods import METHODS, NONE, OPTIONAL, SEARCH, taking
from kdcompress.options.training import (
    MOST_CLASSES,
    MOST_EPOCHS,
    MOST_IMAGES,
    SHELL,
    TRAINING,
    CacheOptions,
    DataOptions,
    DeviceOptions,
    OutputOptions,
    TargetOptions,
    TrainingOptions,
)

MEASURES = ("confidence", "margin", "entropy", "energy", "agreement")


@dataclass(kw_only=True)
class TrainTeacherOptions(TrainingOptions):
    model: str = option("resnet32_cifar", "model spec, NAME[,key=value…]: ours or any of timm's")
    pretrained: bool = option(False, "start from timm's pretrained weights")


@dataclass(kw_only=True)
class DistillOptions(
    LightTeacherOptions,
    AssistantOptions,
    SearchOptions,
    GrowOptions,
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
        affects_result=False,
    )
    method: str = option(
        "kd",
        f"what the student learns from ({', '.join(taking(NONE, OPTIONAL))} need no TEACHER)",
        choices=METHODS,
    )
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
    run: str = option(
        "-", "a distilled student or a cascade; '-' reads it from standard input", argument=True, affects_result=False
    )
    teacher: str | None = option(
        None, "the teacher, where it is not the one RUN was distilled from", affects_result=False
    )
    search_storage: str | None = option(
        None,
        "share the trials of --search among machines that start the same command: a file that all see, or a database's "
        "URL (postgresql://…); those with --out train the best there, the others help",
        panel=SEARCH,
        affects_result=False,
    )


@dataclass(kw_only=True)
class GateCalibrateOptions(DataOptions, DeviceOptions, OutputOptions):
    run: str = option("-", "a cascade; '-' reads it from standard input", argument=True, affects_result=False)
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
        None,
        "file for a picture of accuracy and MACs: .png, .svg or .pdf (extra: plot)",
        file=True,
        affects_result=False,
    )


@dataclass(kw_only=True)
class PolishOptions(LogitOptions, TeacherOptions, TargetOptions, TrainingOptions):
    run: str = option("-", "a gated cascade; '-' reads it from standard input", argument=True, affects_result=False)
    teacher: str | None = option(
        None, "the teacher, where it is not the one RUN was distilled from", affects_result=False
    )
    epochs: int = option(5, "passes over the fit split", low=1, high=MOST_EPOCHS, panel=TRAINING)
    opt: str = option("sgd", "optimiser: sgd, adamw or any other of timm's", panel=TRAINING)

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
    run: str = option("-", "a run, '-', or any other trained network with --data", argument=True, affects_result=False)
    split: str = option("test", "which split", choices=("test", "calibration"))
    batch_size: int = option(128, "images at a time", low=1, high=MOST_IMAGES)
    plot: str | None = option(
        None,
        "file for a picture of accuracy and MACs: .png, .svg or .pdf (extra: plot)",
        file=True,
        affects_result=False,
    )


@dataclass(kw_only=True)
class DescribeDataOptions(DataOptions):
    data: str | None = option(
        "digits",
        "digits, synth-digits:K, a folder, torch/NAME, hfds/NAME, wds/NAME or py:module:function",
        argument=True,
        affects_result=False,
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
    run: str = option("-", "a run folder; '-' reads it from standard input", argument=True, affects_result=False)
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
