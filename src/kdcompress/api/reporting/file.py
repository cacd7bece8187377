"""Where a report goes: a new file, or the former report of the same run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from kdcompress.errors import UserError, usage_error
from kdcompress.options import ReportOptions
from kdcompress.report import MARK

NAMES = {"html": "report.html", "md": "README.md"}  # the latter is what hubs show
ENDINGS = {".html": "html", ".htm": "html", ".md": "md", ".markdown": "md"}


def check_out(options: ReportOptions) -> None:
    """Check ``--out`` before any work that would be lost.

    Raises:
        UserError: It exists, its folder does not, or it is of an unknown format.
    """
    if options.out is None:
        return
    path = Path(options.out).absolute()
    if options.format is None and path.suffix.lower() not in ENDINGS:
        raise usage_error(
            f"--out {shlex.quote(options.out)} does not say which format.", "Name it .html or .md, or add --format."
        )
    if os.path.lexists(path):
        raise usage_error(f"--out {shlex.quote(options.out)} exists already.", "Choose another name, or remove it.")
    if not path.parent.is_dir():
        raise usage_error(f"There is no folder {path.parent} for --out.", "Make it, or choose another.")
    _check_writable(path.parent)


def format_of(options: ReportOptions) -> str:
    """``html`` or ``md``."""
    ending = ENDINGS.get(Path(options.out).suffix.lower()) if options.out is not None else None
    return options.format or ending or "html"


def file_of(options: ReportOptions, run: Path | None) -> Path:
    """The file to write: ``--out``, or the usual one in the run folder.

    Raises:
        UserError: The network is in no run folder, or the usual file is there and not of ours.
    """
    if options.out is not None:
        return Path(options.out).absolute()
    name = NAMES[format_of(options)]
    if run is None:
        raise usage_error("The network is in no run folder.", f"Say where the report goes: --out {name}")
    path = run / name
    if os.path.lexists(path) and not _is_ours(path):
        remedy = "Move it, or name another file with --out."
        raise UserError(f"{path} exists, and is no report of kdcompress.", remedy)
    _check_writable(run)
    return path


def _is_ours(path: Path) -> bool:
    try:
        return path.is_file() and MARK.encode() in path.read_bytes()
    except OSError:
        return False


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise UserError(f"The folder {folder} cannot be written.", "Choose another place with --out.")
