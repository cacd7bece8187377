"""What a file really is, told from its first bytes: names lie, and downloads go wrong."""

from __future__ import annotations

import re
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

TORCH, SAFETENSORS = "torch", "safetensors"
HEAD = 512  # bytes that are looked at
MAX_HEADER = 100_000_000  # bytes of a safetensors header, its own limit

FETCH_AGAIN = "It may be cut off; fetch it again."
_UNPACK = "Unpack it and give the file of weights inside."
_SAVE = "Save a state_dict with torch.save, and give that file."
_EXPORT = "Give the state_dict of the PyTorch network that it was made from."

# first bytes (from an offset) -> what the file is, and the way out
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the weights themselves", "Fetch them: git lfs pull."),
    (0, b"\x1f\x8b", "is compressed by gzip", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "is compressed by zstd", _UNPACK),
    (0, b"\xfd7zXZ\0", "is compressed by xz", _UNPACK),
    (0, b"BZh", "is compressed by bzip2", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    (0, b"Rar!", "is a RAR archive", _UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes them", "Convert it to a PyTorch state_dict."),
    (0, b"\x93NUMPY", "is a NumPy array", _SAVE),
    (0, b"GGUF", "is a GGUF file", _EXPORT),
    (4, b"TFL3", "is a TensorFlow Lite model", _EXPORT),
)


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        loader: ``torch`` or ``safetensors``; None where it is neither.
        what: The rest of the sentence that begins with its name, where there is no loader.
        remedy: The way out.
    """

    loader: str | None
    what: str = ""
    remedy: str = ""


def kind_of(path: Path) -> Kind:
    """Look into a file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head:
        return Kind(None, "is empty", FETCH_AGAIN)
    if _is_safetensors(head):
        return Kind(SAFETENSORS)
    for offset, signature, what, remedy in _SIGNATURES:
        if head[offset:].startswith(signature):
            return Kind(None, what, remedy)
    if head.startswith(b"PK"):
        return _archive(path)
    if head[257:262] == b"ustar":
        return _tar(path)
    if re.match(rb"\x08[\x01-\x20]\x12.{0,60}\x1a", head, re.DOTALL):
        return Kind(None, "is an ONNX model", _EXPORT)
    if head.startswith(b"\x80"):  # a pickle, as PyTorch wrote them until 2020
        return Kind(TORCH)
    if text := _text(head):
        kind = "a web page" if re.match(r"\s*<(!doctype )?html", text, re.IGNORECASE) else "text"
        kind = "JSON" if re.match(r"\s*[\[{]", text) else kind
        first = text.strip().splitlines()[0][:60] if text.strip() else ""
        return Kind(None, f"is not a checkpoint of PyTorch but {kind}: {first!r}", "Fetch or save the weights anew.")
    if path.suffix == ".safetensors":
        return Kind(SAFETENSORS)  # damaged: its own reader says how
    return Kind(TORCH)


def _archive(path: Path) -> Kind:
    """A zip file: what torch.save writes is one, and so is much else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return Kind(TORCH)  # cut off: PyTorch's reader says how
    inside = {name.partition("/")[2] for name in names}
    if "data.pkl" in inside and "constants.pkl" in inside:
        remedy = "Save the weights alone: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')."
        return Kind(None, "is a TorchScript model, which is code", remedy)
    if "data.pkl" in inside:
        return Kind(TORCH)
    if "serialized_exported_program.json" in inside | set(names) or "archive_format" in inside:
        return Kind(None, "is a program of torch.export", _EXPORT)
    if names and all(name.endswith(".npy") for name in names):
        return Kind(None, "is an archive of NumPy arrays (.npz)", _SAVE)
    if any(name.endswith(".weights.h5") for name in names):
        return Kind(None, "is a Keras model", "Convert it to a PyTorch state_dict.")
    return Kind(None, f"is a zip archive of {_listed(names)}", _UNPACK)


def _tar(path: Path) -> Kind:
    names: list[str] = []
    try:
        with tarfile.open(path) as archive:
            names.extend(member.name for member in archive)
    except (tarfile.TarError, OSError):
        if not names:
            return Kind(None, "is a damaged tar archive", FETCH_AGAIN)
    return Kind(None, f"is a tar archive of {_listed(names)}", _UNPACK)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more if names else "nothing"


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then a JSON object of that length; a file that is cut off passes."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return bool(2 <= length <= MAX_HEADER)


def _text(head: bytes) -> str:
    """The beginning as text, empty where it is none."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # but for a character that the end of what was read cuts in two
            return ""
        text = head[: error.start].decode("utf-8")
    return text if all(char.isprintable() or char in "\r\n\t" for char in text) else ""
