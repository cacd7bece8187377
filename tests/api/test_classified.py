"""The stream from image files to rows."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdcompress.api.classified import AHEAD, classified
from kdcompress.results import Prediction, Unreadable

BATCH = 8


class Brightness:
    """A classifier whose class is the brightness of the first pixel; it remembers the sizes of its batches."""

    path = None
    channels, num_classes, stages = 1, 256, 2
    labels = tuple(f"grey{number}" for number in range(250))

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, image: Image.Image) -> np.ndarray:
        if image.getpixel((0, 0)) == 13:
            raise RuntimeError("a fault of the decoder")
        return np.asarray(image)[:1, :1]

    def classify(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        self.batches.append(len(images))
        values = torch.tensor(np.stack(images).astype(np.int64)).flatten()
        return 10.0 * torch.nn.functional.one_hot(values, 256), values % 2


@pytest.fixture
def greys(tmp_path: Path) -> list[str]:
    """One image of each brightness from 0 to 255."""
    paths = [tmp_path / f"{value}.png" for value in range(256)]
    for value, path in enumerate(paths):
        Image.new("L", (2, 2), value).save(path)
    return [str(path) for path in paths]


def test_rows_come_in_order_with_what_cannot_be_read_in_its_place(greys: list[str], tmp_path: Path) -> None:
    """A bad file moves the rows of the others, or ends the stream."""
    (tmp_path / "3.png").write_bytes(b"no image")
    missing = Unreadable("nowhere", "There is no file or folder nowhere.")
    classifier = Brightness()
    batches = list(classified([*greys[:10], missing, *greys[10:20]], classifier, BATCH, 3))
    assert [len(batch) for batch in batches] == [8, 8, 5]
    assert classifier.batches == [7, 6, 5]
    rows = list(itertools.chain.from_iterable(batches))
    assert [row.path for row in rows] == [*greys[:10], "nowhere", *greys[10:20]]
    for row in rows:
        value = Path(row.path).stem
        if isinstance(row, Prediction):
            assert (row.label, row.index, row.exit_stage) == (f"grey{value}", int(value), int(value) % 2)
            assert len(row.top5) == 3
            assert row.top5[0].probability == row.probability == pytest.approx(1 / (1 + 255 * np.exp(-10)), abs=1e-5)
        else:
            assert value in ("3", "13", "nowhere")
            assert value in row.problem
            assert "\n" not in row.problem


def test_a_batch_of_bad_files_runs_nothing(tmp_path: Path) -> None:
    """A network is given an empty batch, and fails for all images after it."""
    (tmp_path / "bad.png").touch()
    classifier = Brightness()
    rows = list(classified([str(tmp_path / "bad.png")] * 3, classifier, BATCH, 1))
    assert [type(row) for row in rows[0]] == [Unreadable] * 3
    assert classifier.batches == []


def test_classes_without_a_name_have_none(greys: list[str]) -> None:
    """A network with fewer names than classes ends in an IndexError."""
    row = next(classified([greys[253]], Brightness(), 1, 1))[0]
    assert isinstance(row, Prediction)
    assert (row.label, row.index) == (None, 253)


def test_memory_does_not_grow_with_the_images(greys: list[str]) -> None:
    """A folder of ten million images ends in a process that is killed: paths, pixels or rows are kept."""
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        for path in itertools.cycle(greys[20:40]):
            drawn += 1
            yield path

    stream = classified(endless(), Brightness(), BATCH, 5)
    for number in range(1, 60):
        rows = next(stream)
        assert len(rows) == BATCH
        assert drawn <= (number + AHEAD + 1) * BATCH, "paths are drawn long before they are needed"
    del rows
    alive = sum(type(each) is Prediction for each in gc.get_objects())
    stream.close()
    assert alive <= 2 * BATCH


def test_a_stream_that_is_left_ends_its_threads(greys: list[str]) -> None:
    """Every call that is left early leaves its threads behind."""
    before = set(threading.enumerate())
    stream = classified(itertools.cycle(greys[20:40]), Brightness(), BATCH, 5)
    next(stream)
    assert set(threading.enumerate()) > before
    stream.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
