"""Data sets that timm reads from the Hugging Face hub (``hfds/…``): each image once, and under its own label."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdcompress.cache import ArrayStore
from kdcompress.data import Data, DataSource, Preprocess, load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.targets import Targets
from kdcompress.errors import UserError
from kdcompress.options import TrainingOptions

from .hugging_face import InMemory, provide
from .images import random_image


def encoded(seed: int) -> bytes:
    made = io.BytesIO()
    random_image(seed).save(made, "png")
    return made.getvalue()


@pytest.fixture
def bad(request: pytest.FixtureRequest) -> set[int]:
    return getattr(request, "param", set())


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> Iterator[DataSource]:
    """24 training and 6 test images of two classes."""
    images = [b"no image" if index in bad else encoded(index) for index in range(24)]
    labels = [index % 2 for index in range(24)]
    provide(monkeypatch, {"train": InMemory(images, labels), "test": InMemory(images[:6], labels[:6])})
    yield load_source("hfds/org/name")
    sys.modules.pop("timm.data.readers.reader_hfds", None)


@pytest.mark.parametrize(("split", "count"), [("validation", 6), ("extra", None)])
def test_data_without_a_test_split(monkeypatch: pytest.MonkeyPatch, split: str, count: int | None) -> None:
    """Food-101 has training and validation images, and could not be opened at all."""
    images, labels = [encoded(index) for index in range(24)], [index % 2 for index in range(24)]
    provide(monkeypatch, {"train": InMemory(images, labels), split: InMemory(images[:6], labels[:6])})
    test = load_source("hfds/org/name").test
    sys.modules.pop("timm.data.readers.reader_hfds", None)
    assert (None if test is None else len(test.labels)) == count


def test_classes_have_their_names(source: DataSource) -> None:
    """Predictions, reports and contact sheets would show numbers."""
    assert source.class_names == ("class 0", "class 1")


def test_a_test_split_without_labels_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's has -1 for every image, and could not be opened at all."""
    images, labels = [encoded(index) for index in range(24)], [index % 2 for index in range(24)]
    held_out = {"test": InMemory(images[:6], [-1] * 6), "validation": InMemory(images[:4], labels[:4])}
    provide(monkeypatch, {"train": InMemory(images, labels), **held_out})
    found, notes = load_source("hfds/org/name"), list[str]()
    sys.modules.pop("timm.data.readers.reader_hfds", None)
    found.tell(notes.append)
    assert found.test is not None
    assert len(found.test.labels) == 4
    assert "test split of hfds/org/name has no labels" in " ".join(notes)


class Mean(nn.Module):
    """Says the mean of an image."""

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((1, 2, 3))
        return torch.stack([means, -means], 1)


def prepared(source: DataSource, loading: str, skip_bad: bool = False) -> Data:
    options = TrainingOptions(loading=loading, workers=0, skip_bad_images=skip_bad)
    return Data(source, Preprocess((12, 10), 3, (0.0,) * 3, (1.0,) * 3), options, torch.device("cpu"))


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_targets_are_computed_of_each_image_once(source: DataSource, loading: str, tmp_path: Path) -> None:
    """A view would cost the teacher more than one pass, or rows of the cache belong to other images."""
    data, network, place = prepared(source, loading), Mean().eval(), Place(torch.device("cpu"), "fp32")
    seen: list[int] = []
    network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    batches = data.training(8, 0, "none")
    store = ArrayStore(tmp_path / "targets", 1e9)
    for run in range(2):
        targets = Targets({"told": network}, {"told": 2}, batches, source.fingerprint, store, place, print)
        assert targets.prepare(0, lambda: False)
        assert sum(seen) == data.fit_size() == 22, f"in run {run}"
    ids = batches.images.ids
    pixels = [np.asarray(random_image(int(index))).mean() / 255 for index in ids]
    assert torch.allclose(targets.rows_of(np.arange(22))["told"][:, 0], torch.tensor(pixels).float(), atol=1e-3)
    assert source.train.labels[ids].tolist() == [int(index) % 2 for index in ids]


@pytest.mark.parametrize("bad", [{5, 6}], indirect=True)
def test_no_image_takes_the_place_of_a_bad_one(source: DataSource) -> None:
    """timm's own data set gives the next image instead: it would be learned twice, once under a wrong label."""
    with pytest.raises(UserError, match=r"3 unreadable images: image 5: .*; image 6: .*; test image 5: "):
        prepared(source, "memory").training(8, 0, "none")
    fit = prepared(source, "memory", skip_bad=True).training(8, 0, "none").images.ids
    calibration = prepared(source, "memory", skip_bad=True).evaluation("calibration", 8).images.ids
    assert set(fit) | set(calibration) == set(range(24)) - {5, 6}
