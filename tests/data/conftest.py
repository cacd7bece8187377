"""Data sets made on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from .images import MakeFolder, random_image


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A folder with train/CLASS and test/CLASS."""

    def make(
        classes: Sequence[str] = ("ant", "bee"),
        *,
        train: int = 4,
        test: int = 2,
        sizes: Sequence[tuple[int, int]] = ((12, 10),),
        mode: str = "RGB",
        suffix: str = "png",
        held_out: str = "test",
    ) -> Path:
        root = tmp_path / "photos"
        number = 0
        for split, count in (("train", train), (held_out, test)):
            for name in classes if count else ():
                (root / split / name).mkdir(parents=True)
                for i in range(count):
                    image = random_image(number, sizes[number % len(sizes)], mode)
                    image.save(root / split / name / f"{i}.{suffix}")
                    number += 1
        return root

    return make
