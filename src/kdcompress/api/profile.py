"""``profile-flops``: parameters and MACs of a network, counted by fvcore."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from kdcompress.api.cost import expected, facts, member_profiles, note_missed
from kdcompress.api.exported_file import profile_file
from kdcompress.api.gated import CALIBRATED
from kdcompress.api.reference import resolve
from kdcompress.data import parse_size
from kdcompress.engine.progress import Reporter, Silent
from kdcompress.errors import UserError, usage_error
from kdcompress.export.onnx_network import is_onnx
from kdcompress.flops import Profile
from kdcompress.gating import expected_macs
from kdcompress.models.build import config_of
from kdcompress.models.loading import INPUT_SIZE, Network, load_network
from kdcompress.models.staged import Staged
from kdcompress.options import ProfileFlopsOptions
from kdcompress.results import ProfileResult


def profile_flops(
    options: ProfileFlopsOptions | None = None, /, *, reporter: Reporter | None = None, **given: Any
) -> ProfileResult:
    """Parameters and MACs of any network for one image; of a cascade also by member, and as expected with its gate.

    Args:
        options: All options at once; else give them by name (the fields of :class:`ProfileFlopsOptions`).
        reporter: Gets a notice of operations that are not counted.

    Returns:
        The costs; ``macs_by_operator`` adds up to ``macs``.

    Raises:
        UserError: The network cannot be loaded, or cannot be traced at that input size.

    Example:
        >>> kdcompress.profile_flops(model="resnet50").macs
        4111512576
    """
    options = options or ProfileFlopsOptions.resolve(given)
    reference, began = resolve(options.model), time.perf_counter()  # waiting for the command before is not our time
    if is_onnx(reference):
        return profile_file(dataclasses.replace(options, model=reference))
    shape: dict[str, Any] = {"num_classes": options.num_classes} if options.num_classes else {}
    if options.input_size is not None:
        wanted, *size = parse_size(options.input_size)
        shape.update(size=tuple(size), **({"in_chans": wanted} if wanted else {}))
    note = reporter.note if reporter is not None else Silent().note
    network = load_network(reference, options.arch, weights=False, key=options.weights_key, note=note, **shape)
    known = config_of(network.model).get("num_classes")
    if options.num_classes and known and options.num_classes != known:
        problem = f"--num-classes {options.num_classes} was given, but {network.reference} has {known} classes."
        raise usage_error(problem, "Leave it out: only a model spec without num_classes takes it.")
    if options.input_size is not None:
        channels, height, width = parse_size(options.input_size, network.prep.channels)
        config_of(network.model)["input_size"] = (channels, height, width)
    elif INPUT_SIZE in network.assumed:
        height, width = network.prep.size
        note(f"Notice: {network.reference} does not record its input size; counted at {height}x{width} (--input-size).")
    profiles = member_profiles(network)
    teacher = network.record.get("teacher")
    same_size = options.input_size is None
    result = ProfileResult(
        command="profile-flops",
        run=str(network.path) if network.path else None,
        seconds=0.0,
        macs_by_operator=_added(stage.macs_by_operator for stage in profiles),
        unsupported_ops=_added(stage.unsupported_ops for stage in profiles),
        by_module=_by_module(profiles, network.model) if options.by_module else None,
        **(_gated(network, profiles, teacher) if same_size else {}),
        **facts(network, teacher if same_size else None, profiles),
    )
    result.seconds = round(time.perf_counter() - began, 3)
    if reporter is not None:
        note_missed(profiles, network.reference, reporter)
        missed = {name for stage in profiles for name in stage.missed}
        if small := [name.removeprefix("aten::") for name in result.unsupported_ops if name not in missed]:
            reporter.note(f"Not counted, as they multiply no matrices: {', '.join(small)}.")
    return result


def _gated(network: Network, profiles: list[Profile], teacher: dict[str, Any] | None) -> dict[str, Any]:
    """Expected cost with the exit rates on the calibration split."""
    rates = (network.record.get(CALIBRATED) or network.record.get("result", {})).get("exit_rates")
    if not isinstance(network.model, Staged) or network.model.gate is None or not rates:
        return {}
    if len(rates) != len(profiles):
        problem = f"{network.reference} has {len(profiles)} stages, but {len(rates)} exit rates on record."
        raise UserError(problem, "The folder is damaged; use another run.")
    macs = expected_macs(rates, [stage.macs for stage in profiles])
    return {"exit_rates": rates, **expected(macs, teacher)}


def _by_module(profiles: list[Profile], model: nn.Module) -> list[dict[str, Any]]:
    """Costs by module of the whole model; a module that several stages use has the MACs of all of them."""
    rows: dict[str, dict[str, Any]] = {}
    stages = model.stage_names() if isinstance(model, Staged) else [""]
    for stage, stage_profile in zip(stages, profiles, strict=True):
        for name, cost in stage_profile.by_module.items():
            whole = model.module_name(stage, name) if isinstance(model, Staged) else name
            row = rows.setdefault(whole, {"module": whole, "params": 0, "macs": 0})
            row["params"] = max(row["params"], cost.params)
            row["macs"] += cost.macs
    return list(rows.values())


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for stage in counts:
        for name, count in stage.items():
            total[name] = total.get(name, 0) + count
    return total
