"""Memory that is freed and taken again at every step."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys
import torch
from kdcompress.engine.allocation import keep_memory

if sys.argv[1] == "kept":
    keep_memory()

def step():
    sum(torch.ones(size, 2**18).sum() for size in (16, 40, 24))  # up to 40 MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(40):  # huge pages fault a few times a step only: few steps would drown in what else happens
    step()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_a_step_finds_the_memory_of_the_one_before() -> None:
    """Page faults took a third of the time of two trainings side by side."""
    counts = {}
    for how in ("kept", "usual"):
        done = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
        counts[how] = int(done.stdout)
    assert counts["kept"] < 0.25 * counts["usual"], counts
