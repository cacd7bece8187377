"""Targets computed once are what a live network says, and never those of another network, image or view."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import kdcompress.models  # noqa: F401 - registers our networks
from kdcompress.cache import ArrayStore
from kdcompress.data import Data, EvalBatches, InputAdapter, Preprocess, TrainBatches, load_source
from kdcompress.engine.distributed import Place
from kdcompress.engine.targets import (
    CPU_BATCH,
    CachedBatches,
    CachedEval,
    Targets,
    forward_batch,
    image_key,
    network_key,
    precision_error,
)
from kdcompress.methods.base import Frozen
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import TrainingOptions

CPU = Place(torch.device("cpu"), "fp32")
TINY = "resnet8_cifar,width=0.25"


def never() -> bool:
    return False


def teacher(seed: int = 0, spec: str = TINY) -> Frozen:
    return Frozen(new_network(ModelSpec.parse(spec), num_classes=10, channels=1, size=(8, 8), seed=seed).model)


def gated(threshold: float | None) -> Frozen:
    """A cascade with one gate, or without."""
    torch.manual_seed(0)
    gate = None if threshold is None else {"measure": "confidence", "thresholds": [threshold]}
    members = [{"architecture": "resnet8_cifar", "model_args": {"width": 0.25}}] * 2
    return Frozen(timm.create_model("residual_cascade", members=members, gate=gate, in_chans=1, num_classes=10))


def digits(augment: str = "crop", loading: str = "auto") -> tuple[TrainBatches, EvalBatches]:
    prep = new_network(ModelSpec.parse(TINY), num_classes=10, channels=1, size=(8, 8), seed=0).prep
    data = Data(load_source("digits"), prep, TrainingOptions(loading=loading, workers=0), CPU.device)
    return data.training(32, 7, augment), data.evaluation("calibration", 50)


def targets(folder: Path, networks: dict[str, nn.Module], batches: Any, **more: Any) -> Targets:
    heard: Callable[[str], None] = more.pop("note", pytest.fail)
    store = ArrayStore(folder / "targets", more.pop("limit", 1e9))
    widths = dict.fromkeys(networks, 10)
    return Targets(networks, widths, batches, more.pop("fingerprint", "f"), store, more.pop("place", CPU), heard)


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.network(x)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_cached_targets_equal_the_networks_outputs(tmp_path: Path, loading: str) -> None:
    """A student would learn from the teacher's logits for other images, or for other crops."""
    batches, _ = digits(loading=loading)
    networks = {"teacher_logits": teacher(0), "member_logits": teacher(1)}
    cached = CachedBatches(batches, targets(tmp_path, networks, batches), views=3)
    for epoch in (0, 4):
        assert cached.prepare(epoch, never)
        for x, _, rows in itertools.islice(cached.epoch(epoch, first_step=3), 6):
            for name, network in networks.items():
                live = network(x)
                assert rows[name].dtype == torch.float32
                assert (rows[name] - live).abs().max() <= 1e-3 * live.abs().max() + 1e-5, "beyond fp16 rounding"


def test_targets_of_the_unaugmented_split(tmp_path: Path) -> None:
    """The calibration accuracy of a cascade would mix up logits of different images."""
    _, calibration = digits()
    network = teacher()
    cached = CachedEval(calibration, targets(tmp_path, {"member_logits": network}, calibration))
    seen = 0
    for x, _, rows in cached:
        assert torch.allclose(rows["member_logits"], network(x), atol=2e-3)
        seen += len(x)
    assert seen == len(calibration.images.ids)


