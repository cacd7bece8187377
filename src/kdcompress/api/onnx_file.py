"""The file that ``export`` writes: its name, and what it says about itself."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from kdcompress.api.calibration_images import CalibrationImages
from kdcompress.api.job import versions
from kdcompress.data.prepared import HOLDOUT
from kdcompress.errors import usage_error
from kdcompress.export.compose import Cascade, serialized
from kdcompress.export.metadata import FileFacts, Source
from kdcompress.export.onnx_network import SUFFIX, open_onnx
from kdcompress.models.loading import Network
from kdcompress.options import ExportOptions
from kdcompress.references import UNLABELLED
from kdcompress.results import ExportResult
from kdcompress.runs import RUNS, atomic_file, file_hash
from kdcompress.trust import PREFIX

if TYPE_CHECKING:
    import onnx


def write(model: onnx.ModelProto, facts: FileFacts, file: Path) -> None:
    """Write the file, and open it once before it gets its name.

    Raises:
        UserError: It cannot be written, or something of that name has come meanwhile.
    """
    content = serialized(model, facts)

    def opens(written: Path) -> None:
        open_onnx(written)
        check_out(file)

    writing = atomic_file(
        file,
        opens,
        elsewhere="Choose another file with --out.",
        when_full="Free some space, or choose another file with --out.",
    )
    with writing as output:
        output.write(content)


def file_facts(
    network: Network, options: ExportOptions, images: CalibrationImages, cascade: Cascade, result: ExportResult
) -> FileFacts:
    """What the file says about itself; no path of this machine."""
    source, prep = images.source, images.prep
    record = network.record
    place = "" if source is None else source.spec.removeprefix(UNLABELLED)
    public = source is not None and not os.path.isabs(place) and not place.startswith(PREFIX)
    packages = {name: version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    return {
        "architecture": result.architecture,
        "num_classes": result.num_classes,
        "label_names": list(names) if (names := network.labels or (source and source.class_names)) else None,
        "input_size": result.input_size,
        "mean": prep.mean,
        "std": prep.std,
        "interpolation": prep.interpolation,
        "crop_pct": prep.crop_pct,
        "crop_mode": prep.crop_mode,
        "precision": options.precision,
        "preprocess": options.preprocess,
        "params": result.params,
        "macs": result.macs,
        "teacher_macs": result.teacher_macs,
        "members": result.members,  # type: ignore[typeddict-item]
        "gate": cascade.gate.to_dict() if cascade.gate is not None else None,  # type: ignore[typeddict-item]
        "exit_rates": result.exit_rates,
        "source": _source(source.spec if public else None, options.holdout or HOLDOUT) if source is not None else {},
        "run_fingerprint": file_hash(network.path),
        "data_fingerprint": record.get("data_fingerprint"),
        "versions": {**versions(), **packages},
    }


def _source(spec: str | None, holdout: float) -> Source:
    """How the data were divided; their name only where it is not a place on this machine."""
    return {"holdout": holdout} if spec is None else {"data": spec, "holdout": holdout}


def check_out(path: Path) -> None:
    """Before the work that would be lost.

    Raises:
        UserError: Another ending, no such folder, or something of that name is there.
    """
    if path.suffix.lower() != SUFFIX:
        raise usage_error(
            f"--out {shlex.quote(str(path))} does not end in {SUFFIX}.", f"Name it like {path.stem or 'gated'}{SUFFIX}."
        )
    if not path.absolute().parent.is_dir():
        raise usage_error(f"There is no folder {path.absolute().parent} for --out.", "Make it, or choose another.")
    if os.path.lexists(path):
        raise usage_error(f"--out {shlex.quote(str(path))} exists already.", "Choose another name, or remove it.")


def free_name(network: Network, options: ExportOptions) -> Path:
    """Named like the run, and beside it."""
    stem = network.path.name if network.path is not None else re.sub(r"[^\w.=-]+", "-", network.architecture).strip("-")
    folder = network.path.parent if network.path is not None else Path(RUNS)
    folder.mkdir(exist_ok=True)
    stem += ("-full" if options.full else "") + ("-int8" if options.precision == "int8" else "")
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not os.path.lexists(path := folder / f"{name}{SUFFIX}"))
