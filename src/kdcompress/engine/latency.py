"""How long a network takes for one image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdcompress.data import EvalBatches, spread
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import timed

RUNS, WARM_UP, SECONDS = 50, 5, 5.0  # our choice


def latency_ms(
    forward: Callable[[Any], Any],
    batches: EvalBatches,
    place: Place,
    memory_format: torch.memory_format = torch.channels_last,
) -> dict[str, float]:
    """Milliseconds for a batch of one image: median (``p50``) and 95th percentile (``p95``).

    Images are spread over the split, as a gated network takes longer for some than for others. The host waits for the
    device after each of up to 50 images; a slow network stops after 5 seconds, but not before 5 images.
    """
    positions = spread(len(batches.images.ids), RUNS)
    images = next(iter(batches.load([positions])))[0]
    singles = [images[i : i + 1].contiguous(memory_format=memory_format) for i in range(len(images))]
    times: list[float] = []
    with torch.inference_mode(), place.autocast():
        for image in itertools.islice(itertools.cycle(singles), WARM_UP):
            forward(image)
        for image in itertools.islice(itertools.cycle(singles), RUNS):
            times.append(timed(forward, image, place)[1])
            if len(times) >= WARM_UP and sum(times) > SECONDS:
                break
    p50, p95 = np.percentile(times, [50, 95])
    return {"p50": round(1000 * float(p50), 3), "p95": round(1000 * float(p95), 3)}
