"""Networks as ``benchmark`` runs them: in PyTorch or ONNX Runtime, with images ready in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcompress.api.cost import member_profiles
from kdcompress.api.exported_members import OPSET, exported
from kdcompress.data import Data, DataSource, Preprocess, RawBatches, spread
from kdcompress.engine.distributed import Place
from kdcompress.engine.race import Forward
from kdcompress.errors import UserError
from kdcompress.export.compose import Cascade, compose, serialized
from kdcompress.export.onnx_network import OnnxNetwork, new_session, runner
from kdcompress.models.fold import for_inference
from kdcompress.models.loading import Network
from kdcompress.models.staged import Staged
from kdcompress.options import BenchmarkOptions

AT_ONCE = 64  # images that are read at a time
CPU = Place(torch.device("cpu"), "fp32")


@dataclass
class TimedNetwork:
    """A network that can be timed.

    Attributes:
        name: As the user gave it.
        gated: Whether its gate is on; None where it has none.
        engine: ``torch`` or ``onnxruntime``.
        precision: Of its arithmetic.
        macs: Of each stage.
        channels_last: Whether it takes its images so.
        prep: How they are made.
        takes_raw: Whether it makes them itself, from uint8 [B, H, W, C].
    """

    name: str
    gated: bool | None
    engine: str
    precision: str
    forward: Forward
    macs: list[int]
    prep: Preprocess
    channels_last: bool = False
    takes_raw: bool = False


def in_torch(network: Network, place: Place) -> list[TimedNetwork]:
    """A network as ``eval`` runs it; if it has a gate, once more with every member run on every image."""
    macs = [each.macs for each in member_profiles(network)]
    model = for_inference(network.model, place.device)

    def timed(gated: bool | None, forward: Forward) -> TimedNetwork:
        return TimedNetwork(
            network.reference, gated, "torch", place.precision, forward, macs, network.prep, channels_last=True
        )

    if not isinstance(model, Staged) or model.gate is None:
        return [timed(None, lambda images: (model(images), None))]
    return [timed(True, model.forward_gated), timed(False, lambda images: (model.forward_full(images), None))]


def in_onnxruntime(network: Network, threads: int, note: Callable[[str], None]) -> list[TimedNetwork]:
    """The same, exported in memory.

    Raises:
        UserError: It cannot be exported.
    """
    macs = [each.macs for each in member_profiles(network)]
    own = exported(network, OPSET, full=False, note=note)

    def timed(cascade: Cascade, gated: bool | None) -> TimedNetwork:
        run = runner(new_session(serialized(compose(cascade, network.input_size)), threads))
        forward = run if gated else _ungated(run)
        return TimedNetwork(network.reference, gated, "onnxruntime", "fp32", forward, macs, network.prep)

    if own.gate is None:
        return [timed(own, None)]
    return [timed(own, True), timed(dataclasses.replace(own, gate=None), False)]


def of_file(network: OnnxNetwork) -> TimedNetwork:
    """An exported file."""
    facts, run = network.facts, runner(network.session)
    gated = True if facts["gate"] is not None else None
    return TimedNetwork(
        network.reference,
        gated,
        "onnxruntime",
        facts["precision"],
        run if gated else _ungated(run),
        network.stage_macs,
        network.prep,
        takes_raw=facts["preprocess"],
    )


def _ungated(run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Forward:
    return lambda images: (run(images)[0], None)


@dataclass
class TimedImages:
    """Images of a split, or random ones, made for each network.

    Attributes:
        source: None for random images.
    """

    source: DataSource | None
    options: BenchmarkOptions
    place: Place
    note: Callable[[str], None]
    made: dict[Any, Sequence[Tensor]] = field(default_factory=dict)

    def batches(self, network: TimedNetwork, size: int) -> list[Tensor]:
        """Batches of ``size`` images; where there are fewer images, they are repeated.

        Raises:
            UserError: Images that cannot be read, or of several sizes where a batch needs one.
        """
        key = (network.prep, network.takes_raw)
        if key not in self.made:
            self.made[key] = self._images(network)
        images = self.made[key]
        count = max(1, len(images) // size)
        parts = [[images[i % len(images)] for i in range(k * size, (k + 1) * size)] for k in range(count)]
        if any(image.shape != part[0].shape for part in parts for image in part):
            problem = f"{network.name} takes images as they are, and these have several sizes."
            raise UserError(problem, "Benchmark it with --batch-size 1.", exit_code=2)
        place = self.place if network.engine == "torch" else CPU
        layout = torch.channels_last if network.channels_last else torch.contiguous_format
        return [torch.stack(part).to(place.device).contiguous(memory_format=layout) for part in parts]

    def _images(self, network: TimedNetwork) -> Sequence[Tensor]:
        prep, options, source = network.prep, self.options, self.source
        if source is None:
            generator = torch.Generator().manual_seed(0)
            if network.takes_raw:
                shape = (options.images, *prep.size, prep.channels)
                return torch.randint(256, shape, generator=generator, dtype=torch.uint8).unbind()
            return torch.randn(options.images, prep.channels, *prep.size, generator=generator).unbind()
        split = Data(source, prep, options, CPU.device, note=self.note).evaluation(options.split, AT_ONCE)
        chosen = spread(len(split.images.ids), options.images)
        if network.takes_raw:
            raw = source.test if options.split == "test" and source.test is not None else source.train
            read = iter(RawBatches(raw, split.images.ids[chosen], prep.channels, AT_ONCE))
        else:
            read = split.load([chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)])
        return [image for images, _ in read for image in images]
