"""The commands as Python functions; the command line only parses and prints."""

from kdcompress.api.add_res_student import add_res_student
from kdcompress.api.benchmark import benchmark
from kdcompress.api.cache import manage_cache
from kdcompress.api.cascade import cascade
from kdcompress.api.compress import compress
from kdcompress.api.describe import describe_data
from kdcompress.api.evaluate import evaluate
from kdcompress.api.export import export_network
from kdcompress.api.gate import gate_calibrate
from kdcompress.api.load import load
from kdcompress.api.polish import polish
from kdcompress.api.predict import predict, predictions
from kdcompress.api.profile import profile_flops
from kdcompress.api.push import push
from kdcompress.api.report import write_report
from kdcompress.api.train import distill, train_teacher
from kdcompress.api.verify import verify
from kdcompress.api.watch import epochs_of, watch

__all__ = [
    "add_res_student",
    "benchmark",
    "cascade",
    "compress",
    "describe_data",
    "distill",
    "epochs_of",
    "evaluate",
    "export_network",
    "gate_calibrate",
    "load",
    "manage_cache",
    "polish",
    "predict",
    "predictions",
    "profile_flops",
    "push",
    "train_teacher",
    "verify",
    "watch",
    "write_report",
]
