"""The run folder: a timm model folder with provenance, written so that no crash leaves a partial file.

``config.json`` and ``model.safetensors`` are timm's ``local-dir`` layout, ``run.json`` records what was done and
measured, ``metrics.csv`` has a row per epoch, ``split.csv`` the split of a folder that has none of its own,
``checkpoint.pt`` the state of an unfinished run, ``images.npy`` the images that it is trained on where not on all.
``run.json`` holds digests of the other files and of itself, so that altered files are refused. The process that writes
the run holds ``.lock`` as long as it lives.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes

from kdcompress.digests import digest_of, digest_of_json
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.locks import Lock
from kdcompress.schema import MAX_BYTES, Malformed, read_config, read_record

WEIGHTS, CONFIG, RECORD, METRICS, CHECKPOINT, SPLIT, IMAGES = (
    "model.safetensors",
    "config.json",
    "run.json",
    "metrics.csv",
    "checkpoint.pt",
    "split.csv",
    "images.npy",
)
LOCK = ".lock"
LEFT = re.compile(r"\.lock|\..*\.tmp")  # names of what a killed process leaves
MOST_METRICS = 32 * 2**20  # bytes of metrics.csv
OWN, OTHERS = "digest", "digests"  # keys in run.json: digest of the rest of it, and of the other files by name

_held: dict[Path, tuple[Lock, int]] = {}  # locks of this process, and how often each was claimed


RUNS = "runs"  # in the working directory, for runs without --out


@contextlib.contextmanager
def atomic_file(
    path: Path,
    before_rename: Callable[[Path], None] = lambda _: None,
    *,
    elsewhere: str = "Choose another folder with --out.",
    when_full: str = "Free some space, then run the same command with --resume; the last saved state is intact.",
) -> Iterator[IO[bytes]]:
    """Write to a temporary file, flush it to disk, then rename it.

    Args:
        before_rename: Called with the complete temporary file.
        elsewhere, when_full: The remedies where the folder cannot be written, and where the disk is full.

    Raises:
        UserError: The disk is full or the folder cannot be written; an older file of that name is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before_rename(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save wraps the OSError of the file in a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk is full: {path} could not be written.", when_full) from error
        raise UserError(f"{path} could not be written: {cause.strerror}.", elsewhere) from error
    finally:
        with contextlib.suppress(OSError):  # of a disk that has become read-only, which the error above reports
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Args:
        path: Absolute path of the folder.
    """

    path: Path

    @property
    def is_finished(self) -> bool:
        """Whether its training has ended and all files are written."""
        return (self.path / WEIGHTS).is_file() and self.record().get("status") == "finished"

    @property
    def is_sealed(self) -> bool:
        """Whether it has digests of its files; those of older versions have none."""
        return OWN in _read_json(self.path / RECORD)

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has the state of an unfinished training."""
        return (self.path / CHECKPOINT).is_file()

    @property
    def is_being_written(self) -> bool | None:
        """Whether a process is writing it at this moment; None where that cannot be told: in a read-only folder."""
        if self.path in _held:
            return True
        if not (self.path / LOCK).is_file():
            return False
        lock = Lock(self.path / LOCK)
        try:
            free = lock.acquire()
        except OSError:
            return None
        if free:
            lock.release()
        return not free

    def record(self) -> dict[str, Any]:
        """The content of ``run.json`` without the digests; empty if there is none (a model folder of another tool).

        Raises:
            UserError: It was altered, or cannot be read.
        """
        content = self._record()
        return {key: value for key, value in content.items() if key not in (OWN, OTHERS)}

    def digests(self) -> dict[str, list[str]]:
        """The valid digests of the other files, by name, from ``run.json``.

        A checkpoint has two, of the last one and the next, because the process may be killed between the writes of
        ``run.json`` and of the checkpoint.
        """
        return {name: [known] if isinstance(known, str) else known for name, known in self._record()[OTHERS].items()}

    def check(self, *names: str) -> None:
        """Refuse files that were altered; files without a digest, as in older runs, pass.

        Raises:
            UserError: A file was altered, or cannot be read.
        """
        for name, known in self.digests().items():
            if name in names and _digest(self.path / name) not in known:
                raise _altered(self.path / name)

    def accept(self) -> None:
        """Accept the files as they are now: write their digests to ``run.json``.

        Raises:
            UserError: ``run.json`` cannot be read, the folder cannot be written, or another process writes it.
        """
        if not _locked(self.path):
            raise _busy(self.path)
        try:
            record = _read_json(self.path / RECORD)
            finished = record.get("status") == "finished"
            self.write_record(
                {key: value for key, value in record.items() if key not in (OWN, OTHERS)},
                self._present(CONFIG, WEIGHTS, METRICS, SPLIT) if finished else self._present(CHECKPOINT, SPLIT),
            )
            if finished:
                (self.path / LOCK).unlink(missing_ok=True)
        finally:
            release(self)

    def _present(self, *names: str) -> dict[str, str]:
        """Digests of those of the files that exist."""
        return {name: _digest(self.path / name) for name in names if (self.path / name).is_file()}

    def _record(self) -> dict[str, Any]:
        if not (self.path / RECORD).is_file():
            return {OTHERS: {}}
        content = _read_json(self.path / RECORD)
        if OWN not in content and OTHERS not in content:  # of an older version
            return {**content, OTHERS: {}}
        rest = {key: value for key, value in content.items() if key != OWN}
        if content.get(OWN) != digest_of_json(rest) or not isinstance(content.get(OTHERS), dict):
            raise _altered(self.path / RECORD)
        return content

    def config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            UserError: It cannot be read.
        """
        return _read_json(self.path / CONFIG)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file.

        Raises:
            UserError: As :func:`atomic_file`; so do the methods below.
        """
        with atomic_file(self.path / name) as file:
            file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def write_record(self, content: Mapping[str, Any], digests: Mapping[str, Any] | None = None) -> None:
        """Write ``run.json``.

        Args:
            digests: Of the other files; None: those that it already holds.
        """
        known = self.digests() if digests is None else digests
        sealed = json.loads(json.dumps({**content, OTHERS: known}, allow_nan=False))  # as a reader will get it
        self.write_json(RECORD, {**sealed, OWN: digest_of_json(sealed)})

    def write_phase(self, key: str, phase: int, content: Mapping[str, Any]) -> None:
        """Write into ``run.json`` what holds for one phase of the training."""
        record = self.record()
        self.write_record({**record, key: {**record.get(key, {}), str(phase): dict(content)}})

    def write_split(self, content: bytes) -> str:
        """Write which images are for training and which for testing, and give the digest."""
        with atomic_file(self.path / SPLIT) as file:
            file.write(content)
        return digest_of(self.path / SPLIT)

    def write_weights(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Write ``model.safetensors``."""
        # clones, because safetensors refuses tensors that share memory, and channels-last ones
        tensors = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()
        }
        with atomic_file(self.path / WEIGHTS) as file:
            file.write(safetensors_bytes(tensors, metadata={"format": "pt"}))

    def write_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows of ``metrics.csv``, so that a resumed run never has an epoch twice."""
        text = io.StringIO()
        columns = dict.fromkeys(column for row in rows for column in row)
        writer = csv.DictWriter(text, fieldnames=columns or ["epoch"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(self.path / METRICS) as file:
            file.write(text.getvalue().encode())

    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, without values that are not finite numbers; none if it cannot be read."""
        file = self.path / METRICS
        try:
            if not file.is_file() or file.stat().st_size > MOST_METRICS:
                return []
            rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
        except (OSError, UnicodeDecodeError, csv.Error):
            return []
        parsed = [{name: _number(text) for name, text in row.items() if name is not None} for row in rows]
        return [{name: value for name, value in row.items() if value is not None} for row in parsed]

    def column(self, name: str) -> list[float]:
        """A column of ``metrics.csv``."""
        return [row[name] for row in self.metrics() if name in row]

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; whenever the process is killed, ``run.json`` has the digest of the present one."""

        def record_digest(temporary: Path) -> None:
            present = [digest_of(self.path / CHECKPOINT)] if self.has_checkpoint else []
            digests = {**self.digests(), CHECKPOINT: [digest_of(temporary), *present]}
            self.write_record(self.record(), digests)

        with atomic_file(self.path / CHECKPOINT, record_digest) as file:
            torch.save(dict(state), file)

    def read_checkpoint(self) -> dict[str, Any]:
        """The state of an unfinished run.

        Raises:
            UserError: It was altered, or cannot be read.
        """
        self.check(CHECKPOINT)
        try:
            return torch.load(self.path / CHECKPOINT, map_location="cpu", weights_only=True)
        except Exception as error:
            remedy = f"Remove {self.path} and start again without --resume."
            raise UserError(f"{self.path / CHECKPOINT} cannot be read: {first_line(error)}", remedy) from error

    def write_images(self, positions: np.ndarray) -> None:
        """Write the positions [N] of the images that an unfinished run is trained on."""
        with atomic_file(self.path / IMAGES) as file:
            np.save(file, positions)

    def read_images(self) -> np.ndarray:
        """The positions that :meth:`write_images` wrote.

        Raises:
            UserError: They cannot be read.
        """
        try:
            positions: np.ndarray = np.load(self.path / IMAGES, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            remedy = f"Remove {self.path} and start again without --resume."
            raise UserError(f"{self.path / IMAGES} cannot be read: {first_line(error)}", remedy) from error
        return positions

    def discard(self) -> None:
        """Remove the folder of a run that never started; if anything else is in it, it stays, to be resumed."""
        ours = (RECORD, SPLIT, IMAGES)
        if any(entry.name not in ours and not LEFT.fullmatch(entry.name) for entry in self.path.iterdir()):
            return
        for name in (*ours, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def finish(self, record: Mapping[str, Any]) -> None:
        """Mark the run as finished; this is written last, so that a finished run is complete."""
        self.write_record({**record, "status": "finished"}, self._present(CONFIG, WEIGHTS, METRICS, SPLIT))
        # killed processes leave temporary files; a process that waits for the lock will see that the run is finished
        for leftover in (*(self.path / name for name in (CHECKPOINT, IMAGES, LOCK)), *self.path.glob(".*.tmp")):
            leftover.unlink(missing_ok=True)


def claim(out: str | None, stem: str, *, resume: bool) -> RunFolder:
    """The folder of a run that starts or resumes; locked until it is released, or this process ends.

    A process may claim a folder several times, and must release it as often.

    Args:
        out: The user's ``--out``.
        stem: Name under ``runs/`` without ``--out``; a number is appended until the name is free.
        resume: Take an unfinished run of that name instead of refusing it.

    Raises:
        UserError: ``out`` exists and ``resume`` is off, it is not a run, or another process is writing it, or has just
            finished it.
    """
    if out is not None:
        path = Path(out).absolute()
        check_claim(out, resume=resume)
        if _is_free(path):
            _made(path, exist_ok=True)  # the lock decides which process gets it
        if not _locked(path):
            raise _busy(path)
        run = RunFolder(path)
        try:  # another process may have been faster
            check_claim(out, resume=resume)
            if run.is_finished:
                remedy = "Run the same command again to use its result, or choose another folder."
                raise UserError(f"The run {path} was finished by another process just now.", remedy)
        except UserError:
            release(run)
            raise
        return run
    stem = re.sub(r"[^\w.=-]+", "-", stem).strip("-")
    number = 1
    while True:
        path = Path(RUNS).absolute() / (stem if number == 1 else f"{stem}-{number}")
        number += 1
        run = RunFolder(path)
        if not path.exists():
            with contextlib.suppress(FileExistsError):
                _made(path)
                if _locked(path):
                    return run
        elif resume and path not in _held and (path / RECORD).is_file() and _locked(path):
            if not run.is_finished:
                return run
            release(run)


def release(run: RunFolder) -> None:
    """Release the lock of a run; does nothing where this process has not claimed it."""
    lock, count = _held.pop(run.path, (None, 0))
    if lock is not None and count > 1:
        _held[run.path] = (lock, count - 1)
    elif lock is not None:
        lock.release()


def _locked(path: Path) -> bool:
    """Take the lock of a run folder; whether this process has it now."""
    lock, count = _held.get(path, (None, 0))
    try:
        lock = lock or Lock(path / LOCK)
        if not count and not lock.acquire():
            return False
    except OSError as error:
        remedy = "Choose another folder with --out."
        raise UserError(f"{path} could not be locked: {error.strerror}.", remedy) from error
    _held[path] = (lock, count + 1)
    return True


def file_hash(path: Path | None) -> str | None:
    """Hash of the weights in a run folder and of its gate; None where there is no folder, or no weights in it.

    Raises:
        UserError: ``config.json`` cannot be read.
    """
    if path is None or not (path / WEIGHTS).is_file():
        return None
    digest = hashlib.sha256((path / WEIGHTS).read_bytes())
    config = _read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    if gate := (config.get("model_args") or {}).get("gate"):  # cascades may differ in their gates only
        digest.update(json.dumps(gate, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def check_claim(out: str, *, resume: bool) -> None:
    """Check that :func:`claim` would take this folder, before anything is loaded.

    Raises:
        UserError: It exists and ``resume`` is off, it is not a run, or another process is writing it.
    """
    path = Path(out).absolute()
    try:
        free = _is_free(path)
    except OSError as error:
        raise usage_error(
            f"--out {shlex.quote(out)} cannot be used: {error.strerror}.", "Choose another folder."
        ) from error
    if free and path.is_symlink() and not path.exists():
        raise usage_error(f"--out {shlex.quote(out)} is a broken link.", "Remove it, or choose another folder.")
    if free:
        return
    if _is_held(path):
        raise _busy(path)
    if not resume:
        raise usage_error(
            f"--out {shlex.quote(out)} exists already.", "Choose another folder, or add --resume to continue it."
        )
    if not (path / RECORD).is_file():
        raise usage_error(f"--out {shlex.quote(out)} is not a run that can be resumed.", "Choose another folder.")


def _is_held(path: Path) -> bool:
    """Whether another process is writing this run."""
    return path not in _held and bool(RunFolder(path).is_being_written)


def _busy(path: Path) -> UserError:
    remedy = "Wait until it has ended, stop it, or choose another folder."
    return UserError(f"The run {path} is being written by {Lock(path / LOCK).holder()}.", remedy)


def inner_runs(folder: Path) -> list[RunFolder]:
    """The runs that lie in a folder, by name."""
    return [RunFolder(path) for path in sorted(folder.iterdir()) if (path / RECORD).is_file()]


def open_run(path: str | Path) -> RunFolder:
    """A finished run, or any other folder that timm could load.

    Raises:
        UserError: There is no such folder, it has no weights, or its files were altered or cannot be read.
    """
    run = RunFolder(Path(path).absolute())
    if not run.path.is_dir():
        raise UserError(f"There is no run folder {path}.", 'Give the folder that an earlier command printed as "run".')
    unfinished = run.record().get("status") == "unfinished"
    if unfinished or not (run.path / WEIGHTS).is_file():
        if unfinished or run.has_checkpoint:
            out = shlex.quote(str(run.path))
            remedy = f"Finish it first: run the command that made it with --resume --out {out}."
            raise UserError(f"The run {run.path} is unfinished and has no weights yet.", remedy)
        raise UserError(f"The folder {run.path} has no weights ({WEIGHTS}).", "Give a finished run, or train one.")
    if not (run.path / CONFIG).is_file():
        raise UserError(
            f"The folder {run.path} has no {CONFIG}.", f"For bare weights give {WEIGHTS} itself and --arch."
        )
    run.check(CONFIG, WEIGHTS)
    return run


def _is_free(path: Path) -> bool:
    """Whether it does not exist, or is empty except for what a run leaves that is killed before its record."""
    if not path.exists():
        return True
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {""}
    ours = {SPLIT, IMAGES} if LOCK in names else set()  # without a lock they are somebody's files
    return all(LEFT.fullmatch(name) for name in names - ours)


def _made(path: Path, *, exist_ok: bool = False) -> RunFolder:
    """Create the folder, or take an empty one.

    Raises:
        FileExistsError: Another process was faster.
    """
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        problem = f"{path} could not be created: {error.strerror}."
        raise UserError(problem, "Choose another folder with --out.") from error
    return RunFolder(path)


def _read_json(path: Path) -> dict[str, Any]:
    read = {CONFIG: read_config, RECORD: read_record}[path.name]
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise Malformed(f"it is larger than {MAX_BYTES / 2**20:g} MiB")
        return read(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {first_line(error)}", "The folder is damaged; use another run."
        ) from error


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        remedy = "The folder is damaged; use another run."
        raise UserError(f"{path} cannot be read: {error.strerror}.", remedy) from error


def _altered(path: Path) -> UserError:
    other = "start again without --resume in another folder" if path.name == CHECKPOINT else "train again"
    folder = shlex.quote(str(path.parent))
    remedy = f"Restore it from a copy, or {other}. If the change is yours: kdcompress verify {folder} --accept"
    return UserError(f"{path} is not what the run wrote: it was altered, or cut off.", remedy)
