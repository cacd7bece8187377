"""All options: default, help text and range, defined once for the command line, the config file and Python.

Every command has one dataclass. Nothing in this package imports torch.
"""

from kdcompress.options.commands import (
    ENGINES,
    MEASURES,
    AddResStudentOptions,
    BenchmarkOptions,
    CacheCommandOptions,
    CascadeOptions,
    DescribeDataOptions,
    DistillOptions,
    EvalOptions,
    ExportOptions,
    GateCalibrateOptions,
    ModelOptions,
    PolishOptions,
    PredictOptions,
    ProfileFlopsOptions,
    ShellOptions,
    TrainTeacherOptions,
    VerifyOptions,
)
from kdcompress.options.compress import CompressOptions
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
from kdcompress.options.methods import LOGIT_LOSSES, METHODS
from kdcompress.options.training import (
    CacheOptions,
    DataOptions,
    DeviceOptions,
    OutputOptions,
    TargetOptions,
    TrainingOptions,
)

__all__ = [
    "ENGINES",
    "LOGIT_LOSSES",
    "MEASURES",
    "METHODS",
    "AddResStudentOptions",
    "AssistantOptions",
    "BenchmarkOptions",
    "CacheCommandOptions",
    "CacheOptions",
    "CascadeOptions",
    "CompressOptions",
    "DataOptions",
    "DescribeDataOptions",
    "DeviceOptions",
    "DistillOptions",
    "EvalOptions",
    "ExportOptions",
    "GateCalibrateOptions",
    "GrowOptions",
    "LightTeacherOptions",
    "LogitOptions",
    "ModelOptions",
    "OutputOptions",
    "PolishOptions",
    "PredictOptions",
    "ProfileFlopsOptions",
    "ResidualOptions",
    "SearchOptions",
    "ShellOptions",
    "StartOptions",
    "TargetOptions",
    "TeacherOptions",
    "TrainTeacherOptions",
    "TrainingOptions",
    "VerifyOptions",
]