def test_a_repeated_view_has_another_order(tmp_path: Path) -> None:
    """Epoch e shows view e mod K; with the same order each time the student would see the same batches."""
    batches, _ = digits()
    cached = CachedBatches(batches, targets(tmp_path, {}, batches), views=2)

    def epoch(number: int) -> Tensor:
        return torch.cat([x for x, _, _ in cached.epoch(number)]).flatten(1)

    def sorted_rows(x: Tensor) -> list[list[float]]:
        return sorted(x.tolist())

    first, second, again = epoch(0), epoch(1), epoch(2)
    assert not torch.equal(first, again)
    assert sorted_rows(first) == sorted_rows(again)
    assert sorted_rows(first) != sorted_rows(second)
    other = dataclasses.replace(batches, seed=8)
    other_run = CachedBatches(other, cached.targets, views=2)
    assert sorted_rows(torch.cat([x for x, _, _ in other_run.epoch(0)]).flatten(1)) == sorted_rows(first), (
        "a run with another seed would find nothing"
    )


def test_each_view_is_computed_once(tmp_path: Path) -> None:
    """Later epochs, and later runs with the same networks, are what the cache is for."""
    batches, _ = digits()
    images = len(batches.images.ids)
    assert images > 2 * CPU_BATCH
    first = Counted(teacher())
    cached = CachedBatches(batches, targets(tmp_path, {"teacher_logits": first}, batches), views=2)
    for epoch in range(5):
        assert cached.prepare(epoch, never)
    assert first.images == 2 * images
    again, member = Counted(teacher()), Counted(teacher(1))
    networks = {"teacher_logits": again, "member_logits": member}
    later = CachedBatches(batches, targets(tmp_path, networks, batches), views=3)
    for epoch in range(3):
        assert later.prepare(epoch, never)
    assert (again.images, member.images) == (images, 3 * images), "only what is new"


def test_what_targets_depend_on_is_in_their_key(tmp_path: Path) -> None:
    """Stale targets would be used."""
    batches, calibration = digits()
    base = targets(tmp_path, {"a": teacher()}, batches).keys["a"]
    assert targets(tmp_path, {"b": teacher()}, batches).keys["b"] == base, "the same must be found"
    prep = dataclasses.replace(batches.images.prep, mean=(0.4,))  # type: ignore[union-attr]
    few = dataclasses.replace(batches.images, ids=batches.images.ids[:-1])
    exact, louder = teacher(), copy.deepcopy(batches.images)
    exact.exact = True
    louder.pixels[0, 0] += 1  # type: ignore[union-attr]
    others = [
        targets(tmp_path, {"a": exact}, batches),
        targets(tmp_path, {"a": gated(None)}, batches),
        targets(tmp_path, {"a": gated(0.2)}, batches),
        targets(tmp_path, {"a": gated(0.9)}, batches),
        targets(tmp_path, {"a": teacher()}, dataclasses.replace(batches, images=louder)),
        targets(tmp_path, {"a": teacher(1)}, batches),
        targets(tmp_path, {"a": teacher(0, "resnet8_cifar,width=0.25,shortcut=A")}, batches),
        targets(tmp_path, {"a": Frozen(teacher().model, InputAdapter.between(batches.images.prep, prep))}, batches),  # type: ignore[union-attr]
        targets(tmp_path, {"a": teacher()}, batches, fingerprint="g"),
        targets(tmp_path, {"a": teacher()}, batches, place=dataclasses.replace(CPU, precision="bf16")),
        targets(tmp_path, {"a": teacher()}, digits("crop-flip")[0]),
        targets(tmp_path, {"a": teacher()}, digits(loading="stream")[0]),
        targets(tmp_path, {"a": teacher()}, dataclasses.replace(batches, images=few)),
        targets(tmp_path, {"a": teacher()}, calibration),
    ]
    keys = [found.keys["a"] for found in others]
    assert all(key != base for key in keys)
    assert len({str(key) for key in keys}) == len(keys)


def test_settings_are_part_of_a_network() -> None:
    """Settings that change no tensor would give one network the targets of another."""
    heads = [nn.MultiheadAttention(12, heads) for heads in (3, 6)]
    heads[1].load_state_dict(heads[0].state_dict())
    assert network_key(heads[0])["fingerprint"] != network_key(heads[1])["fingerprint"]
    again = copy.deepcopy(heads[0])
    assert network_key(again)["fingerprint"] == network_key(heads[0])["fingerprint"], "no address of an object"
    values = (torch.zeros(2), torch.ones(2), np.zeros(2), np.ones(2), {1}, {1, 2}, functools.partial(print, 1), print)
    keys = []
    for value in (*values, *copy.deepcopy(values)):
        again.prior = value
        keys.append(network_key(again)["fingerprint"])
    assert len(set(keys)) == len(values), "what it holds beside its buffers"
    assert keys[: len(values)] == keys[len(values) :]


