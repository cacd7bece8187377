"""The run folder: a timm model folder with provenance, written so that no crash leaves a half file.

``config.json`` and ``model.safetensors`` are timm's ``local-dir`` layout, ``run.json`` is what was done and measured,
``metrics.csv`` a row per epoch, ``checkpoint.pt`` the state of an unfinished run.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes

from kdcompress.errors import UserError, first_line, usage_error

WEIGHTS, CONFIG, RECORD, METRICS, CHECKPOINT = (
    "model.safetensors",
    "config.json",
    "run.json",
    "metrics.csv",
    "checkpoint.pt",
)


RUNS = "runs"  # in the working directory: folders that the user has not chosen


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary name, flush to the disk, then rename.

    Raises:
        UserError: The disk is full or the folder cannot be written; an older file of that name is still whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save hides the OSError of the file below it behind a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "Free some space, then run the same command with --resume; what was saved before is intact."
            raise UserError(f"The disk is full: {path} could not be written.", remedy) from error
        raise UserError(
            f"{path} could not be written: {cause.strerror}.", "Choose another folder with --out."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """One run on the disk."""

    path: Path

    @property
    def is_finished(self) -> bool:
        return (self.path / WEIGHTS).is_file() and self.record().get("status") == "finished"

    @property
    def has_checkpoint(self) -> bool:
        return (self.path / CHECKPOINT).is_file()

    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if there is none (a model folder that others made)."""
        return _read_json(self.path / RECORD) if (self.path / RECORD).is_file() else {}

    def config(self) -> dict[str, Any]:
        return _read_json(self.path / CONFIG)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        with atomic_file(self.path / name) as file:
            file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def write_weights(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        # a clone each: safetensors refuses tensors that share memory, and channels-last ones
        tensors = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
        }
        with atomic_file(self.path / WEIGHTS) as file:
            file.write(safetensors_bytes(tensors, metadata={"format": "pt"}))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows anew, so that a resumed run never holds an epoch twice."""
        text = io.StringIO()
        columns = dict.fromkeys(column for row in rows for column in row)
        writer = csv.DictWriter(text, fieldnames=columns or ["epoch"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path / METRICS) as file:
            file.write(text.getvalue().encode())

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        with atomic_file(self.path / CHECKPOINT) as file:
            torch.save(dict(state), file)

    def read_checkpoint(self) -> dict[str, Any]:
        try:
            return torch.load(self.path / CHECKPOINT, map_location="cpu", weights_only=True)
        except Exception as error:
            remedy = f"Remove {self.path} and start again without --resume."
            raise UserError(f"{self.path / CHECKPOINT} cannot be read: {first_line(error)}", remedy) from error

    def discard(self) -> None:
        """Take back a run that never began: its record, and the folder if nothing else is in it."""
        (self.path / RECORD).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the run as done; the last thing written, so that a finished run is a whole one."""
        self.write_json(RECORD, {**record, "status": "finished"})
        for left in (self.path / CHECKPOINT, *self.path.glob(".*.tmp")):  # a process killed while it wrote leaves one
            left.unlink(missing_ok=True)


def claim(out: str | None, stem: str, *, resume: bool) -> RunFolder:
    """The folder of a run that is about to start, or to go on.

    Args:
        out: What the user asked for.
        stem: Name under ``runs/`` where the user asked for nothing; a number is added until it is free.
        resume: Take an unfinished or finished run of that name instead of refusing it.

    Raises:
        UserError: ``out`` exists and ``resume`` is off, or it is not a run.
    """
    if out is not None:
        check_claim(out, resume=resume)
        path = Path(out).absolute()
        return _made(path, exist_ok=path.exists()) if _is_free(path) else RunFolder(path)
    stem = re.sub(r"[^\w.=-]+", "-", stem).strip("-")
    number = 1
    while True:
        path = Path(RUNS).absolute() / (stem if number == 1 else f"{stem}-{number}")
        number += 1
        run = RunFolder(path)
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                return _made(path)
        elif resume and (path / RECORD).is_file() and not run.is_finished:
            return run


def file_hash(path: Path | None) -> str | None:
    """Of the weights in a run folder, and of its gate; None where there is no folder, or no weights in it."""
    if path is None or not (path / WEIGHTS).is_file():
        return None
    digest = hashlib.sha256((path / WEIGHTS).read_bytes())
    config = _read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    if gate := (config.get("model_args") or {}).get("gate"):  # cascades with other gates have the same weights
        digest.update(json.dumps(gate, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def check_claim(out: str, *, resume: bool) -> None:
    """Whether :func:`claim` would take this folder; asked before anything is loaded.

    Raises:
        UserError: It exists and ``resume`` is off, or it is not a run.
    """
    path = Path(out).absolute()
    if _is_free(path):
        return
    if not resume:
        raise usage_error(f"--out {out} exists already.", "Choose another folder, or add --resume to go on with it.")
    if not (path / RECORD).is_file():
        raise usage_error(f"--out {out} is not a run that could be resumed.", "Choose another folder.")


def open_run(path: str | Path) -> RunFolder:
    """A finished run, or any other folder that timm could load.

    Raises:
        UserError: No such folder, no weights in it, or its files cannot be read.
    """
    run = RunFolder(Path(path).absolute())
    if not run.path.is_dir():
        raise UserError(f"There is no run folder {path}.", 'Give the folder that an earlier command printed as "run".')
    unfinished = run.record().get("status") == "unfinished"
    if unfinished or not (run.path / WEIGHTS).is_file():
        if unfinished or run.has_checkpoint:
            remedy = f"Finish it first: run the command that made it with --resume --out {run.path}."
            raise UserError(f"The run {run.path} is unfinished and has no weights yet.", remedy)
        raise UserError(f"The folder {run.path} has no weights ({WEIGHTS}).", "Give a finished run, or train one.")
    if not (run.path / CONFIG).is_file():
        raise UserError(
            f"The folder {run.path} has no {CONFIG}.", f"For bare weights give {WEIGHTS} itself and --arch."
        )
    return run


def _is_free(path: Path) -> bool:
    """Not there, or empty but for what a run left that was killed before its first file was whole."""
    return not path.exists() or (
        path.is_dir() and all(re.fullmatch(r"\..*\.tmp", entry.name) for entry in path.iterdir())
    )


def _made(path: Path, *, exist_ok: bool = False) -> RunFolder:
    """Make the folder, or take an empty one.

    Raises:
        FileExistsError: Another process was faster.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except FileExistsError:
        raise
    except OSError as error:
        raise UserError(f"{path} could not be made: {error.strerror}.", "Choose another folder with --out.") from error
    return RunFolder(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}", "The folder is damaged; use another run."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object.", "The folder is damaged; use another run.")
    return content
