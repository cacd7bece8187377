"""``import kdcompress``: cheap by itself, and enough for timm to know our networks, whichever comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = str(Path(__file__).parents[1] / "src")
ORDERS = {
    "ours first": "import kdcompress, timm",
    "timm first": "import timm, kdcompress",
    "a part of timm": "import kdcompress, timm.data",
    "our models": "import kdcompress.models, timm",
    # what transformers and others do on import: they ask whether timm is there, and don't import it
    "timm only looked for": "import kdcompress, importlib.util as u; assert u.find_spec('timm').name == 'timm'",
}
# a fork each from a process that has done the slow part, importing torch
IN_FORKS = """
import json, os, sys, traceback
import torch, torchvision
assert "timm" not in sys.modules and "kdcompress" not in sys.modules
for name, order in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        try:
            exec(order)
            import timm
            assert timm.is_model("resnet20_cifar") and timm.is_model("residual_cascade"), "not registered"
            assert not any(type(finder).__name__ == "_AfterTimm" for finder in sys.meta_path), "the finder is left over"
            for loader in (timm.__spec__.loader, timm.__loader__):
                assert type(loader).__name__ == "SourceFileLoader", "timm's own loader is not back"
            problem = ""
        except BaseException:
            problem = traceback.format_exc()
        os.write(1, (json.dumps([name, problem]) + chr(10)).encode())
        os._exit(0)
    os.wait()
"""


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": SRC}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    return dict(json.loads(line) for line in python("-c", IN_FORKS, json.dumps(ORDERS)).splitlines())


def test_the_import_and_the_command_line_are_light() -> None:
    """``kdcompress --help`` would take seconds, and every command seconds more than it needs."""
    heavy = "{'torch', 'timm', 'numpy', 'torchvision', 'sklearn', 'fvcore'} & set(sys.modules)"
    code = f"import sys, kdcompress, kdcompress.options, kdcompress.results, kdcompress.cli; print({heavy});"
    rare = "{'scipy', 'sklearn', 'optuna', 'matplotlib', 'onnx', 'onnxruntime', 'onnxscript'} & set(sys.modules)"
    assert python("-c", f"{code} import kdcompress.api; print({rare})") == "set()\nset()\n"


def test_a_command_does_not_import_what_only_timms_script_logs_to() -> None:
    """Who has Weights & Biases installed would wait two seconds longer for each command."""
    pytest.importorskip("wandb")
    code = "import sys; from kdcompress.cli import run; run(['profile-flops', 'lenet5', '--json'])"
    told = python("-c", f"{code}; print('wandb' in sys.modules); import wandb; print(wandb.__name__)")
    assert told.splitlines()[1:] == ["False", "wandb"]


@pytest.mark.parametrize("order", ORDERS)
def test_our_networks_are_registered_with_timm(problems: dict[str, str], order: str) -> None:
    """``timm.create_model('local-dir:…')`` of a cascade would fail, depending on the order of imports."""
    assert problems[order] == ""
