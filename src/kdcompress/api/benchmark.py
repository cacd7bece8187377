"""``benchmark``: milliseconds of networks beside each other, and what their MACs promise."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from kdcompress.api.check import check_engine, check_on_cpu
from kdcompress.api.fitting import open_data, resize_input
from kdcompress.api.inputs import note_assumed, settle_input
from kdcompress.api.recorded_split import recorded_split
from kdcompress.api.reference import inherit, resolved
from kdcompress.api.timed_network import TimedImages, TimedNetwork, in_onnxruntime, in_torch, of_file
from kdcompress.data import DataSource, choose_channels
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place, start
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.engine.race import race
from kdcompress.errors import usage_error
from kdcompress.export.onnx_network import OnnxNetwork, is_onnx, open_onnx
from kdcompress.gating import expected_macs
from kdcompress.models.loading import INPUT_SIZE, Network, load_network
from kdcompress.options import BenchmarkOptions
from kdcompress.references import UNLABELLED, has_weights, needs_arch
from kdcompress.results import BenchmarkResult


def benchmark(
    options: BenchmarkOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> BenchmarkResult:
    """Time networks in one process, turn by turn on the same images, at each batch size.

    A run with a gate is timed twice: with the gate, and with every member run on every image. Images are those of the
    first network's data, so that exit rates are real.

    Args:
        options: All options at once; else give them by name (the fields of :class:`BenchmarkOptions`).
        reporter: Receives notices and progress.

    Raises:
        UserError: Nothing to load, data that do not fit, or a gated network without data.

    Example:
        >>> kdcompress.benchmark(networks=["runs/teacher", "runs/gated"]).networks[1]["time_ratio"]
    """
    options = options or BenchmarkOptions.resolve(given)
    sizes = options.batch_sizes
    _check(options)
    references = resolved(options.networks, options.arch)
    files = [each for each in references if is_onnx(each)]
    if files:
        remedy = "Leave it out; the runs beside it are then timed on the CPU, too."
        check_on_cpu(options.device, f"an exported file runs on the CPU ({files[0]})", remedy)
    device = "cpu" if files or options.engine == "onnxruntime" else options.device
    place = start(device, "fp32" if options.precision == "auto" else options.precision, options.patience)
    if place.world > 1:
        raise usage_error("benchmark runs in one process.", "Start it without torchrun.")
    began = time.perf_counter()
    reporter = reporter or Silent()
    if options.threads is None:
        take_free_cores(place, reporter)
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        networks, options, source = _opened(options, references, place, reporter)
        rows = _rows(networks, TimedImages(source, options, place, reporter.note), sizes, place, reporter)
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return BenchmarkResult(
        command="benchmark",
        run=None,
        seconds=round(time.perf_counter() - began, 3),
        data=source.spec if source is not None else None,
        split=options.split if source is not None else None,
        hardware=place.describe(),
        device=str(place.device),
        threads=threads,
        networks=rows,
    )


def _check(options: BenchmarkOptions) -> None:
    """Before anything is loaded.

    Raises:
        UserError: No networks, standard input named twice, another number of specs than of checkpoints, or no extra.
    """
    if not options.networks:
        raise usage_error("No networks were named.", "Name runs or .onnx files, e.g. kdcompress benchmark TEACHER RUN.")
    check_engine(options)


def _opened(
    options: BenchmarkOptions, references: list[str], place: Place, reporter: Reporter
) -> tuple[list[TimedNetwork], BenchmarkOptions, DataSource | None]:
    """The networks, and the images of the first one that names data, with its options."""
    specs, loaded = iter(options.arch), list[Network | OnnxNetwork]()
    for each in references:
        if is_onnx(each):
            loaded.append(open_onnx(each, torch.get_num_threads()))
        else:
            arch = next(specs) if needs_arch(each) else None
            # time does not depend on the weights, so those of an architecture need not be downloaded
            loaded.append(load_network(each, arch, weights=has_weights(each), note=reporter.note))
    for network in loaded:
        if options.data is None and network.record.get("options", {}).get("data"):
            options = inherit(options, network.record)
    source = open_data(options, _divided_by(loaded, options), is_teacher=True) if options.data is not None else None
    timed = [each for network in loaded for each in _timed(network, source, options, place, reporter)]
    if source is None and any(network.gated is not None for network in timed):
        raise usage_error("A gated network is timed on real images, and no data are named.", "Add --data.")
    if source is None:
        reporter.note("Notice: no data are named, so the images are random.")
    return timed, options, source


def _divided_by(loaded: Sequence[Network | OnnxNetwork], options: BenchmarkOptions) -> Network | None:
    """The network whose run divided the images; of images without labels, any that answers them."""
    networks, spec = [each for each in loaded if isinstance(each, Network)], str(options.data)
    runs = [each for each in networks if recorded_split(each, spec) is not None]
    return next(iter(runs or (networks if spec.startswith(UNLABELLED) else [])), None)


def _timed(
    network: Network | OnnxNetwork,
    source: DataSource | None,
    options: BenchmarkOptions,
    place: Place,
    reporter: Reporter,
) -> list[TimedNetwork]:
    if isinstance(network, Network):
        if not has_weights(network.reference):
            network.assumed = frozenset({INPUT_SIZE})
        resize_input(network, options)
        if source is not None:
            settle_input(network, source, options, reporter.note, "--arch")
        elif options.input_size is None:
            note_assumed(network, reporter.note, "--arch")
    if source is not None and (network.record.get("data_fingerprint") != source.fingerprint or options.input_size):
        _check_same_channels(network, choose_channels(source, options))
    if isinstance(network, OnnxNetwork):
        return [of_file(network)]
    if options.engine == "torch":
        return in_torch(network, place)
    return in_onnxruntime(network, torch.get_num_threads(), reporter.note)


def _check_same_channels(network: Network | OnnxNetwork, channels: int) -> None:
    """Refuse a network that takes other images than these; one that was trained on them converts them itself.

    Raises:
        UserError: It takes another number of channels.
    """
    own, name = network.prep.channels, network.reference
    if own != channels:
        remedy = f"Name {name},in_chans={channels}" if not has_weights(name) else "Benchmark it by itself"
        problem = f"All networks get the same images: these have {channels} channel(s), and {name} takes {own}."
        raise usage_error(problem, f"{remedy}, or give other --data.")


def _rows(
    networks: list[TimedNetwork], images: TimedImages, sizes: list[int], place: Place, reporter: Reporter
) -> list[dict[str, Any]]:
    """One row for each batch size and network."""
    rows = []
    for size in sizes:
        reporter.note(f"Timing {len(networks)} networks on {size} image{'s' * (size > 1)} at a time.")
        batches = [images.batches(network, size) for network in networks]
        times = race([network.forward for network in networks], batches, place)
        costs = [
            expected_macs(own.rates(len(network.macs)), network.macs)
            for network, own in zip(networks, times, strict=True)
        ]
        for network, own, macs in zip(networks, times, costs, strict=True):
            gated = network.gated
            rows.append(
                {
                    "network": network.name,
                    "gated": gated,
                    "engine": network.engine,
                    "precision": network.precision,
                    "batch_size": size,
                    "mean_ms": round(own.mean_ms, 4),
                    "p50_ms": round(own.percentile_ms(50), 4),
                    "p95_ms": round(own.percentile_ms(95), 4),
                    "images_per_second": round(own.images_per_second, 1),
                    "time_ratio": round(own.over(times[0]), 4),
                    "macs_ratio": round(macs / costs[0], 4),
                    "macs": round(macs, 1),
                    "exit_rates": [round(rate, 4) for rate in own.rates(len(network.macs))] if gated else None,
                }
            )
    return rows
