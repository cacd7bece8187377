"""ONNX Runtime: exported files opened, checked and run, and members run one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompress.data.preprocess import CENTER, Preprocess
from kdcompress.errors import UserError, first_line
from kdcompress.export.compose import EXIT_STAGE, Cascade
from kdcompress.export.members import IMAGES, LOGITS
from kdcompress.export.metadata import KEY, FileFacts, read_facts
from kdcompress.schema import Malformed

SUFFIX = ".onnx"


@dataclass
class OnnxNetwork:
    """A network that ``kdcompress export`` wrote.

    Attributes:
        session: ONNX Runtime's.
        facts: What the file says about itself.
    """

    path: Path
    session: Any
    facts: FileFacts

    @property
    def reference(self) -> str:
        """How messages name it: the path of the file."""
        return str(self.path)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.facts["num_classes"]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in logit order, where known."""
        names = self.facts["label_names"]
        return tuple(names) if names is not None else None

    @property
    def stage_macs(self) -> list[int]:
        """MACs of each stage."""
        members = self.facts["members"]
        return [member["macs"] for member in members] if members else [self.facts["macs"]]

    @property
    def prep(self) -> Preprocess:
        """How images are made into the input of the network; a file with ``preprocess`` does so itself."""
        facts = self.facts
        channels, height, width = facts["input_size"]
        crop = facts["crop_pct"], facts.get("crop_mode", CENTER)
        return Preprocess((height, width), channels, facts["mean"], facts["std"], facts["interpolation"], *crop)

    @property
    def record(self) -> dict[str, Any]:
        """What it has of the ``run.json`` of its run, under the same keys."""
        return {"options": dict(self.facts["source"]), "data_fingerprint": self.facts["data_fingerprint"]}

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, K], and the last stage [B] that each image ran.

        Args:
            images: float32 [B, C, H, W] normalised; of a file with ``preprocess`` uint8 [B, H, W, C].
        """
        logits, exits = self.session.run([LOGITS, EXIT_STAGE], {IMAGES: images})
        return logits, exits


def is_onnx(reference: str) -> bool:
    """Whether a reference names an ONNX file, there or not."""
    return Path(reference).suffix.lower() == SUFFIX and not os.path.isdir(reference)


def check_extra(purpose: str, *packages: str) -> None:
    """Raises:
    UserError: Packages of the extra ``onnx`` are not installed.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise UserError(f"{purpose} needs {', '.join(missing)}.", "pip install 'kdcompress[onnx]'", exit_code=2)


def open_onnx(file: str | Path, threads: int | None = None) -> OnnxNetwork:
    """Open a file that ``kdcompress export`` wrote.

    Args:
        threads: That ONNX Runtime computes with; its own choice where None.

    Raises:
        UserError: There is no such file, it is truncated or lacks its external data, or others wrote it; ONNX Runtime
            is not installed.
    """
    check_extra("An ONNX file", "onnxruntime")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"There is no file {file}.", "Check the path.")
    session = new_session(str(path), threads)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    remedy = "Give a file that kdcompress export wrote, or the run itself."
    if text is None:
        raise UserError(f"{file} has no metadata {KEY!r}: its classes and preprocessing are not known.", remedy)
    try:
        facts = read_facts(text)
    except Malformed as error:
        raise UserError(f"{file} has metadata that cannot be used: {error}.", remedy) from error
    if (problem := _misfit(session, facts)) is not None:
        raise UserError(f"{file} is not what its metadata say: {problem}.", remedy)
    return OnnxNetwork(path.absolute(), session, facts)


def new_session(model: str | bytes, threads: int | None = None, **options: Any) -> Any:
    """ONNX Runtime on the CPU.

    Args:
        options: Attributes of ``onnxruntime.SessionOptions``.

    Raises:
        UserError: The model cannot be loaded.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    # between two runs its waiting threads would slow whatever else computes here
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        settings.intra_op_num_threads = threads
    for name, value in options.items():
        setattr(settings, name, value)
    try:
        return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base
        name = model if isinstance(model, str) else "The model"
        raise UserError(f"{name} cannot be loaded by ONNX Runtime: {_plain(error)}", _remedy(error)) from error


def runner(session: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A session of a composed model as a function: images [B, C, H, W] to logits [B, K] and exits [B]."""

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, exits = session.run([LOGITS, EXIT_STAGE], {IMAGES: images.contiguous().numpy()})
        return torch.from_numpy(logits), torch.from_numpy(exits)

    return run


def member_by_member(cascade: Cascade) -> Callable[[Tensor], Tensor]:
    """Every member on every image: [B, C, H, W] to logits after each stage [M, B, K]."""
    sessions = [new_session(member.SerializeToString(), torch.get_num_threads()) for member in cascade.members]

    def after_each(images: Tensor) -> Tensor:
        given = {IMAGES: images.contiguous().numpy()}
        logits: list[Tensor] = []
        for session, weight in zip(sessions, cascade.sum_weights, strict=True):
            own = torch.from_numpy(session.run([LOGITS], given)[0])
            logits.append(weight * logits[-1] + own if logits else own)
        return torch.stack(logits)

    return after_each


def _plain(error: Exception) -> str:
    """Its message without the numbers and names of ONNX Runtime's kinds of errors."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed: ?)?", "", first_line(error))


def _remedy(error: Exception) -> str:
    if "external data" in str(error).lower():
        return "Its weights are in another file; put that beside it."
    return "It may be cut off, or no ONNX; fetch it, or export it, again."


def _misfit(session: Any, facts: FileFacts) -> str | None:
    """What is wrong with the inputs and outputs of a file."""
    channels, height, width = facts["input_size"]
    kind, shape = ("uint8", [None, None, channels]) if facts["preprocess"] else ("float", [channels, height, width])
    wanted = [(IMAGES, f"tensor({kind})", shape)]
    outputs = [(LOGITS, "tensor(float)", [facts["num_classes"]]), (EXIT_STAGE, "tensor(int64)", [])]
    for role, there, expected in (
        ("input", session.get_inputs(), wanted),
        ("output", session.get_outputs(), outputs),
    ):
        # the batch is open, and so are sides without a number
        found = [(each.name, each.type, [s if isinstance(s, int) else None for s in each.shape]) for each in there]
        if found != [(name, kind, [None, *rest]) for name, kind, rest in expected]:
            return f"its {role}s are {', '.join(f'{each.name} {each.type} {each.shape}' for each in there)}"
    return None
