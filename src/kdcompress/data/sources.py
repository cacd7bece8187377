"""From ``--data SPEC`` to images and labels: one small function per kind of source.

A source is a list of images that are read on demand; :mod:`kdcompress.data.batches` reads and augments them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcompress.data import synth_digits
from kdcompress.data.folders import folder_source
from kdcompress.data.images import ArrayImages
from kdcompress.data.manifest import is_manifest
from kdcompress.data.manifest_source import manifest_source
from kdcompress.data.map_source import has_labels, map_source
from kdcompress.data.source import DATA_DIR, DataSource
from kdcompress.data.split_file import SplitFile
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.locks import Lock
from kdcompress.references import UNLABELLED
from kdcompress.trust import PREFIX, import_callable


def is_named(spec: str) -> bool:
    """Whether data are known by a name, and stored in ``--data-dir``."""
    return spec.split("/")[0].lower() in ("torch", "hfds", "hfids", "wds", "tfds") and not os.path.exists(spec)


def load_source(
    spec: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    split: SplitFile | None = None,
    classes: Sequence[str] | None = None,
) -> DataSource:
    """Open a data set.

    Args:
        spec: ``digits``, ``synth-digits:K``, a folder, a ``.csv`` or ``.jsonl`` manifest, a timm data-set name
            (``torch/cifar10``, ``hfds/…``) or ``py:module:function``.
        data_dir: Where timm's named data sets are stored.
        download: Download a ``torch/…`` data set that is missing.
        split: Which images of a folder or manifest without splits are for training and which for testing, as a run
            recorded it; None: they are divided by their paths.
        classes: Names of the classes of the network that they are for, which labels of a manifest are matched with.

    Raises:
        UserError: There are no such data, or a folder is not laid out as a data set.
    """
    if spec == "digits":
        source = _digits()
    elif spec.split(":")[0] == synth_digits.NAME:
        source = _synth_digits(spec)
    elif spec.startswith(PREFIX):
        source = _from_callable(spec)
    elif is_named(spec):
        source = _shards(spec, data_dir) if spec.lower().startswith("wds/") else _from_timm(spec, data_dir, download)
    elif os.path.isdir(spec):  # unlike that of Path, it takes any text
        source = folder_source(spec, split)
    elif spec.startswith(UNLABELLED):
        remedy = "Distill a student from a teacher, or label the images."
        raise UserError(f"The images of {spec} have no labels.", remedy)
    elif is_manifest(spec):
        source = manifest_source(spec, split, classes)
    else:
        remedy = (
            "Give digits, synth-digits:K, a folder with a folder for each class (in train/ and test/, or neither), "
            "a .csv or .jsonl file of paths and labels, torch/NAME, hfds/NAME, wds/NAME or py:module:function."
        )
        raise usage_error(f"There is no data {spec!r}.", remedy)
    if source.num_classes < 2:
        raise UserError(f"The data {spec} have only one class.", "A classifier needs two classes or more.")
    return source


def _digits() -> DataSource:
    """scikit-learn's 8 x 8 digits (1797 images), a fixed fifth of each class as the test split (our choice)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return DataSource(
        spec="digits",
        train=ArrayImages(images[train], labels[train]),
        test=ArrayImages(images[test], labels[test]),
        num_classes=10,
        class_names=tuple(str(name) for name in digits.target_names),
        fingerprint=_hash(images.tobytes()),
        flip=False,
    )


def _synth_digits(spec: str) -> DataSource:
    made = synth_digits.SynthDigits.parse(spec)
    train = made.train()
    sample = b"".join(train.image(index).tobytes() for index in range(min(8, made.n)))
    return DataSource(
        spec=str(made),
        train=train,
        test=made.test(),
        num_classes=made.classes,
        class_names=None,
        fingerprint=_hash(str(made).encode() + sample),
        flip=False,
    )


def _shards(spec: str, data_dir: str | None) -> DataSource:
    from kdcompress.data.tar_images import load_shards

    return load_shards(spec, data_dir)


def _from_timm(spec: str, data_dir: str | None, download: bool) -> DataSource:
    from timm.data import ImageDataset, create_dataset

    from kdcompress.data.timm_images import EachItsOwn

    notes: list[str] = []
    if spec.lower().startswith("hfids/"):
        remedy = f"Give hfds/{spec[len('hfids/') :]}, the same data with an index."
        raise usage_error(f"{spec} is a stream, which cannot be split into fit and calibration.", remedy)

    def split(name: str, fetch: bool) -> Any:
        made = create_dataset(spec, root=data_dir or DATA_DIR, split=name, is_training=False, download=fetch)
        return EachItsOwn(made.reader) if isinstance(made, ImageDataset) else made

    def held_out() -> Any:
        """The test split, or where a data set of the hub has none, its validation split, or none."""
        for name in ("test", "validation"):
            try:
                found = split(name, download)
            except ValueError as error:
                if "split" not in str(error).lower():
                    raise
                continue
            if has_labels(found):
                return found
            notes.append(f"Notice: the {name} split of {spec} has no labels, so it is not used.")
        return None

    try:
        with _only_one(Path(data_dir or DATA_DIR)) if download else contextlib.nullcontext():
            train = split("train", download)
            test = split("validation", download) if spec.startswith("torch/") else held_out()
    except (Exception, AssertionError) as error:
        if isinstance(error, ImportError):
            remedy = "hfds/ needs pip install 'kdcompress[hf]'; other families need the package of their name."
            raise UserError(f"The data set {spec} needs a package that is not installed: {error}", remedy) from error
        first = first_line(error)
        remedy = "Check the name and --data-dir, or fetch it with --download."
        raise UserError(f"The data set {spec} cannot be opened: {first}", remedy) from error
    source = map_source(spec, train, test, flip="mnist" not in spec.lower())
    source.first_notes.extend(notes)
    return source


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Of the processes that download into a folder, one does, and the others find what it has fetched."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder that is complete may be read-only
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(Lock(root / ".download.lock").awaited(lambda: None))
        yield


def _from_callable(spec: str) -> DataSource:
    function = import_callable(spec)
    try:
        return _called(spec, function())
    except UserError:
        raise
    except Exception as error:  # the user's code may fail in any way
        problem = f"{spec} gives no data: {type(error).__name__}: {first_line(error)}"
        remedy = "It returns (train, test), data sets of (image, label). KDCOMPRESS_DEBUG=1 shows where it failed."
        raise UserError(problem, remedy) from error


def _called(spec: str, made: Any) -> DataSource:
    if isinstance(made, dict) and "train" in made:
        train, test = made["train"], made.get("test")
    elif isinstance(made, tuple) and len(made) == 2:
        train, test = made
    else:
        remedy = "Return (train, test) or {'train': …, 'test': …}, data sets of (image, label)."
        raise UserError(f"{spec} returned {type(made).__name__}.", remedy)
    return map_source(spec, train, test, flip=getattr(train, "flip", True))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
