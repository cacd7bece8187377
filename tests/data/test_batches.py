"""Batches: every image once an epoch, the same pixels whichever way they come."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kdcompress import threads
from kdcompress.data import (
    Data,
    DataSource,
    EvalBatches,
    Preprocess,
    TrainBatches,
    batches,
    load_source,
    prepared,
    workers,
)
from kdcompress.data.augment import crop_indices
from kdcompress.data.batches import MemoryImages, StreamImages, find_good, load_into_memory
from kdcompress.data.images import ArrayImages
from kdcompress.data.preprocess import read_image
from kdcompress.data.splits import fit_calibration
from kdcompress.errors import UserError
from kdcompress.options import DataOptions, PolishOptions, TrainingOptions, TrainTeacherOptions

from .images import MakeFolder, random_image

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # this machine may have one core
CPU = torch.device("cpu")
PREP = Preprocess((12, 10), 3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
GREY = Preprocess((8, 8), 1, (0.5,), (0.25,))
quick = settings(deadline=None, max_examples=60)


def numbered(count: int, seed: int = 0) -> MemoryImages:
    """Images in memory whose label is their position."""
    array = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    images = ArrayImages(array, np.arange(count))
    return load_into_memory(images, np.arange(count), GREY, CPU, workers=0, skip_bad=False)


def joined(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def by_target(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Images in the order of their targets, which have to differ."""
    inputs, targets = joined(batches)
    assert len(targets.unique()) == len(targets)
    return inputs[targets.argsort()]


