"""The options of each command."""

from __future__ import annotations

from dataclasses import dataclass

from kdcompress.errors import usage_error
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
    UnlabelledOptions,
)
from kdcompress.options.methods import METHODS, NONE, OPTIONAL, SEARCH, taking
from kdcompress.options.training import (
    AUGMENTATIONS,
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
from kdcompress.references import Reference, paired

MOST_BATCH = 65_536  # images that are run at a time in a benchmark
ENGINES = ("torch", "onnxruntime")
MEASURES = ("confidence", "margin", "entropy", "energy", "agreement")


@dataclass(kw_only=True)
class ModelOptions(Options):
    """Options of commands that load any network."""

    arch: str | None = option(None, "model spec, if the network is a checkpoint file")
    weights_key: str | None = option(
        None, "which of several sets of weights in a checkpoint file, e.g. ema or student.state_dict"
    )


@dataclass(kw_only=True)
class TrainTeacherOptions(ModelOptions, TrainingOptions):
    """Options of ``train-teacher``."""

    model: str = option(
        "resnet32_cifar",
        "model spec, NAME[,key=value…], ours or any of timm's; or trained weights to start from: a run folder, '-', "
        "local-dir:PATH, hf-hub:ORG/NAME, or a checkpoint with --arch",
    )
    pretrained: bool = option(False, "start from timm's pretrained weights")

    @property
    def learner(self) -> Reference:
        return Reference(self.model, self.arch)


@dataclass(kw_only=True)
class DistillOptions(
    LightTeacherOptions,
    AssistantOptions,
    SearchOptions,
    GrowOptions,
    ResidualOptions,
    StartOptions,
    UnlabelledOptions,
    TeacherOptions,
    TargetOptions,
    TrainingOptions,
):
    """Options of ``distill``."""

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
    student: str = option(
        "resnet20_cifar",
        "model spec of the student (the default is for images of 32 pixels a side), or trained weights to start from: "
        "a run folder, '-', local-dir:PATH, hf-hub:ORG/NAME, or a checkpoint with --student-arch; auto: searched for, "
        "with a res-student (--search)",
    )
    student_arch: str | None = option(None, "model spec of a --student that is a checkpoint file")
    pretrained: bool = option(False, "start the student from timm's pretrained weights")
    arch: tuple[str, ...] = option(
        (),
        "model spec of TEACHER if that is a checkpoint file; further ones are of the res-students (repeat the "
        "flag; the last one is used for the rest)",
    )

    @property
    def learner(self) -> Reference:
        return Reference(self.student, self.student_arch)


@dataclass(kw_only=True)
class AddResStudentOptions(
    SearchOptions, ResidualOptions, StartOptions, UnlabelledOptions, TeacherOptions, TargetOptions, TrainingOptions
):
    """Options of ``add-res-student``."""

    run: str = option(
        "-", "a distilled student or a cascade; '-' reads it from standard input", argument=True, affects_result=False
    )
    teacher: str | None = option(None, "the teacher, if not the one that RUN was distilled from", affects_result=False)
    pretrained: bool = option(
        False,
        "start the res-student from timm's pretrained weights; with --search, of the architectures that have them",
    )
    search_storage: str | None = option(
        None,
        "share the trials of --search among machines that run the same command: a file that all can access, or a "
        "database URL (postgresql://…); those with --out train the winner there, the others only run trials",
        panel=SEARCH,
        affects_result=False,
    )

    @property
    def learner(self) -> Reference | None:
        return next(iter(paired(self.arch)), None)


@dataclass(kw_only=True)
class CascadeOptions(DataOptions, DeviceOptions, OutputOptions):
    """Options of ``cascade``."""

    members: tuple[str, ...] = option(
        (),
        "two or more trained networks, from the cheapest to the dearest: runs, timm names, checkpoints with --arch",
        argument=True,
        affects_result=False,
    )
    arch: tuple[str, ...] = option(
        (), "model spec of a member that is a checkpoint file (repeat the flag, one for each such file)"
    )
    sum_weight: tuple[float, ...] = option(
        (),
        "weight of the earlier logits in each later network's sum; one for all, or the flag repeated per network after "
        "the first (default: 0, the last member that runs answers alone)",
        low=0,
        high=100,
    )
    teacher: str | None = option(
        None,
        "network that costs are compared with (default: that on record, else the last member)",
        affects_result=False,
    )
    teacher_arch: str | None = option(None, "model spec of a --teacher that is a checkpoint file")


@dataclass(kw_only=True)
class GateCalibrateOptions(DataOptions, DeviceOptions, OutputOptions):
    """Options of ``gate-calibrate``."""

    run: str = option("-", "a cascade; '-' reads it from standard input", argument=True, affects_result=False)
    max_drop: float | None = option(
        None, "fewest MACs that lose at most this many points of top-1 against running all members", low=0, high=100
    )
    target_macs: float | None = option(None, "best top-1 within this share of the teacher's MACs", above=0)
    target_ms: float | None = option(
        None,
        "best top-1 within this many milliseconds, on average, for a batch of --batch-size images; measured here, on "
        "calibration images",
        above=0,
    )
    threshold: tuple[float, ...] = option(
        (), "set thresholds by hand: one for all exits, or one per exit", low=0, high=1
    )
    confidence_level: float | None = option(
        None,
        "keep --max-drop on new images with this probability over the draw of the calibration images, e.g. 0.95; "
        "--target-macs with about this probability",
        above=0,
        below=1,
    )
    measure: str = option(
        "confidence",
        "certainty measure of the gate; auto: the best of these on the calibration split, except learned; "
        "learned: a model fitted on half of that split predicts whether the members to come would correct the answer",
        choices=("auto", *MEASURES, "learned"),
    )
    engine: str = option(
        "torch", "what --target-ms is for; onnxruntime exports the members in memory (extra: onnx)", choices=ENGINES
    )
    batch_size: int | None = option(
        None, "images per batch (default: 128; with --target-ms: 1)", low=1, high=MOST_BATCH
    )
    plot: str | None = option(
        None,
        "file for a plot of accuracy over MACs: .png, .svg or .pdf (extra: plot)",
        file=True,
        affects_result=False,
    )


@dataclass(kw_only=True)
class PolishOptions(LogitOptions, TeacherOptions, TargetOptions, TrainingOptions):
    """Options of ``polish``."""

    run: str = option("-", "a gated cascade; '-' reads it from standard input", argument=True, affects_result=False)
    teacher: str | None = option(None, "the teacher, if not the one that RUN was distilled from", affects_result=False)
    epochs: int = option(5, "passes over the fit split", low=1, high=MOST_EPOCHS, panel=TRAINING)
    opt: str = option("sgd", "optimiser: sgd, adamw or any other of timm's", panel=TRAINING)

    @property
    def fine_tunes(self) -> bool:
        """Always: polishing starts from trained weights."""
        return True

    @property
    def is_short_transfer(self) -> bool:
        """Never: the weights know the images, and crops are what is new of them."""
        return False


@dataclass(kw_only=True)
class ProfileFlopsOptions(ModelOptions):
    """Options of ``profile-flops``."""

    model: str = option(
        "-", "a run, '-', a model spec, local-dir:…, hf-hub:…, or a checkpoint with --arch", argument=True
    )
    by_module: bool = option(False, "list every module")
    input_size: str | None = option(None, "side, HxW or CxHxW (default: the model's own)")
    num_classes: int | None = option(
        None, "number of classes, for a model spec (default: its own)", low=1, high=MOST_CLASSES
    )


@dataclass(kw_only=True)
class EvalOptions(ModelOptions, DataOptions, DeviceOptions, CacheOptions):
    """Options of ``eval``."""

    run: str = option("-", "a run, '-', or any other trained network with --data", argument=True, affects_result=False)
    split: str = option("test", "split to evaluate on", choices=("test", "calibration"))
    score_teacher: bool | None = option(
        None,
        "score the teacher of RUN on the same split, once: its accuracy is cached (default: if it is on this disk)",
        affects_result=False,
    )
    batch_size: int = option(128, "images per batch", low=1, high=MOST_IMAGES)
    plot: str | None = option(
        None,
        "file for a plot of accuracy over MACs: .png, .svg or .pdf (extra: plot)",
        file=True,
        affects_result=False,
    )


@dataclass(kw_only=True)
class PredictOptions(ModelOptions, DeviceOptions):
    """Options of ``predict``."""

    run: str = option(
        "-",
        "a run, '-' (standard input), an exported .onnx file, or any other trained network",
        argument=True,
        affects_result=False,
    )
    images: tuple[str, ...] = option(
        (),
        "files, and folders with all that is below them; '-' reads their paths from standard input, one per line",
        argument=True,
        affects_result=False,
    )
    null: bool = option(False, "paths on standard input end in NUL, as find -print0 writes them", short="-0")
    top_k: int = option(5, "most probable classes to list for each image (key top5)", low=1, high=MOST_CLASSES)
    batch_size: int = option(128, "images per batch", low=1, high=MOST_IMAGES)
    csv: str | None = option(None, "also write the rows to this CSV file", file=True, affects_result=False)


@dataclass(kw_only=True)
class ExportOptions(ModelOptions, DataOptions):
    run: str = option("-", "a run, '-', or any other trained network", argument=True, affects_result=False)
    format: str = option("onnx", "file format (extra: onnx)", choices=("onnx",))
    full: bool = option(False, "without the gate: every member runs on every image")
    precision: str = option(
        "fp32", "arithmetic; int8 is calibrated on calibration images and gets new thresholds", choices=("fp32", "int8")
    )
    preprocess: bool = option(
        False, "take uint8 [batch, height, width, channels] of any size; resize, crop and normalise in the graph"
    )
    opset: int = option(20, "version of the ONNX operator set", low=18, high=25)
    batch_size: int = option(64, "images at a time while the file is verified", low=1, high=MOST_IMAGES)
    out: str | None = option(None, "the file, NAME.onnx (default: a new one beside the run, with its name)", file=True)


@dataclass(kw_only=True)
class BenchmarkOptions(DataOptions, DeviceOptions):
    """Options of ``benchmark``."""

    networks: tuple[str, ...] = option(
        (),
        "runs, exported .onnx files, or other networks; each is compared with the first",
        argument=True,
        affects_result=False,
    )
    arch: tuple[str, ...] = option(
        (), "model spec of a network that is a checkpoint file (repeat the flag, one for each such file)"
    )
    batch_size: str = option("1,16,128", "images at a time; several sizes are separated by commas")
    images: int = option(512, "images to run, from all over the split", low=1, high=MOST_IMAGES)
    split: str = option("test", "split that they come from", choices=("test", "calibration"))
    engine: str = option(
        "torch",
        "what runs networks that are no .onnx files; onnxruntime exports them in memory (extra: onnx)",
        choices=ENGINES,
    )
    threads: int | None = option(None, "threads to compute with (default: one per free core)", low=1, high=1024)

    @property
    def batch_sizes(self) -> list[int]:
        """Of ``batch_size``, in its order.

        Raises:
            UserError: Not whole numbers, or out of range.
        """
        parts = [part.strip() for part in self.batch_size.split(",")]
        if not all(part.isascii() and part.isdigit() and 0 < len(part) < 8 for part in parts):
            problem = f"--batch-size {self.batch_size!r} is not a list of whole numbers."
            raise usage_error(problem, "Write it like --batch-size 1,16,128.")
        sizes = list(dict.fromkeys(map(int, parts)))
        if not all(1 <= size <= MOST_BATCH for size in sizes):
            raise usage_error(f"--batch-size {self.batch_size} is out of range.", f"Give 1 to {MOST_BATCH}.")
        return sizes


@dataclass(kw_only=True)
class ReportOptions(DataOptions, DeviceOptions):
    """Options of ``report``."""

    runs: tuple[str, ...] = option(
        (),
        "the run that the report is about (default: '-'), then others to show beside it",
        argument=True,
        affects_result=False,
    )
    arch: tuple[str, ...] = option(
        (), "model spec of a network that is a checkpoint file (repeat the flag, one for each such file)"
    )
    format: str | None = option(
        None, "web page or model card (default: by the ending of --out, else html)", choices=("html", "md")
    )
    split: str | None = option(
        None, "split to evaluate on (default: test, if the data have one)", choices=("test", "calibration")
    )
    score_teacher: bool | None = option(
        None, "run the teacher on the same images, too (default: if it is on this disk)", affects_result=False
    )
    time: bool | None = option(None, "measure milliseconds, for about a second per network (default: yes)")
    examples: int = option(4, "example images of each kind at each exit", low=0, high=16)
    batch_size: int = option(128, "images per batch", low=1, high=MOST_IMAGES)
    out: str | None = option(
        None, "the file (default: report.html, or README.md for a model card, in the folder of RUN)", file=True
    )


@dataclass(kw_only=True)
class DescribeDataOptions(DataOptions):
    """Options of ``data``."""

    data: str | None = option(
        "digits",
        "digits, synth-digits:K, a folder, a .csv or .jsonl file, torch/NAME, hfds/NAME, wds/NAME, py:module:function",
        argument=True,
        affects_result=False,
    )
    preview: str | None = option(None, "file for a contact sheet, e.g. sheet.png", file=True)
    find_copies: bool = option(False, "look for test images that training has, too, among more than 5,000 images")
    images: int = option(64, "images on the sheet", low=1, high=4096)
    split: str = option("fit", "split to show", choices=("fit", "calibration", "test"))
    augment: str = option("none", "augmentation; auto: what training uses", choices=AUGMENTATIONS)
    seed: int = option(0, "seed of the choice of images and of their augmentation", low=0, high=2**31 - 1)


@dataclass(kw_only=True)
class VerifyOptions(Options):
    """Options of ``verify``."""

    run: str = option("-", "a run folder; '-' reads it from standard input", argument=True, affects_result=False)
    accept: bool = option(False, "record the files as they are now, after a change of your own")


@dataclass(kw_only=True)
class WatchOptions(Options):
    """Options of ``watch``."""

    run: str = option("-", "folder of a run that is being trained", argument=True, affects_result=False)


@dataclass(kw_only=True)
class PushOptions(Options):
    """Options of ``push``."""

    run: str = option("-", "a run folder; '-' reads it from standard input", argument=True, affects_result=False)
    repository: str | None = option(
        None, "hf-hub:ORG/NAME; made if it is not there", argument=True, affects_result=False
    )
    private: bool = option(False, "make a new repository private")
    message: str = option("Add model", "message of the commit")


@dataclass(kw_only=True)
class CacheCommandOptions(CacheOptions):
    """Options of ``cache``."""

    clear: bool = option(False, "remove all cached files")


@dataclass(kw_only=True)
class ShellOptions(Options):
    """How the command line itself behaves."""

    config: str | None = option(
        None, "YAML or JSON file of options; those of one command go under its name", panel=SHELL, file=True
    )
    json: bool | None = option(
        None, "print the result as one line of JSON (default: unless on a terminal)", panel=SHELL
    )
    quiet: bool = option(False, "print no progress", panel=SHELL)
    trust_code: bool = option(False, "allow a run folder's py:module:function to be run", panel=SHELL)
    verbose: bool = option(
        False, "print a line per epoch, every key of the result, and warnings of libraries", panel=SHELL
    )
