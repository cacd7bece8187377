"""``export``: a network as one ONNX file, verified against PyTorch."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcompress.api.calibration_images import CalibrationImages
from kdcompress.api.cost import expected, facts, member_profiles
from kdcompress.api.exported_members import exported
from kdcompress.api.fitting import resize_input
from kdcompress.api.onnx_file import check_out, file_facts, free_name, write
from kdcompress.api.quantized import quantized
from kdcompress.api.reference import inherit, resolve
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import usage_error
from kdcompress.export.compose import Cascade, compose, serialized
from kdcompress.export.onnx_network import check_extra, member_by_member, new_session, runner
from kdcompress.export.preprocess import INPUT, check_pixels, check_preprocess, transform_model
from kdcompress.export.verify import Comparison, check_exact, check_int8, compare
from kdcompress.gating import expected_macs
from kdcompress.models.loading import Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import ExportOptions
from kdcompress.results import ExportResult

if TYPE_CHECKING:
    import onnx

COMPARED = 5000  # images, at most
TRANSFORMED = 256  # of which pixels are compared
NOTABLE_LOSS = 1.0  # points of top-1, worth a notice


def export_network(
    options: ExportOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> ExportResult:
    """Write a network as one ONNX file; a gated cascade runs later members only on the images that need them.

    The file is verified against PyTorch on calibration images, and kept only if both agree.

    Args:
        options: All options at once; else give them by name (the fields of :class:`ExportOptions`).
        reporter: Receives progress and notices.

    Raises:
        UserError: Packages are missing, the file exists or cannot be written, there are no calibration images where
            they are needed, the network cannot be exported, or the file differs from it.

    Example:
        >>> kdcompress.export_network(run="runs/gated").file
        '…/runs/gated.onnx'
    """
    options = options or ExportOptions.resolve(given)
    check_extra("export", "onnx", "onnxscript", "onnxruntime")
    if options.out is not None:
        check_out(Path(options.out))
    reference, began = resolve(options.run), time.perf_counter()
    reporter = reporter or Silent()
    take_free_cores(Place(torch.device("cpu"), "fp32"), reporter)
    network = load_network(reference, options.arch, key=options.weights_key, note=reporter.note)
    needed = options.data is not None or options.preprocess or options.precision != "fp32"
    options = inherit(options, network.record)
    resize_input(network, options)
    images = CalibrationImages.of(network, options, reporter, needed=needed)
    _check_images(images, network, options)
    plain = exported(network, options.opset, full=options.full, note=reporter.note)
    cascade, promise = plain, None
    if options.precision == "int8":
        cascade, promise = quantized(plain, network, images, reporter)
    reporter.note(f"Verifying the file on {min(len(images), COMPARED)} {images}.")
    model, faithful, beside = _compared(cascade, plain, network, images, options)
    result = _result(network, options, images, cascade, beside, faithful)
    file = Path(options.out).absolute() if options.out is not None else free_name(network, options).absolute()
    write(model, file_facts(network, options, images, cascade, result), file)
    result.file, result.bytes, result.promise = str(file), file.stat().st_size, promise
    result.seconds = round(time.perf_counter() - began, 3)
    if images.source is not None and beside.percent(beside.right_before - beside.right) > NOTABLE_LOSS:
        reporter.note(f"Notice: top-1 is {result.top1} %, that of the network in fp32 {result.pytorch_top1} %.")
    return result


def _compared(
    cascade: Cascade, plain: Cascade, network: Network, images: CalibrationImages, options: ExportOptions
) -> tuple[onnx.ModelProto, Comparison, Comparison]:
    """The model, its comparison with its own members, and with the network in PyTorch and fp32.

    Args:
        plain: The members in float32, with the gate of the network.

    Raises:
        UserError: They differ.
    """
    threads = torch.get_num_threads()
    model = compose(cascade, network.input_size)
    run = runner(new_session(serialized(model), threads))
    beside = compare(run, _after_each(network), plain.gate, images.some(COMPARED))
    after_each = _after_each(network) if options.precision == "fp32" else member_by_member(cascade)
    check = check_exact if options.precision == "fp32" else check_int8
    faithful = beside
    if options.precision != "fp32":
        faithful = compare(run, after_each, cascade.gate, images.some(COMPARED))
    check(faithful)
    if cascade.gate is not None and not faithful.exit_rates[-1]:  # the last member answered none of them
        whole = compose(dataclasses.replace(cascade, gate=None), network.input_size)
        check(compare(runner(new_session(serialized(whole), threads)), after_each, None, images.some(COMPARED)))
    if options.preprocess:
        _check_transform(images, options.opset)
        model = compose(cascade, network.input_size, images.prep)
        run = runner(new_session(serialized(model), threads))
        beside = beside.with_own_preprocessing(run, images.as_read(COMPARED))
    return model, faithful, beside


def _check_images(images: CalibrationImages, network: Network, options: ExportOptions) -> None:
    """Raises:
    UserError: There are no images where some are needed, or the graph cannot preprocess them as the run does.
    """
    if options.precision == "int8" and images.source is None:
        problem = f"--precision int8 needs calibration images, and {network.reference} names no data."
        raise usage_error(problem, "Add --data.")
    if not options.preprocess:
        return
    if images.source is None:
        raise usage_error("--preprocess is verified on images, and no data are named.", "Add --data.")
    if images.source.is_raw:
        problem = f"The data {images.source.spec} are not images, so there is nothing to preprocess."
        raise usage_error(problem, "Leave out --preprocess.")
    check_preprocess(images.prep)


def _check_transform(images: CalibrationImages, opset: int) -> None:
    """Raises:
    UserError: The graph preprocesses images in another way than the run.
    """
    transform = new_session(transform_model(images.prep, opset).SerializeToString(), torch.get_num_threads())
    expected, first = torch.cat([batch for batch, _ in images.some(TRANSFORMED)]).numpy(), 0
    for pixels, _ in images.as_read(TRANSFORMED):
        (found,) = transform.run(None, {INPUT: pixels.numpy()})
        check_pixels(found, expected[first : first + len(found)], images.prep)
        first += len(found)


def _after_each(network: Network) -> Callable[[Tensor], Tensor]:
    """Images [B, C, H, W] to logits after each stage [M, B, K], by PyTorch."""
    model = network.model
    return model.forward_stages if isinstance(model, Staged) else lambda images: model(images).float()[None]


def _result(
    network: Network,
    options: ExportOptions,
    images: CalibrationImages,
    cascade: Cascade,
    beside: Comparison,
    faithful: Comparison,
) -> ExportResult:
    profiles, teacher = member_profiles(network), network.record.get("teacher")
    top1 = beside.percent(beside.right)
    measured: dict[str, Any] = {}
    if images.source is not None:
        measured = {"data": images.source.spec, "split": "calibration", "n": beside.n, "top1": top1}
        measured["pytorch_top1"] = beside.percent(beside.right_before)
        measured["agreement"] = images.source.agreement or None
    if cascade.gate is not None:
        measured |= {"measure": cascade.gate.measure, "thresholds": list(cascade.gate.thresholds)}
        if images.source is not None:
            rates = beside.exit_rates
            cost = expected_macs(rates, [found.macs for found in profiles])
            measured |= {"exit_rates": [round(rate, 6) for rate in rates], "gated_top1": top1}
            measured |= expected(cost, teacher)
    return ExportResult(
        command="export",
        run=str(network.path) if network.path else None,
        seconds=0.0,
        file="",
        bytes=0,
        format=options.format,
        precision=options.precision,
        opset=options.opset,
        preprocess=options.preprocess,
        top1_agreement=beside.percent(beside.same_class),
        largest_difference=float(f"{faithful.relative:.3g}"),
        near_ties=faithful.near_ties,
        **measured,
        **facts(network, teacher, profiles),
    )