def same(a: Iterable[tuple[Tensor, Tensor]], b: Iterable[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x.equal(y) and t.equal(u) for (x, t), (y, u) in pairs) and bool(pairs)


def uint8(x: Tensor, prep: Preprocess) -> Tensor:
    """Back from normalised to pixels [B, H, W, C]."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (prep.mean, prep.std))
    pixels = (x * std + mean) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1)


# --- the order of an epoch ---

sizes = st.integers(1, 60)


@given(sizes, st.integers(1, 20), st.integers(0, 2**31 - 1), st.integers(0, 300))
@quick
def test_an_epoch_has_every_image_once(count: int, batch: int, seed: int, epoch: int) -> None:
    """Some images would never be learnt, others twice; or a last tiny batch would upset BatchNorm."""
    batches = TrainBatches(numbered(count), batch, seed, "crop")
    targets = [target for _, target in batches.epoch(epoch)]
    assert sorted(torch.cat(targets).tolist()) == list(range(count))
    assert len(targets) == len(batches)
    assert [len(target) for target in targets] == batches.sizes()
    if count // -(-count // batch) >= 2:  # else a batch would have one image, and there are fewer, larger ones
        assert max(batches.sizes()) <= batch
    assert max(batches.sizes()) - min(batches.sizes()) <= 1


@given(sizes, st.integers(1, 20), st.integers(1, 4), st.integers(0, 99))
@quick
def test_the_shares_of_the_processes_make_up_each_batch(count: int, batch: int, world: int, epoch: int) -> None:
    """Training on two devices would see other batches than on one, and end with another network."""
    images = numbered(count)
    # where a process would be left with one image, several processes take larger batches than one
    assume(count // -(-count // batch) >= 2 * world)
    whole = [target.tolist() for _, target in TrainBatches(images, batch, 3, "none").epoch(epoch)]
    ranks = [
        [target.tolist() for _, target in TrainBatches(images, batch, 3, "none", None, rank, world).epoch(epoch)]
        for rank in range(world)
    ]
    for step, expected in enumerate(whole):
        parts = [rank[step] for rank in ranks]
        assert sorted(target for part in parts for target in part) == sorted(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(sizes, st.integers(1, 20), st.integers(0, 99), st.data())
@quick
def test_an_epoch_can_be_entered_anywhere(count: int, batch: int, epoch: int, data: st.DataObject) -> None:
    """A resumed run would repeat images or leave some out, and not end with the same weights."""
    batches = TrainBatches(numbered(count), batch, 1, "crop-flip")
    step = data.draw(st.integers(0, len(batches) - 1))
    assert same(list(batches.epoch(epoch))[step:], batches.epoch(epoch, step))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """Every epoch would be the same, or the same command give another network each time."""
    images = numbered(50)

    def order(seed: int, epoch: int) -> list[int]:
        return joined(TrainBatches(images, 8, seed, "crop").epoch(epoch))[1].tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert same(TrainBatches(images, 8, 0, "crop").epoch(0), TrainBatches(images, 8, 0, "crop").epoch(0))
    one, other = (by_target(TrainBatches(images, 8, 0, "crop").epoch(epoch)) for epoch in (0, 1))
    assert not one.equal(other)


@given(sizes, st.integers(1, 20), st.integers(1, 4))
@quick
def test_evaluation_has_every_image_once_over_all_processes(count: int, batch: int, world: int) -> None:
    """Accuracy would be of some images, or count some twice."""
    images = numbered(count)
    found = []
    for rank in range(min(world, count)):
        batches = EvalBatches(images, batch, rank, min(world, count))
        found += joined(batches)[1].tolist()
        assert same(batches, batches), "it can be run through again"
    assert sorted(found) == list(range(count))
    assert joined(EvalBatches(images, batch))[1].tolist() == list(range(count)), "in the split's order"


# --- pixels ---


def test_memory_gives_the_images_normalised() -> None:
    """Everything would still run, on wrong pixels."""
    images = numbered(9)
    source = images.pixels.view(9, 8, 8, 1)
    x, targets = joined(EvalBatches(images, 4))
    assert x.dtype == torch.float32
    assert torch.allclose(x[3, 0, 1, 2], (source[3, 1, 2, 0] / 255 - 0.5) / 0.25)
    assert uint8(x, GREY).equal(source)
    assert targets.tolist() == list(range(9))
    assert by_target(TrainBatches(images, 4, 0, "none").epoch(3)).equal(x)


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
def test_memory_crops_are_those_of_the_view(augment: str) -> None:
    """Crops of one image would be given under the label of another, or be drawn from somewhere else."""
    images = numbered(40)
    source = images.pixels.view(40, 8, 8, 1)
    found = uint8(by_target(TrainBatches(images, 7, 5, augment).epoch(2)), GREY)
    rows, columns = crop_indices(5, 2, np.arange(40), 8, 8, flip=augment == "crop-flip")
    for i in range(40):
        assert found[i].equal(source[i][rows[i]][:, columns[i]])


@pytest.mark.parametrize("batch", [3, 16, 40])
def test_batch_size_does_not_change_what_an_image_looks_like(batch: int) -> None:
    """What a frozen teacher said about a view could not be kept for another batch size."""
    images = numbered(40)
    assert by_target(TrainBatches(images, batch, 5, "crop-flip").epoch(2)).equal(
        by_target(TrainBatches(images, 8, 5, "crop-flip").epoch(2))
    )


def photos(make_folder: MakeFolder, **layout: Any) -> DataSource:
    """A folder whose labels are made to be the positions, so that images can be told apart."""
    source = load_source(str(make_folder(**layout)))
    source.train.labels = np.arange(len(source.train.labels))
    return source


def streamed(source: DataSource, augment: str, workers: int, prep: Preprocess = PREP) -> Data:
    options = DataOptions(loading="stream", workers=workers, holdout=0.01)
    data = Data(source, prep, options, CPU)
    data._select = lambda split: (source.train, np.arange(len(source.train.labels)))  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip", "rrc-flip"])
def test_streaming_gives_the_same_pixels_with_and_without_workers(make_folder: MakeFolder, augment: str) -> None:
    """--workers, the batch size or the step where a run was resumed would change the result."""
    source = photos(make_folder, sizes=((12, 10), (20, 30)), train=5)
    plain = streamed(source, augment, 0).training(4, 7, augment)
    epoch = list(plain.epoch(2))
    assert same(epoch, streamed(source, augment, 2).training(4, 7, augment).epoch(2))
    assert same(epoch[1:], plain.epoch(2, 1))
    assert by_target(epoch).equal(by_target(streamed(source, augment, 0).training(10, 7, augment).epoch(2)))
    other_view, other_seed = plain.epoch(3), streamed(source, augment, 0).training(4, 8, augment).epoch(2)
    for other in (other_view, other_seed):
        assert by_target(epoch).equal(by_target(other)) == (augment == "none")


def test_workers_do_without_shared_memory(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has 64 MiB of it: PyTorch drops a batch that does not fit, and waits for it forever."""
    source = photos(make_folder, sizes=((12, 10), (20, 30)), train=5)
    roomy = list(streamed(source, "crop-flip", 2).training(4, 7, "crop-flip").epoch(2))
    asked: list[int] = []
    monkeypatch.setattr(batches, "shared_memory_holds", lambda size: bool(asked.append(size)))
    assert same(roomy, streamed(source, "crop-flip", 2).training(4, 7, "crop-flip").epoch(2))
    assert asked
    assert min(asked) >= 2 * 2 * 4 * 3 * 12 * 10  # of two workers, two batches each


def test_an_epoch_without_batches_is_empty(make_folder: MakeFolder) -> None:
    """A training that was stopped after the last step of an epoch goes on with that."""
    train = streamed(photos(make_folder, train=5), "none", 0).training(4, 7, "none")
    assert list(train.epoch(2, len(train))) == []


def test_images_that_can_be_read_are_looked_for_once(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass decodes all photos of the split, and a training asked five times."""
    options = DataOptions(loading="stream", workers=0, skip_bad_images=True)
    data = Data(photos(make_folder, train=5), PREP, options, CPU)
    passes: list[int] = []

    def counted(images: Any, indices: np.ndarray, channels: int, workers: int) -> np.ndarray:
        passes.append(len(indices))
        return find_good(images, indices, channels, workers)

    monkeypatch.setattr(prepared, "find_good", counted)
    for each in (data, data.alone(), data):
        each.evaluation("fit", 4)
    assert len(passes) == 1


def test_shared_memory_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(f_bavail=16, f_frsize=2**20)
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert workers.shared_memory_holds(16 * 2**20)
    assert not workers.shared_memory_holds(16 * 2**20 + 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert not workers.shared_memory_holds(5 * 2**20)


@pytest.mark.parametrize("error", [RuntimeError, KeyError, OSError])
def test_whatever_a_decoder_raises_the_image_is_named(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """A damaged file of a rare format ended the training without its name, whatever --skip-bad-images said."""
    source = photos(make_folder, train=5)

    def damaged(file: str) -> Image.Image:
        raise error("broken")

    monkeypatch.setattr(Image, "open", damaged)
    with pytest.raises(UserError, match=r"Unreadable image .*png: .*broken"):
        read_image(source.train, 0, 3)


def test_pixels_that_are_floats_are_refused() -> None:
    """Pillow clips them: those between 0 and 1 would all be black."""
    images = ArrayImages(np.zeros((1, 4, 4), np.uint8), np.zeros(1, np.int64))
    images.image = lambda index: Image.fromarray(np.full((4, 4), 0.5, np.float32))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="floating-point numbers"):
        read_image(images, 0, 1)


def test_streamed_photos_are_mirrored_in_every_other_view(make_folder: MakeFolder) -> None:
    """Two epochs in a row would show half of the photos the same way round."""
    source = photos(make_folder, train=5)
    flips, plain = (streamed(source, augment, 0).training(10, 7, augment) for augment in ("flip", "none"))
    one, two, as_is = by_target(flips.epoch(0)), by_target(flips.epoch(1)), by_target(plain.epoch(0))
    unchanged, mirrored = ((one == image).flatten(1).all(1) for image in (as_is, as_is.flip(-1)))
    assert (unchanged ^ mirrored).all()
    assert two.equal(one.flip(-1))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_memory_and_stream_evaluate_the_same_pixels(make_folder: MakeFolder, mode: str) -> None:
    """--loading, or a data set that outgrows the memory, would change the accuracy."""
    source = photos(make_folder, mode=mode)
    prep = PREP if source.channels == 3 else Preprocess((12, 10), 1, (0.5,), (0.25,))
    results = []
    for loading in ("memory", "stream"):
        data = Data(source, prep, DataOptions(loading=loading, workers=0), CPU)
        results.append(joined(data.evaluation("test", 3)))
        assert isinstance(data.evaluation("test", 3).images, MemoryImages if loading == "memory" else StreamImages)
    assert results[0][1].equal(results[1][1])
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert source.test is not None
    assert np.array_equal(uint8(results[0][0], prep)[1].squeeze(-1), _pixels(source.test.image(1), prep.channels))


def _pixels(image: Any, channels: int) -> np.ndarray:
    return np.asarray(image.convert({1: "L", 3: "RGB"}[channels]))


@pytest.mark.parametrize("wanted", [(16, 16), (8, 12)])
def test_memory_and_stream_resize_alike(make_folder: MakeFolder, wanted: tuple[int, int]) -> None:
    """Images of mixed sizes would be cut out differently by the two ways."""
    source = photos(make_folder, sizes=((12, 10), (20, 31), (9, 9)))
    prep = Preprocess(wanted, 3, PREP.mean, PREP.std)
    memory, stream = (
        joined(Data(source, prep, DataOptions(loading=loading, workers=0), CPU).evaluation("test", 8))[0]
        for loading in ("memory", "stream")
    )
    assert memory.shape == (4, 3, *wanted)
    assert torch.allclose(memory, stream, atol=1e-6)


def test_a_colour_array_can_be_read_as_grey() -> None:
    """--input-size 1xHxW on colour images held in an array would shuffle pixels between images."""
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images = ArrayImages(array, np.arange(5))
    memory = load_into_memory(images, np.arange(5), GREY, CPU, workers=0, skip_bad=False)
    expected = np.stack([_pixels(images.image(i), 1) for i in range(5)])
    assert np.array_equal(memory.pixels.view(5, 8, 8), expected)


def test_many_images_are_read_by_workers_into_their_places() -> None:
    """Large sets are read by several processes: images would land under other labels."""
    array = np.random.default_rng(0).integers(0, 256, (2100, 4, 4, 3), dtype=np.uint8)
    images, chosen = ArrayImages(array, np.arange(2100)), np.arange(2100)[::-1].copy()
    prep = Preprocess((4, 4), 3, PREP.mean, PREP.std)
    memory = load_into_memory(images, chosen, prep, CPU, workers=2, skip_bad=False)
    assert np.array_equal(memory.pixels.view(2100, 4, 4, 3), array[::-1])
    assert memory.labels.tolist() == chosen.tolist()


# --- bad images ---


@pytest.fixture
def damaged(make_folder: MakeFolder) -> tuple[DataSource, int]:
    """A folder with one truncated image in the fit split, and its index."""
    root = make_folder(train=10)
    source = load_source(str(root))
    index = int(fit_calibration(source.train.labels, 0.1)[0][5])
    path = Path(source.train.name(index))
    path.write_bytes(path.read_bytes()[:150])
    return load_source(str(root)), index


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(damaged: tuple[DataSource, int], loading: str, workers: int) -> None:
    """The user would have to find one bad file among a million, after an error out of a worker process."""
    source, index = damaged
    data = Data(source, PREP, DataOptions(loading=loading, workers=workers), CPU)
    with pytest.raises(UserError) as caught:
        list(data.training(4, 0, "crop").epoch(0))
    assert source.train.name(index) in caught.value.problem
    assert caught.value.problem.startswith("Unreadable image /")
    assert "--skip-bad-images" in caught.value.remedy


def test_bad_images_of_all_splits_are_named_at_once(make_folder: MakeFolder) -> None:
    """Each mended split would only lead to the next error."""
    root = make_folder(train=15, test=8)
    cut = [sorted((root / split).rglob("*.png"))[index] for split in ("train", "test") for index in range(2)]
    for path in cut:
        path.write_bytes(path.read_bytes()[:150])
    data = Data(load_source(str(root)), PREP, DataOptions(loading="memory", workers=0), CPU)
    with pytest.raises(UserError, match=r"^4 unreadable images: ") as caught:
        data.training(4, 0, "none")
    assert all(str(path) in caught.value.problem for path in cut)


def test_bad_images_of_a_streamed_batch_are_named(make_folder: MakeFolder) -> None:
    """Images that stay on the disk are read as training needs them; the error says how to find all bad ones."""
    root = make_folder(train=15, test=8)
    cut = sorted((root / "test").rglob("*.png"))[:2]
    for path in cut:
        path.write_bytes(path.read_bytes()[:150])
    data = Data(load_source(str(root)), PREP, DataOptions(loading="stream", workers=0), CPU)
    with pytest.raises(UserError, match=r"^2 unreadable images: ") as caught:
        list(data.evaluation("test", 30))
    assert all(str(path) in caught.value.problem for path in cut)
    assert "kdcompress data" in caught.value.remedy


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_skipping_a_bad_image_leaves_all_others_as_they_were(
    make_folder: MakeFolder, damaged: tuple[DataSource, int], loading: str
) -> None:
    """One bad file would stop the run, or change the split and the views of all other images."""
    source, index = damaged
    source.train.labels = np.arange(len(source.train.labels))
    whole = DataSource(**{key: getattr(source, key) for key in ("spec", "test", "num_classes", "class_names")},
                       train=source.train, fingerprint="")  # fmt: skip
    options = DataOptions(loading=loading, workers=0, skip_bad_images=True)
    data = Data(whole, PREP, options, CPU)
    data._select = lambda split: (source.train, np.arange(20))  # type: ignore[method-assign]
    inputs, targets = joined(data.training(4, 3, "crop-flip").epoch(1))
    assert sorted(targets.tolist()) == [i for i in range(20) if i != index]
    random_image(index).save(source.train.name(index))
    mended = Data(whole, PREP, DataOptions(loading=loading, workers=0), CPU)
    mended._select = data._select  # type: ignore[method-assign]
    expected, all_targets = joined(mended.training(4, 3, "crop-flip").epoch(1))
    assert inputs[targets.argsort()].equal(expected[all_targets.argsort()][np.delete(np.arange(20), index)])


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_split_of_bad_images_only_is_told(make_folder: MakeFolder, loading: str) -> None:
    """--skip-bad-images would end in a division by zero."""
    root = make_folder()
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    data = Data(load_source(str(root)), PREP, DataOptions(loading=loading, workers=0, skip_bad_images=True), CPU)
    with pytest.raises(UserError, match=r"test split of .* has no image that can be read"):
        data.evaluation("test", 4)
    assert len(joined(data.evaluation("fit", 4))[1]) == 6


@pytest.fixture
def spawned() -> Iterator[None]:
    """Worker processes that inherit nothing, as on macOS, Windows and Python 3.14."""
    former = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(former, force=True)


@pytest.mark.usefixtures("spawned")
def test_workers_need_not_be_forked(damaged: tuple[DataSource, int]) -> None:
    """Streaming would fail on macOS and from Python 3.14 on."""
    source, index = damaged
    assert find_good(source.train, np.array([index - 1, index]), 3, 1).tolist() == [index - 1]


# --- what Data decides ---


def test_a_run_fits_and_calibrates_on_different_images(make_folder: MakeFolder) -> None:
    """The gate would be calibrated on images that the network knows."""
    source = photos(make_folder, train=10)
    source.train.labels = np.repeat([0, 1], 10)
    data = Data(source, PREP, DataOptions(holdout=0.3), CPU)
    fit, calibration = data.evaluation("fit", 4).images.ids, data.evaluation("calibration", 4).images.ids
    assert sorted([*fit, *calibration]) == list(range(20))
    assert len(calibration) == 6
    assert data.fit_size() == len(fit) == len(data.training(4, 0, "crop").images.ids)
    assert data.evaluation("test", 4).images.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("loading", "size", "memory"),
    [("auto", 12, True), ("auto", 65, False), ("memory", 65, True), ("stream", 12, False)],
)
def test_small_images_go_into_memory(make_folder: MakeFolder, loading: str, size: int, memory: bool) -> None:
    """ImageNet would be read into memory, or CIFAR be read from the disk every epoch."""
    prep = Preprocess((size, size), 3, PREP.mean, PREP.std)
    data = Data(load_source(str(make_folder())), prep, DataOptions(loading=loading, workers=0), CPU)
    assert isinstance(data.evaluation("test", 4).images, MemoryImages) == memory


def test_augmentation_follows_the_data(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits would be mirrored, photos not, and small crops would show few photos in part only."""
    colour, digits = load_source(str(make_folder())), load_source("digits")
    memory, stream = (DataOptions(loading=loading, workers=0) for loading in ("memory", "stream"))
    assert Data(colour, PREP, memory, CPU).training(4, 0, "auto").augment == "crop-flip"
    assert Data(colour, PREP, stream, CPU).training(4, 0, "auto").augment == "crop-flip"
    monkeypatch.setattr(prepared, "FEW", 1)
    assert Data(colour, PREP, stream, CPU).training(4, 0, "auto").augment == "rrc-flip"
    assert Data(digits, GREY, memory, CPU).training(4, 0, "auto").augment == "crop"
    assert Data(digits, GREY, memory, CPU).training(4, 0, "auto", mild=True).augment == "none"
    assert Data(colour, PREP, memory, CPU).training(4, 0, "auto", mild=True).augment == "flip"
    assert Data(digits, GREY, stream, CPU).training(4, 0, "auto").augment == "crop"


def test_what_data_cannot_do_is_told(make_folder: MakeFolder) -> None:
    """A traceback, or another augmentation than the one asked for."""
    data = Data(load_source(str(make_folder(test=0))), PREP, DataOptions(), CPU)
    with pytest.raises(UserError, match="--augment rrc-flip") as caught:
        data.training(4, 0, "rrc-flip")
    assert "--loading stream" in caught.value.remedy
    with pytest.raises(UserError, match="have no test split") as caught:
        data.evaluation("test", 4)
    assert "--split calibration" in caught.value.remedy


@given(st.integers(4, 60), st.integers(2, 20), st.integers(1, 4))
@quick
def test_no_process_is_left_with_one_image(count: int, batch: int, world: int) -> None:
    """BatchNorm stops a training whose last batch holds a single image."""
    assume(batch >= 2 * world and count >= 2 * world)
    batches = TrainBatches(numbered(count), batch, 0, "none", None, 0, world)
    assert min(batches.sizes()) >= 2 * world
    assert sum(batches.sizes()) == count


def test_a_flip_alone_keeps_the_whole_image() -> None:
    """Crops made short fine-tuning harder; an image is shown as it is, or mirrored."""
    images = numbered(64)
    positions = np.arange(64)
    shown, _ = images.training(positions, seed=0, view=0, augment="flip")
    plain, _ = images.plain(positions)
    mirrored = (shown == plain.flip(3)).flatten(1).all(1)
    assert ((shown == plain).flatten(1).all(1) | mirrored).all()
    assert 16 < mirrored.sum() < 48


@pytest.mark.parametrize(
    ("options", "short"),
    [
        (TrainTeacherOptions(pretrained=True, epochs=2), True),
        (TrainTeacherOptions(pretrained=True, epochs=30), False),
        (TrainTeacherOptions(epochs=2), False),
        (PolishOptions(epochs=2), False),
    ],
)
def test_a_short_transfer_goes_without_crops(options: TrainingOptions, short: bool) -> None:
    """Trained weights on new images for a few epochs; a network that knows the images keeps its crops."""
    assert options.is_short_transfer == short


@pytest.mark.parametrize(("here", "quota", "workers"), [(8, "max", 8), (16, "max", 4), (8, "1600000", 2)])
def test_readers_share_the_cores_that_their_processes_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: int, quota: str, workers: int
) -> None:
    """Of two hosts with eight processes each, or where each process is bound to its cores, most would read nothing."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    threads.QUOTA.write_text(f"{quota} 100000")
    monkeypatch.setattr(threads, "_sharing", here)
    assert Data(load_source("digits"), GREY, DataOptions(), CPU, rank=0, world=16).workers == workers
