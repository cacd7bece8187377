"""Whether bf16 works and pays off on this processor: tried in a child process, and cached.

The processor's flags are no proof. Virtual machines announce AMX and then refuse its instructions, which kills the
process; and where bf16 works, it is not always faster. So a child process tries it, first with oneDNN's own choice of
instructions and then without AMX, and the result is cached for this processor and this version of torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from kdcompress import schema
from kdcompress.cache import cache_dir
from kdcompress.errors import usage_error

ISA_VARIABLE, WITHOUT_AMX = "ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16"
WORTH_IT = 1.2

_TRIAL = """
import time, torch
from torch import nn
torch.manual_seed(0)
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    raise SystemExit(1)
layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
model = model.to(memory_format=torch.channels_last)
x = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
for half in range(2):
    best = {}
    for _ in range(12):
        for bf16 in (False, True):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(x).float().square().mean()
            loss.backward()
            best[bf16] = min(best.get(bf16, 1e9), time.perf_counter() - start)
    print(best[False] / best[True])
"""


class Process:
    """State of this process.

    Attributes:
        is_ours: Whether it runs a command, so that no network has run in it before.
        has_chosen_threads: Whether the number of threads is settled.
    """

    is_ours = False
    has_chosen_threads = False


@dataclass(frozen=True)
class Bf16:
    """How well a processor supports bf16.

    Attributes:
        runs: ``native``, ``limited`` (only with AMX disabled in oneDNN) or ``no``.
        speedup: Of a training step, over fp32.
    """

    runs: str
    speedup: float


def cpu_precision(name: str, trial: Callable[[], Bf16] | None = None) -> str:
    """``fp32`` or ``bf16`` for this processor; disables instructions in oneDNN that would kill the process.

    Args:
        name: What the user asked for; ``auto`` takes bf16 where it is at least 1.2 times as fast.
        trial: In place of :func:`bf16_support`, where one process runs it for all.

    Raises:
        UserError: bf16 was asked for and does not work here.
    """
    if name == "fp32":
        return "fp32"
    # asking torch about bf16 in this process would already fix oneDNN's choice of instructions
    support = (trial or bf16_support)()
    if support.runs == "limited" and Process.is_ours:
        os.environ.setdefault(ISA_VARIABLE, WITHOUT_AMX)
    # where networks may have run in this process before, it is too late for the variable, and bf16 would kill it
    too_late = support.runs == "limited" and ISA_VARIABLE not in os.environ
    if support.runs == "no" or too_late:
        if name == "bf16":
            remedy = f"Use --precision fp32, or start Python with {ISA_VARIABLE}={WITHOUT_AMX}."
            remedy = remedy if too_late else "Use --precision fp32."
            raise usage_error("--precision bf16 does not work on this processor.", remedy)
        return "fp32"
    return "bf16" if name == "bf16" or support.speedup >= WORTH_IT else "fp32"


def bf16_support() -> Bf16:
    """The cached result of a trial on this processor; runs the trial if there is none."""
    key = hashlib.sha256(f"{torch.__version__} {torch.get_num_threads()} {_processor_flags()}".encode()).hexdigest()[
        :16
    ]
    file = cache_dir() / f"bf16-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return schema.check(json.loads(file.read_text()), Bf16)
    support, is_final = _try_out()
    if not is_final:
        return support
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(support)))
        temporary.replace(file)
    return support


def _try_out() -> tuple[Bf16, bool]:
    """The result of a trial, and whether to cache it: a trial may also fail because the machine is busy."""
    is_final = True
    for runs, variables in (("native", {}), ("limited", {ISA_VARIABLE: WITHOUT_AMX})):
        # the child is not one of torchrun's processes
        environment = {
            key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        try:
            done = subprocess.run(
                [sys.executable, "-c", _TRIAL], env={**environment, **variables}, capture_output=True, timeout=120
            )
            if done.returncode == 0:
                first, second = (float(line) for line in done.stdout.split())
                # halves that disagree mean a busy machine: the next command tries again
                same = (first >= WORTH_IT) == (second >= WORTH_IT)
                return Bf16(runs, round(min(first, second), 3)), same and is_final
        except (OSError, subprocess.SubprocessError):
            is_final = False
        except ValueError:
            continue
    return Bf16("no", 0.0), is_final


def _processor_flags() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return "".join(line for line in file.read().split("\n\n")[0].splitlines() if "MHz" not in line)
    return sys.platform
