"""``eval`` and ``profile-flops`` of a file that ``export`` wrote: the run folder is not needed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from kdcompress.api.check import check_exported
from kdcompress.api.cost import expected, gated_facts
from kdcompress.api.fitting import check_classes, check_images, open_data
from kdcompress.api.reference import inherit
from kdcompress.data import Data, EvalBatches, RawBatches
from kdcompress.engine.cores import take_free_cores
from kdcompress.engine.distributed import Place
from kdcompress.engine.evaluate import compare
from kdcompress.engine.latency import latency_ms
from kdcompress.engine.progress import Reporter
from kdcompress.errors import usage_error
from kdcompress.export.metadata import FileFacts
from kdcompress.export.onnx_network import open_onnx, runner
from kdcompress.gating import expected_macs
from kdcompress.models.loading import Network
from kdcompress.option_set import flag
from kdcompress.options import EvalOptions, ProfileFlopsOptions
from kdcompress.results import EvalResult, ProfileResult

PASSES = 2


def evaluate_file(options: EvalOptions, reporter: Reporter, run: Network | None = None) -> EvalResult:
    """Score an exported file by ONNX Runtime, on the CPU.

    Args:
        options: Those of ``eval``; ``run`` is the file.
        run: The network that it was exported from, if it is there: its run knows how the images were divided.

    Raises:
        UserError: As :func:`~kdcompress.export.onnx_network.open_onnx`; no data are named, or they do not fit.
    """
    began, place = time.perf_counter(), Place(torch.device("cpu"), "fp32")
    take_free_cores(place, reporter)
    network = open_onnx(options.run, torch.get_num_threads())
    facts = network.facts
    own = ("score_teacher",) if options.score_teacher else ()
    check_exported(options, "arch", "weights_key", "input_size", "plot", *own)
    options = inherit(options, network.record)
    if run is not None:  # the file names no folder of the machine that it was made on
        options = inherit(options, run.record)
    if options.data is None:
        raise usage_error(f"{options.run} names no data.", "Say which to score it on: --data.")
    source = open_data(options, run, classes=network.class_names)
    check_classes(network, source, "file")
    check_images(network, source, options, options.split, "file")
    if run is None and facts["data_fingerprint"] not in (None, source.fingerprint, source.former):
        reporter.note(
            f"Notice: {source.spec} is not what {network.path.name} was made from, or has changed since: its training "
            f"images may be in the {options.split} split."
        )
    data = Data(source, network.prep, options, place.device, note=reporter.note)
    split = data.evaluation(options.split, options.batch_size)
    batches: EvalBatches | RawBatches = split
    if facts["preprocess"]:
        images = source.test if options.split == "test" and source.test is not None else source.train
        batches = RawBatches(images, split.images.ids, network.prep.channels, options.batch_size)
    reporter.note(f"Scoring {network.path.name} on the {options.split} split of {source.spec}.")
    answer, macs = runner(network.session), network.stage_macs
    gated = facts["gate"] is not None

    def forward(images: Tensor) -> Any:
        return answer(images) if gated else answer(images)[0]

    scores = compare([forward], batches, place, passes=PASSES, exits=[len(macs) if gated else 0])[0]
    measured = gated_facts({**facts["gate"]}, scores, macs, _teacher(facts)) if facts["gate"] is not None else {}
    return EvalResult(
        command="eval",
        run=None,
        seconds=round(time.perf_counter() - began, 3),
        data=source.spec,
        split=options.split,
        **scores.rounded(),
        ece=round(scores.ece, 4),
        bytes=network.path.stat().st_size,
        latency_ms=None if facts["preprocess"] else latency_ms(forward, split, place, torch.contiguous_format),
        images_per_second=round(scores.images_per_second, 1),
        hardware=place.describe(),
        device="cpu",
        precision=facts["precision"],
        **measured,
        **_network_facts(facts, str(network.path)),
    )


def profile_file(options: ProfileFlopsOptions) -> ProfileResult:
    """What an exported file says that its network costs.

    Raises:
        UserError: As :func:`~kdcompress.export.onnx_network.open_onnx`; an option that needs the network itself.
    """
    began = time.perf_counter()
    for name in options.changed():
        if name != "model":
            problem = f"{flag(name)} needs the network, and {options.model} is an exported file."
            raise usage_error(problem, "Leave it out, or give the run that it was exported from.")
    network = open_onnx(options.model, 1)
    facts, rates = network.facts, network.facts["exit_rates"]
    cost = expected(expected_macs(rates, network.stage_macs), _teacher(facts)) if rates and facts["gate"] else {}
    return ProfileResult(
        command="profile-flops",
        run=None,
        seconds=round(time.perf_counter() - began, 3),
        exit_rates=rates,
        **cost,
        **_network_facts(facts, str(network.path)),
    )


def _teacher(facts: FileFacts) -> dict[str, Any] | None:
    return {"macs": facts["teacher_macs"]} if facts["teacher_macs"] else None


def _network_facts(facts: FileFacts, file: str) -> dict[str, Any]:
    """Keyword arguments of :class:`kdcompress.results.NetworkFacts`."""
    macs, teacher = facts["macs"], facts["teacher_macs"]
    return {
        **{key: facts[key] for key in ("architecture", "num_classes", "input_size", "params", "members")},
        "macs": macs,
        "flops": 2 * macs,
        "teacher_macs": teacher,
        "macs_ratio": round(macs / teacher, 6) if teacher else None,
        "file": file,
    }