def test_a_file_that_is_written_to_is_another_image(tmp_path: Path) -> None:
    """Streamed images are not read for the key; a changed image of equal size would get the old targets."""
    rng = np.random.default_rng(0)
    for split, name, number in itertools.product(("train", "test"), "ab", range(10)):
        file = tmp_path / split / name / f"{number}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)

    def key() -> dict[str, Any]:
        prep = new_network(ModelSpec.parse(TINY), num_classes=2, channels=1, size=(8, 8), seed=0).prep
        data = Data(load_source(str(tmp_path)), prep, TrainingOptions(loading="stream", workers=0), CPU.device)
        return image_key(data.training(4, 0, "none"))

    before = key()
    assert key() == before
    Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "train" / "a" / "3.bmp")
    os.utime(tmp_path / "train" / "a" / "3.bmp", (1, 1))
    assert key() != before


def test_what_another_run_wrote_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    """Runs of a sweep that start together would each decode every image of every view, one after the other."""
    batches, _ = digits()
    made = targets(tmp_path, {"a": teacher()}, batches)
    read, looked = made._read, []

    def late(name: str, view: int) -> np.ndarray | None:  # another run is done while this one waits for the lock
        if not looked:
            assert targets(tmp_path, {"a": teacher()}, batches).prepare(view, never)
            looked.append(None)
            return None
        return read(name, view)

    made._read = late  # type: ignore[method-assign]
    made.batches = dataclasses.replace(batches, images=None)  # type: ignore[arg-type]
    assert made.prepare(0, never)
    assert made.rows_of(np.arange(3))["a"].shape == (3, 10)


def test_precisions_are_compared_on_images_of_all_classes(tmp_path: Path) -> None:
    """Folders are in the order of their classes: a precision that ruins the others would pass."""
    batches, _ = digits("none")
    seen: list[Tensor] = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.flatten(1).clone())
            return x.flatten(1)

    assert precision_error(Seen(), batches, CPU) == 0
    count = len(batches.images.ids)
    assert count > 1024
    (last,) = (x for x, _ in batches.load([np.array([count - 1])], 0, 0))
    assert (torch.cat(seen) == last.flatten(1)).all(1).any()


def test_identical_networks_run_once(tmp_path: Path) -> None:
    """A teacher that is also a member would wait for its own lock."""
    batches, _ = digits()
    asked = [Counted(teacher()), Counted(teacher())]
    made = targets(tmp_path, {"teacher_logits": asked[0], "member_logits": asked[1]}, batches)
    assert made.prepare(0, never)
    rows = made.rows_of(np.arange(4))
    assert torch.equal(rows["teacher_logits"], rows["member_logits"])
    assert sum(network.images for network in asked) == len(batches.images.ids)


def test_cached_views_are_read_where_others_cannot_be_written(tmp_path: Path) -> None:
    """A cache that became read-only or full would be useless."""
    batches, _ = digits()
    first = Counted(teacher())
    assert targets(tmp_path, {"a": first}, batches).prepare(0, never)
    network, heard = Counted(teacher()), list[str]()
    made = targets(tmp_path, {"a": network}, batches, note=heard.append, limit=3 * 10 * len(batches.images.ids))
    for view in (0, 1, 0, 1, 0):
        assert made.prepare(view, never)
    assert network.images == 2 * len(batches.images.ids), "view 1 twice, view 0 never"
    assert len(heard) == 1


