"""The content of a file of weights. Nothing in it is run: no pickled class or function but those listed here."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kdcompress.errors import UserError, first_line
from kdcompress.models.checkpoints.kinds import FETCH_AGAIN, SAFETENSORS, kind_of
from kdcompress.models.checkpoints.shards import SUFFIX, read_shards

NAMED = 3  # blocked classes that a message lists
_STATE_DICT = "Save the weights alone: torch.save(model.state_dict(), 'weights.pth'), or with safetensors."


class Inert:
    """Stands in for what is pickled beside the weights and is not needed: takes anything, does nothing."""

    def __new__(cls, *_: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


# NumPy's scalars (a best accuracy), paths and dates: kept out without NumPy's own unpickling, which reads raw memory
_INERT = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "float64", "float32", "int64", "bool_", "str_")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath")),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
)


def read_content(path: Path) -> Any:
    """What ``torch.save`` or safetensors put into a file, tensors on the CPU.

    Raises:
        UserError: It cannot be read, is something else, is cut off, or holds pickled code (which is not run).
    """
    if path.name.endswith(SUFFIX):
        return read_shards(path, read_content)
    try:
        kind = kind_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from error
    if kind.loader is None:
        raise UserError(f"{path} {kind.what}.", kind.remedy)
    try:
        if kind.loader == SAFETENSORS:
            return safetensors.torch.load_file(path)
        allowed: list[Any] = [argparse.Namespace, *((Inert, name) for name in _INERT)]
        with torch.serialization.safe_globals(allowed), open(path, "rb") as file:  # by its content, not its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # nothing that torch.save writes
            raise UserError(f"{path} is not a checkpoint of PyTorch.", _STATE_DICT) from error
        named = _blocked(path, error)
        raise UserError(f"{path} holds pickled code, which was not run{named}.", _STATE_DICT) from error
    except Exception as error:
        if "quantized" in str(error).lower():
            raise quantized(path) from error
        first = first_line(error)
        raise UserError(f"{path} cannot be read as weights: {first}", FETCH_AGAIN) from error


def quantized(path: Path) -> UserError:
    """The error for quantized weights."""
    return UserError(f"{path} holds int8-quantized weights.", "Give the weights before they were quantized.")


def _blocked(path: Path, error: Exception) -> str:
    """Which classes and functions were refused: all of them, where PyTorch can list them."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # a file in the format of before 2020, or one that is damaged
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    names = [name for name in names if name not in _INERT]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f": {', '.join(names[:NAMED])}{more}" if names else ""
