"""Images without labels beside those of the fit split."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcompress.data import Data, Preprocess, load_source, unlabelled_images
from kdcompress.errors import UserError
from kdcompress.options import TrainingOptions

from .images import MakeFolder, random_image

PREP = Preprocess((12, 10), 3, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Six images in a folder and its subfolders."""
    for number in range(6):
        inner = tmp_path / "more" / ("", "a", "a/b")[number % 3]
        inner.mkdir(parents=True, exist_ok=True)
        random_image(100 + number).save(inner / f"{number}.png")
    return tmp_path / "more"


def mixed(root: Path, more: Path, loading: str = "memory") -> Data:
    source = load_source(str(root))
    options = TrainingOptions(loading=loading, workers=0)
    return Data(source, PREP, options, torch.device("cpu"), unlabelled=unlabelled_images(str(more), source))


def by_label(data: Data) -> tuple[Tensor, Tensor]:
    batches = data.training(4, 0, "none")
    inputs, labels = zip(*batches.epoch(0), strict=True)
    return torch.cat(inputs), torch.cat(labels)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_they_are_in_the_fit_split_alone(make_folder: MakeFolder, more: Path, loading: str) -> None:
    """Accuracy would be counted on images whose class nobody knows, or they would not be learned from."""
    data = mixed(make_folder(train=10), more, loading)
    inputs, labels = by_label(data)
    assert sorted(labels.tolist()) == [-1] * 6 + [0] * 9 + [1] * 9
    assert data.fit_size() == 24
    expected = np.asarray(random_image(100), dtype=np.float32) / 255
    wanted = torch.from_numpy((expected - 0.5) / 0.25).permute(2, 0, 1)
    assert sum(torch.allclose(image, wanted, atol=1e-4) for image in inputs[labels < 0]) == 1
    assert not any(torch.allclose(image, wanted, atol=1e-4) for image in inputs[labels >= 0])
    for split in ("calibration", "test"):
        for _, target in data.evaluation(split, 8):
            assert (target >= 0).all()


def test_the_digest_knows_them(make_folder: MakeFolder, more: Path) -> None:
    """A training would go on with other images, or cached logits be taken for those of other images."""
    root = make_folder(train=10)
    source = load_source(str(root))
    first = unlabelled_images(str(more), source)
    assert (
        mixed(root, more).training(4, 0, "none").digest()
        != Data(source, PREP, TrainingOptions(), torch.device("cpu")).training(4, 0, "none").digest()
    )
    random_image(200).save(more / "new.png")
    second = unlabelled_images(str(more), source)
    assert first.fingerprint != second.fingerprint
    assert first.images.written != second.images.written


def test_other_images_of_the_same_time_are_others(make_folder: MakeFolder, more: Path, tmp_path: Path) -> None:
    """Archives may give all files one date: targets of one folder would be taken for those of another."""
    source = load_source(str(make_folder()))
    other = shutil.copytree(more, tmp_path / "other")
    for folder in (more, other):
        for number, file in enumerate(sorted(folder.rglob("*.png"))):
            if folder == other:
                file = file.rename(file.with_name(f"x{number}.png"))
            os.utime(file, (1e9, 1e9))
    one, two = (unlabelled_images(str(folder), source).images for folder in (more, other))
    assert len(one.labels) == len(two.labels)
    assert one.written != two.written


def test_copies_of_labelled_images_are_left_out(make_folder: MakeFolder, more: Path) -> None:
    """Calibration and test images would be trained on as soon as somebody names the folder above."""
    root = make_folder(train=10)
    shutil.copytree(root, more / "all")
    source = load_source(str(root))
    found = unlabelled_images(str(more), source)
    assert len(found.images.labels) == 6
    assert "24 images are copies of some" in " ".join(found.notes)
    with pytest.raises(UserError, match=r"All images of .* are among those of"):
        unlabelled_images(str(root), source)


def test_what_cannot_be_used_is_said(make_folder: MakeFolder, more: Path, tmp_path: Path) -> None:
    """A third of the photos would be missing, and nobody know."""
    source = load_source(str(make_folder(train=10)))
    (more / "a" / "x.heic").write_bytes(b"x")
    assert "1 .heic" in " ".join(unlabelled_images(str(more), source).notes)
    with pytest.raises(UserError, match="is not a folder"):
        unlabelled_images(str(more / "0.png"), source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        unlabelled_images(str(tmp_path / "empty"), source)


def test_broken_ones_are_named_and_can_be_left_out(make_folder: MakeFolder, more: Path) -> None:
    """One broken file among thousands would end every training, or be taken for a class that has no image left."""
    root = make_folder(train=10)
    (more / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png"):
        by_label(mixed(root, more))
    said: list[str] = []
    source = load_source(str(root))
    options = TrainingOptions(loading="memory", workers=0, skip_bad_images=True)
    found = unlabelled_images(str(more), source)
    data = Data(source, PREP, options, torch.device("cpu"), note=said.append, unlabelled=found)
    assert sorted(by_label(data)[1].tolist()) == [-1] * 6 + [0] * 9 + [1] * 9
    assert any("1 of 25 images of the fit split are left out" in note for note in said)
    for path in more.rglob("*.png"):
        path.write_bytes(b"no image")
    data = Data(source, PREP, options, torch.device("cpu"), note=said.append, unlabelled=found)
    assert len(by_label(data)[1]) == 18
    assert not any("has no image left" in note for note in said)