def test_code_is_part_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own network may change its code between two runs, but not its weights."""
    import importlib

    text = (
        "import torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        return super().forward(x) * {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mended.py").write_text(text.format(1))
    import mended  # type: ignore[import-not-found]

    torch.manual_seed(0)
    before = mended.Net(2, 2)
    key = network_key(before)
    (tmp_path / "mended.py").write_text(text.format("2.0"))
    importlib.invalidate_caches()
    after = importlib.reload(mended).Net(2, 2)
    after.load_state_dict(before.state_dict())
    assert network_key(after)["fingerprint"] != key["fingerprint"]
    key = network_key(after)
    assert network_key(after) == key
    (tmp_path / "helpers.py").write_text("def scaled(x): return 3 * x\n")  # beside it, where it may call it
    assert network_key(after) != key


@pytest.mark.parametrize("trouble", ["file", "limit", "foreign"])
def test_results_are_the_same_without_a_cache(tmp_path: Path, trouble: str) -> None:
    """A full disk would change the result, or end a training of hours."""
    batches, _ = digits()
    networks: dict[str, nn.Module] = {"teacher_logits": teacher(0), "member_logits": teacher(1)}
    good = targets(tmp_path / "good", networks, batches)
    folder = tmp_path / "bad"
    folder.mkdir()
    if trouble == "file":
        (folder / "targets").write_text("in the way")
    elif trouble == "foreign":
        (folder / "targets").mkdir()
        (folder / "targets" / "format.json").write_text('{"version": 0}')
    heard: list[str] = []
    # there is room for the targets of one network, not for those of both
    limit = 1.5 * 2 * 10 * len(batches.images.ids) if trouble == "limit" else 1e9
    bad = targets(folder, networks, batches, note=heard.append, limit=limit)
    positions = np.array([5, 1, 1200])
    for view in (0, 1, 0):
        assert good.prepare(view, never)
        assert bad.prepare(view, never)
        for name, rows in good.rows_of(positions).items():
            assert torch.equal(rows, bad.rows_of(positions)[name])
            assert rows.abs().sum() > 0
    assert len(heard) == 1, "one warning"
    assert heard[0].startswith("Warning: targets cannot be cached in ")
    assert not list(folder.rglob("*.npy"))


def test_a_stop_keeps_whole_views_only(tmp_path: Path) -> None:
    """Ctrl-C during a view would leave half of it, or have no effect for minutes."""
    batches, _ = digits()
    network = Counted(teacher())
    made = targets(tmp_path, {"teacher_logits": network}, batches)
    asked = iter([False, False, True])
    assert not made.prepare(0, lambda: next(asked))
    assert network.images < len(batches.images.ids)
    assert not list(tmp_path.rglob("*.npy"))
    assert made.prepare(0, never)
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_logits_beyond_half_precision_stay_finite(tmp_path: Path) -> None:
    """One infinity would make the loss of its batch, and then all weights, not a number."""

    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), 1e6)

    batches, _ = digits()
    made = targets(tmp_path, {"teacher_logits": Loud()}, batches)
    assert made.prepare(0, never)
    assert torch.isfinite(made.rows_of(np.arange(4))["teacher_logits"]).all()


def test_images_that_cannot_be_read_are_no_stop(tmp_path: Path) -> None:
    """Too many open files ended a training with "Interrupted." and no cause."""

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise OSError(24, "Too many open files")

    batches, _ = digits()
    cached = CachedBatches(batches, targets(tmp_path, {"teacher_logits": Failing()}, batches), views=1)
    with pytest.raises(OSError, match="Too many open files"):
        cached.prepare(0, never)
    assert not cached.prepare(0, lambda: True), "after a signal it is one"


@pytest.mark.parametrize(("side", "batch"), [(32, 512), (224, 256), (384, 87), (2048, 16)])
def test_large_images_are_scored_in_small_batches(side: int, batch: int) -> None:
    """A teacher that was trained with --batch-size 16 would not fit when it is scored at the end, at any resume."""
    prep = Preprocess((side, side), 3, (0.5,) * 3, (0.5,) * 3)
    assert forward_batch(Place(torch.device("cuda"), "fp32"), prep) == batch
    assert forward_batch(CPU, prep) == 128
