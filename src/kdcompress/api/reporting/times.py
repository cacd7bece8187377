"""Milliseconds of the networks of a report: one image at a time, turn by turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kdcompress.api.timed_network import TimedImages, in_torch
from kdcompress.data import DataSource
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter
from kdcompress.engine.race import race
from kdcompress.models.loading import Network
from kdcompress.options import BenchmarkOptions, DataOptions, DeviceOptions, ReportOptions

IMAGES, SECONDS = 64, 1.0  # of each network


def milliseconds(
    networks: Sequence[Network],
    source: DataSource,
    options: ReportOptions,
    split: str,
    place: Place,
    reporter: Reporter,
) -> list[tuple[float, float | None]]:
    """Of each network for one image, on average: as it is, and of a gated one with every member run."""
    reporter.note(f"Timing {len(networks)} network{'s' * (len(networks) > 1)} on one image at a time.")
    shared = {
        field.name: getattr(options, field.name)
        for kind in (DataOptions, DeviceOptions)
        for field in dataclasses.fields(kind)
    }
    shared |= {"loading": "stream", "workers": 0}  # few of the images are read
    images = TimedImages(source, BenchmarkOptions(**shared, images=IMAGES, split=split), place, reporter.note)
    entries = [in_torch(network, place) for network in networks]
    timed = [each for own in entries for each in own]
    batches = [images.batches(each, 1) for each in timed]
    times = iter(race([each.forward for each in timed], batches, place, seconds=SECONDS))
    found = [[next(times).mean_ms for _ in own] for own in entries]
    return [(round(own[0], 4), round(own[1], 4) if len(own) > 1 else None) for own in found]
