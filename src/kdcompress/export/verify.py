"""Whether an exported file does what the network does: logits, exits and accuracy, image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kdcompress.errors import UserError
from kdcompress.gating import Gate

NEAR = 1e-5  # of a threshold: rounding may take such an image to either side
MOST_DIFFERENT = 1e-4  # of the largest logit
MOST_DIFFERENT_INT8, MOST_OTHER_INT8 = 0.05, 0.01  # rounding to 8 bits may fall to either side

Run = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class Comparison:
    """An exported file beside what it was made from.

    Attributes:
        n: Images.
        scale: Largest finite logit, in absolute value.
        difference: Largest between logits of images that exit at the same stage.
        same_class: Images of the same predicted class.
        other_exits: Images that exit at another stage, though they are not near a threshold.
        near_ties: Those that are near one, and exit at another stage.
        right, right_before: Images that the file, and the network, classify correctly.
        exits: Images of the file by exit.
    """

    stages: int
    n: int = 0
    scale: float = 0.0
    difference: float = 0.0
    same_class: int = 0
    other_exits: int = 0
    near_ties: int = 0
    right: int = 0
    right_before: int = 0
    exits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.exits = [0] * self.stages

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.difference / self.scale if self.scale else self.difference

    @property
    def exit_rates(self) -> list[float]:
        """Share of the images that stopped at each exit."""
        return [count / max(self.n, 1) for count in self.exits]

    def percent(self, count: int) -> float:
        """A number of images in percent of those counted."""
        return round(100 * count / max(self.n, 1), 4)

    def add(self, file: tuple[Tensor, Tensor], network: tuple[Tensor, Tensor], near: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            file, network: Logits [B, K] and exits [B].
            near: Bool [B], whether the network measured a value next to a threshold.
            labels: [B].
        """
        (logits, exits), (expected, expected_exits) = file, network
        self.n += len(labels)
        same = exits == expected_exits
        self.other_exits += int((~same & ~near).sum())
        self.near_ties += int((~same & near).sum())
        self.same_class += int((logits.argmax(1) == expected.argmax(1)).sum())
        self.right += int((logits.argmax(1) == labels).sum())
        self.right_before += int((expected.argmax(1) == labels).sum())
        finite = expected[expected.isfinite()]
        self.scale = max(self.scale, float(finite.abs().max()) if len(finite) else 0.0)
        apart = (logits - expected)[same]
        apart = torch.where(logits[same].isnan() & expected[same].isnan(), torch.zeros_like(apart), apart)
        if apart.numel():
            worst = float(apart.abs().max())
            self.difference = max(self.difference, worst if worst == worst else float("inf"))
        for stage, count in enumerate(torch.bincount(exits, minlength=self.stages).tolist()):
            self.exits[stage] += count

    def with_own_preprocessing(self, file: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> Comparison:
        """The same, with the accuracy and the exits of a file that takes images as they are read.

        Args:
            batches: Images uint8 [B, H, W, C] and labels [B].
        """
        found = dataclasses.replace(self, right=0)
        for pixels, labels in batches:
            logits, exits = file(pixels)
            found.right += int((logits.argmax(1) == labels).sum())
            for stage, count in enumerate(torch.bincount(exits, minlength=self.stages).tolist()):
                found.exits[stage] += count
        return found


def check_exact(found: Comparison) -> None:
    """Refuse a float32 file that is not the network.

    Raises:
        UserError: Logits differ by more than 1e-4 of the largest one, or exits elsewhere than near a threshold.
    """
    if found.relative > MOST_DIFFERENT or found.other_exits:
        raise _differs(found, "the network in PyTorch")


def check_int8(found: Comparison) -> None:
    """Refuse an int8 file that is not its members, run one by one.

    Raises:
        UserError: Logits differ by more than 5 % of the largest one, or the exits of more than 1 % of the images.
    """
    if found.relative > MOST_DIFFERENT_INT8 or found.other_exits > MOST_OTHER_INT8 * found.n:
        raise _differs(found, "its members in int8")


def _differs(found: Comparison, what: str) -> UserError:
    return UserError(
        f"The exported file is not {what}: logits differ by {found.relative:.2g} of the largest, and "
        f"{found.other_exits} of {found.n} images exit at another stage.",
        "Nothing was written. Try another --opset, or --full; and please report it.",
    )


def compare(
    file: Run, after_each: Callable[[Tensor], Tensor], gate: Gate | None, batches: Iterable[tuple[Tensor, Tensor]]
) -> Comparison:
    """Run a file and the network over a split.

    Args:
        file: Images [B, C, H, W] to logits [B, K] and exits [B].
        after_each: Images to logits after each stage, [M, B, K].
    """
    found: Comparison | None = None
    with torch.inference_mode():
        for images, labels in batches:
            logits = after_each(images)
            found = found or Comparison(len(logits))
            *network, near = gated(logits, gate)
            found.add(file(images), (network[0], network[1]), near, labels)
    assert found is not None, "a split holds an image or more"
    return found


def gated(logits: Tensor, gate: Gate | None) -> tuple[Tensor, Tensor, Tensor]:
    """What a gate makes of the logits after each stage.

    Args:
        logits: [M, B, K].

    Returns:
        Logits [B, K], exits [B], and whether a value is within 1e-5 of its threshold [B].
    """
    stages, count, _ = logits.shape
    exits = torch.full((count,), stages - 1)
    near = torch.zeros(count, dtype=torch.bool)
    for stage in reversed(range(stages - 1)):
        limit = gate.thresholds[stage] if gate is not None else None
        if gate is None or limit is None:
            continue
        earlier = list(logits[:stage]) if gate.looks_back else []
        exits[gate.stops(logits[stage], stage, earlier)] = stage
        near |= (gate.measured.value(logits[stage], *earlier) - limit).abs() <= NEAR
    return logits.gather(0, exits[None, :, None].expand(1, -1, logits.shape[2]))[0], exits, near
