"""How long a plan takes photos to be read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import Data, Preprocess, load_source, prepared
from kdcompress.options import DataOptions


def test_photos_take_time_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for 12-megapixel photos was made as if they were in memory, and a budget of minutes took hours."""
    for name in "abc":
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    read = prepared.read_image

    def slow(*given: Any) -> Any:
        time.sleep(0.02)
        return read(*given)

    monkeypatch.setattr(prepared, "read_image", slow)

    def seconds(**given: Any) -> float:
        options = DataOptions(data=str(tmp_path), workers=2, **given)
        prep = Preprocess((32, 32), 3, (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)
        return Data(load_source(str(tmp_path)), prep, options, torch.device("cpu")).seconds_to_read()

    assert seconds(loading="stream") >= 0.01, "by two workers"
    assert seconds(loading="memory") == 0.0
