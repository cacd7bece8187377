"""What our training loop costs over a bare one: data, augmentation, metrics and checks, as a share of the step.

Both loops run the same network in the same process, turn by turn, so that a noisy machine is noisy for both::

    python examples/bench_loop.py --model resnet20_cifar --batch-size 128

prints one line of JSON. ``overhead`` is the median over rounds of (ours / bare - 1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdcompress.data import Data
from kdcompress.data.sources import ArrayImages, DataSource
from kdcompress.engine.distributed import start
from kdcompress.engine.fit import Plan, Trainer
from kdcompress.engine.interrupt import StopSignal
from kdcompress.engine.progress import Silent
from kdcompress.methods.supervised import SupervisedTask
from kdcompress.models.assemble import new_network
from kdcompress.models.build import ModelSpec
from kdcompress.options import TrainingOptions
from kdcompress.runs import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_cifar")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="fp32")
    asked = parser.parse_args()

    place = start("auto", asked.precision)
    images = round(asked.batch_size * asked.steps / 0.9)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(images) % 10
    source = DataSource("random", ArrayImages(pixels, labels), None, 10, None, "random")
    options = TrainingOptions(epochs=10_000, batch_size=asked.batch_size, loading="memory")
    spec = ModelSpec.parse(asked.model)
    ours = new_network(spec, num_classes=10, channels=3, size=(32, 32), seed=0)
    bare = new_network(spec, num_classes=10, channels=3, size=(32, 32), seed=0).model.to(place.device)
    data = Data(source, ours.prep, options, place.device)
    plan = Plan.of(options, data.fit_size())
    batches = data.training(asked.batch_size, 0, "auto")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            SupervisedTask(ours.model), batches, options, plan, place, RunFolder(Path(folder)), num_classes=10
        )
        bare.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(bare.parameters(), lr=plan.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        x, y = next(iter(batches.epoch(0)))

        def bare_turn() -> float:
            begin = time.perf_counter()
            for _ in range(len(batches)):
                with place.autocast():
                    loss = nn.functional.cross_entropy(bare(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            _wait(place.device)
            return (time.perf_counter() - begin) / (len(batches) * len(x))

        def our_turn() -> float:
            begin = time.perf_counter()
            with StopSignal() as stop:
                trainer.run_epoch(stop, Silent())
            trainer.next_epoch()
            _wait(place.device)
            return (time.perf_counter() - begin) / len(batches.images.ids)

        bare_turn(), our_turn()
        rounds = [(bare_turn(), our_turn()) for _ in range(asked.rounds)]
    result = {
        "model": asked.model,
        "batch_size": asked.batch_size,
        "precision": place.precision,
        "hardware": place.describe(),
        "bare_images_per_second": round(1 / statistics.median(bare for bare, _ in rounds), 1),
        "our_images_per_second": round(1 / statistics.median(ours for _, ours in rounds), 1),
        "overhead": round(statistics.median(ours / bare for bare, ours in rounds) - 1, 4),
    }
    print(json.dumps(result))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
