"""Numbers drawn on demand: the same picture for the same (seed, number), whoever draws it and when."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.forked import script
from kdcompress.data import Data, Preprocess, load_source, synth_digits
from kdcompress.data.images import ArrayImages
from kdcompress.data.synth_digits import SynthDigits, SynthImages, draw
from kdcompress.errors import UserError
from kdcompress.options import DataOptions


@pytest.fixture(autouse=True)
def _drawn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the tests draw a picture once."""
    monkeypatch.setattr(synth_digits, "draw", draw)


def pixels(images: SynthImages, *indices: int) -> list[bytes]:
    return [images.image(index).tobytes() for index in indices]


def test_an_image_depends_on_seed_and_number_alone() -> None:
    """Else workers, a second epoch or a resumed run see other data than was recorded."""
    images = SynthDigits.parse("synth-digits:37,n=500").train()
    forwards = pixels(images, 3, 77, 210)
    assert pixels(SynthDigits.parse("synth-digits:37,n=500").train(), 210, 77, 3)[::-1] == forwards
    other = SynthDigits.parse("synth-digits:37,n=500,seed=1").train()
    assert all(ours != theirs for ours, theirs in zip(forwards, pixels(other, 3, 77, 210), strict=True))
    assert len({*pixels(images, *range(0, 500, 37))}) == 14, "images of one class are copies"


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    """Else processes under torchrun train on different data."""
    (tmp_path / "drawing.py").write_text(
        "import hashlib\nfrom kdcompress.data.synth_digits import draw\n"
        "print(hashlib.sha256(b''.join(draw(n, 3, 32, 5, n).tobytes() for n in (7, 120, 999))).hexdigest())"
    )
    there = script(tmp_path / "drawing.py", [], tmp_path).out.strip()
    here = hashlib.sha256(b"".join(draw(n, 3, 32, 5, n).tobytes() for n in (7, 120, 999))).hexdigest()
    assert there == here


@pytest.mark.parametrize(("classes", "digits"), [(2, 1), (10, 1), (11, 2), (100, 2), (101, 3), (100_000, 5)])
def test_any_number_of_classes(classes: int, digits: int) -> None:
    """Else a target with that many classes gets no teacher."""
    source = load_source(f"synth-digits:{classes},n={2 * classes}")
    assert source.num_classes == classes
    assert (source.channels, source.size, source.flip) == (1, (32, 32), False)
    for split in (source.train, source.test):
        assert split is not None
        counts = np.bincount(split.labels, minlength=classes)
        assert len(counts) == classes
        assert counts.min() >= 1
    highest = draw(classes - 1, digits, 32, 0, 0)
    assert source.train.image(classes - 1).size == highest.size == (32, 32)


def test_many_classes_take_no_memory() -> None:
    """One array a class would be gigabytes."""
    tracemalloc.start()
    images = SynthDigits.parse("synth-digits:100000,n=200000").train()
    for index in range(0, 200_000, 9973):
        images.image(index)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_splits_share_no_image() -> None:
    """Else the accuracy at which a teacher stops is that of images it has seen."""
    made = SynthDigits.parse("synth-digits:10,n=200")
    train, test = made.train(), made.test()
    assert not {*pixels(train, *range(200))} & {*pixels(test, *range(40))}


def test_a_number_is_drawn_with_its_digits() -> None:
    """With other numbers in the pictures the labels would be noise: a plain classifier must learn them."""
    from sklearn.linear_model import RidgeClassifier

    source = load_source("synth-digits:10,n=3000,size=16")
    data = Data(source, Preprocess((16, 16), 1, (0.5,), (0.5,)), DataOptions(workers=0), torch.device("cpu"))
    (x, y), (u, v) = (next(iter(data.evaluation(split, 4000))) for split in ("fit", "test"))
    assert isinstance(source.train, SynthImages)
    assert not isinstance(source.train, ArrayImages)
    features = [torch.fft.rfft2(part[:, 0]).abs().flatten(1).numpy() for part in (x, u)]  # blind to shift and inversion
    model = RidgeClassifier(alpha=100.0).fit(features[0], y.numpy())
    assert model.score(features[1], v.numpy()) > 0.3, "a tenth would be chance"


def test_a_number_of_several_digits_shows_them_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong or turned digits would make a class of their own each, and be learned all the same."""
    seen: list[int] = []
    genuine = synth_digits._glyph
    monkeypatch.setattr(synth_digits, "_glyph", lambda digit, stroke: seen.append(digit) or genuine(digit, stroke))
    draw(207, 4, 32, 0, 0)
    assert seen == [0, 2, 0, 7]
    seen.clear()
    SynthDigits.parse("synth-digits:1000,n=2000").test().image(345)
    assert seen == [3, 4, 5]


def test_the_same_index_is_the_same_image_in_any_stretch() -> None:
    """An image is a function of seed and index; whether it is of the training or of the test split must not matter."""
    longer = SynthDigits.parse("synth-digits:10,n=57").train()
    shorter = SynthDigits.parse("synth-digits:10,n=25").test()
    assert pixels(longer, 25) == pixels(shorter, 0)
    assert longer.labels[25] == shorter.labels[0]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("synth-digits:1", "1 classes"),
        ("synth-digits:0", "0 classes"),
        ("synth-digits:-5", "classes"),
        ("synth-digits:100001", "100001"),
        ("synth-digits", "cannot be read"),
        ("synth-digits:ten", "cannot be read"),
        ("synth-digits:10,n", "cannot be read"),
        ("synth-digits:10,width=3", "width"),
        ("synth-digits:10,n=19", "n=19"),
        ("synth-digits:10,size=4", "out of range"),
        ("synth-digits:10,seed=-1", "out of range"),
        ("synth-digits:10,seed=100000000000000000000000000000", "out of range"),
        ("synth-digits:10,n=100000000000000", "out of range"),
        ("synth-digits:10,n=20,n=30", "cannot be read"),
    ],
)
def test_specs_that_cannot_be(spec: str, words: str) -> None:
    """Else a slip of the pen ends in a traceback, or in other data."""
    with pytest.raises(UserError, match=words):
        load_source(spec)
