"""``wds/NAME``: images in tar shards as WebDataset writes them, read one at a time in any order.

A stream can neither be divided into fit and calibration nor be read again in the same order. But the headers of shards
on a disk say where each image is. Read once, they give an index, and everything works as for a folder of files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from kdcompress.data.exif import upright
from kdcompress.data.images import Paths, decoding
from kdcompress.data.source import DATA_DIR, DataSource
from kdcompress.data.tar_headers import BLOCK, BUFFER, Damaged, Member, members, name_in
from kdcompress.errors import UserError, first_line, usage_error

INFO = ("_info.json", "info.json")  # timm's
HELD_OUT = ("test", "validation", "val", "valid")
IMAGES = ("jpg", "png", "webp", "jpeg")  # the first of them that a sample has; timm's are the first three
MOST_LABEL, MOST_JSON, MOST_IMAGE = 32, 2**24, 2**32  # bytes
MAX_CLASSES = 1_000_000


@dataclass
class TarImages:
    """Images of a split in tar files; 20 bytes each, whatever they are called.

    Attributes:
        shards: The tar files.
        first: [S + 1] number of the first image of each shard, and of all images.
        offsets, sizes: [N] bytes of each image in its shard.
        written: Changes when one of the shards is written to.
    """

    shards: Sequence[str]
    first: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    written: bytes

    def image(self, index: int) -> Image.Image:
        content = io.BytesIO(self._read(index, int(self.offsets[index]), int(self.sizes[index])))
        with decoding(), Image.open(content) as image:
            image.load()
            return upright(image)

    def name(self, index: int) -> str:
        try:
            member = os.fsdecode(name_in(self._read(index, int(self.offsets[index]) - BLOCK, BLOCK)))
        except OSError:
            member = f"byte {self.offsets[index]}"
        return f"{self._shard(index)}: {member}"

    def _shard(self, index: int) -> str:
        return self.shards[int(np.searchsorted(self.first, index, side="right")) - 1]

    def _read(self, index: int, offset: int, size: int) -> bytes:
        # opened for each image, as a file of its own would be: no handles to share between processes, or to run out of
        with open(self._shard(index), "rb", buffering=0) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self._shard(index)} has been cut off")
        return content


@dataclass(frozen=True)
class Split:
    """What is known of a split before its shards are read.

    Attributes:
        lengths: Samples of each shard, where given.
        field: Of the ``.json`` members, that holds the label; None: the ``.cls`` members hold it.
    """

    shards: list[Path]
    lengths: list[int] | None = None
    field: str | None = None


def load_shards(spec: str, data_dir: str | None) -> DataSource:
    """Open tar shards by timm's rules: ``_info.json`` in ``data_dir`` names those of each split.

    Without that file, ``train`` and ``test`` (or ``validation``, ``val``, ``valid``) are the shards with this word in
    their name, as in ``photos-train-0000.tar`` or ``train/0000.tar``.

    Raises:
        UserError: No such shards, or they are cut off, damaged, fewer or shorter than given, or have no labels.
    """
    root = Path(data_dir or DATA_DIR)
    splits = _splits(root)
    if "train" not in splits:
        remedy = f"Put shards like photos-train-0000.tar, or {INFO[0]} that names them, into --data-dir."
        raise usage_error(f"There are no shards of a train split for {spec} in {root}.", remedy)
    train = _read(splits["train"])
    test = next((_read(splits[name]) for name in HELD_OUT if name in splits), None)
    count = int(train.labels.max(initial=-1)) + 1
    if not count:
        raise UserError(f"The data {spec} have no images.", "A classifier needs two classes or more.")
    if test is not None and len(odd := test.labels[test.labels >= count]):
        problem = f"The data {spec} have {count} classes, but an image has the label {odd[0]}."
        raise UserError(problem, "Labels count from 0, and both splits have the same classes.")
    return DataSource(spec, train, test, count, None, _fingerprint(train, test))


def _splits(root: Path) -> dict[str, Split]:
    path = next((root / name for name in INFO if (root / name).is_file()), None)
    if path is None:
        named = {name: _named(root, name) for name in ("train", *HELD_OUT)}
        return {name: Split(shards) for name, shards in named.items() if shards}
    try:
        listed = json.loads(path.read_bytes())["splits"]
        return {str(name): _listed(root, entry) for name, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = 'It holds {"splits": {"train": {"filenames": […], "shard_lengths": […]}, …}}, as timm has it.'
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {first_line(error)}", remedy) from error


def _listed(root: Path, entry: dict[str, Any]) -> Split:
    shards = [root / str(name) for name in entry["filenames"]]
    lengths = [int(length) for length in entry.get("shard_lengths") or ()]
    if not shards or (lengths and len(lengths) != len(shards)):
        raise ValueError(f"{len(shards)} filenames, {len(lengths)} shard_lengths")
    return Split(shards, lengths or None, entry.get("alt_label") or None)


def _named(root: Path, word: str) -> list[Path]:
    """Shards with a word in their path."""
    has = re.compile(rf"(^|[-_./]){word}([-_./]|$)")
    return sorted(path for path in root.glob("**/*.tar") if has.search(path.relative_to(root).as_posix()))


def _read(split: Split) -> TarImages:
    """The index of a split, by the headers of its shards."""
    shards, written = Paths(), hashlib.sha256()
    first, offsets, sizes, labels = array("q", [0]), array("q"), array("I"), array("q")
    for number, path in enumerate(split.shards):
        count = 0
        try:
            with open(path, "rb", buffering=BUFFER) as file:
                written.update(f"{os.fstat(file.fileno()).st_mtime_ns} ".encode())
                for image, label in _samples(file, split.field):
                    count += 1
                    if label is not None:
                        offsets.append(image.offset)
                        sizes.append(image.size)
                        labels.append(label)
        except OSError as error:
            missing = sum(not other.exists() for other in split.shards)
            problem = f"The shard {path} cannot be opened: {error.strerror}"
            raise UserError(f"{problem} ({missing} of {len(split.shards)} missing).", "Copy it again.") from error
        except Damaged as error:
            raise UserError(f"The shard {path} is {first_line(error)}.", "Copy it again, or write it again.") from error
        except ValueError as error:
            raise UserError(f"The shard {path} has {first_line(error)}.", _remedy(split.field)) from error
        if split.lengths is not None and count != split.lengths[number]:
            problem = f"The shard {path} has {count:,} samples, not the {split.lengths[number]:,} that {INFO[0]} says."
            raise UserError(problem, "Copy it again, or mend its entry in shard_lengths.")
        shards.add(str(path.absolute()))
        first.append(len(offsets))
    return TarImages(
        shards, _array(first, np.int64), _array(offsets, np.int64), _array(sizes, np.uint32), _array(labels, np.int64),
        written.digest(),
    )  # fmt: skip


def _samples(file: BinaryIO, field: str | None) -> Iterator[tuple[Member, int | None]]:
    """Image and label of each sample: the files of one name up to its first dot, which follow each other.

    Label None: the sample is to be left out, as timm does where the field of its ``.json`` is negative.

    Raises:
        ValueError: A sample has no image or no label.
    """
    key, files, label = "", dict[str, Member](), ""
    for member in members(file):
        folder, _, base = member.name.rpartition("/")
        stem, dot, kind = base.partition(".")
        if not stem or not dot or base.startswith("__"):  # WebDataset's own notes, and no sample's
            continue
        kind = kind.lower()
        if (name := f"{folder}/{stem}") != key:
            if files:
                yield _sample(key, files, label, field)
            key, files, label = name, {}, ""
        if kind in files:
            raise ValueError(f"two files {member.name}")
        files[kind] = member
        if kind == ("cls" if field is None else "json"):
            if member.size > (MOST_LABEL if field is None else MOST_JSON):
                raise ValueError(f"{member.size:,} bytes in {member.name}")
            label = file.read(member.size).decode(errors="replace")
    if files:
        yield _sample(key, files, label, field)


def _sample(key: str, files: dict[str, Member], label: str, field: str | None) -> tuple[Member, int | None]:
    name = key.removeprefix("/")
    image = next((files[kind] for kind in IMAGES if kind in files), None)
    if image is None or image.size >= MOST_IMAGE:
        raise ValueError(f"no image ({', '.join(IMAGES)}) for {name}")
    where = f"{name}.cls" if field is None else f"{field} in {name}.json"
    try:
        number = int(label) if field is None else json.loads(label)[field]
    except (ValueError, KeyError, TypeError, RecursionError):
        number = None
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"no class number as {where}")
    if number >= MAX_CLASSES or (number < 0 and field is None):
        raise ValueError(f"the class number {number} as {where}")
    return image, number if number >= 0 else None


def _remedy(field: str | None) -> str:
    if field is not None:
        return f"alt_label in {INFO[0]} names a field of the .json beside each image that is a whole number."
    return (
        "Each image needs a .cls of the same name with the number of its class, or a .json whose field alt_label in "
        f"{INFO[0]} names."
    )


def _array(values: array[int], kind: type) -> np.ndarray:
    """The same memory as a NumPy array."""
    return np.frombuffer(values, dtype=kind) if len(values) else np.empty(0, kind)


def _fingerprint(*splits: TarImages | None) -> str:
    digest = hashlib.sha256()
    for images in splits:
        if images is not None:
            for values in (images.first, images.offsets, images.sizes, images.labels):
                digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:16]
