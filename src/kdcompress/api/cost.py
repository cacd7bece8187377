"""The cost of a network and of each of its members, as the facts that every result carries."""

from __future__ import annotations

from typing import Any

from torch import nn

from kdcompress.engine.evaluate import Scores
from kdcompress.engine.progress import Reporter
from kdcompress.flops import Profile, profile
from kdcompress.gating import expected_macs
from kdcompress.models.build import ModelSpec, config_of
from kdcompress.models.loading import Network
from kdcompress.models.residual_cascade import ResidualCascade
from kdcompress.models.staged import Staged
from kdcompress.models.student_assistant import ARCHITECTURE, StudentAssistant


def member_profiles(network: Network) -> list[Profile]:
    """One profile per stage, at the network's input size; of a single network, one.

    Never through a gate: a tracer follows one branch only.

    Raises:
        UserError: A stage cannot be traced.
    """
    return _stage_profiles(network.model, network.input_size)


def macs_of(model: nn.Module) -> int:
    """MACs for one image of the network's own input size, with every stage run."""
    return sum(cost.macs for cost in _stage_profiles(model, config_of(model)["input_size"]))


def _stage_profiles(model: nn.Module, size: tuple[int, int, int]) -> list[Profile]:
    parts = model.stages() if isinstance(model, Staged) else [model]
    return [profile(part, size) for part in parts]


def note_missed(profiles: list[Profile], name: str, reporter: Reporter) -> None:
    """Warn that MACs are too few where an operation may hide products that are not counted.

    Args:
        name: The network's, for the message.
    """
    missed = sorted({operation for each in profiles for operation in each.missed})
    if missed:
        reporter.note(f"Notice: fvcore cannot count {', '.join(missed)}; the MACs of {name} are too few.")


def expected(macs: float, teacher: dict[str, Any] | None) -> dict[str, Any]:
    """``expected_macs`` for one image, and ``expected_macs_ratio`` to the teacher's, None where that is unknown."""
    ratio = round(macs / teacher["macs"], 6) if teacher and "macs" in teacher else None
    return {"expected_macs": round(macs, 1), "expected_macs_ratio": ratio}


def gated_facts(
    gate: dict[str, Any], scores: Scores, macs: list[int], teacher: dict[str, Any] | None
) -> dict[str, Any]:
    """What a result says of a gate: its settings, exit rates, accuracy and expected cost.

    Args:
        gate: ``Gate.to_dict()``.
        scores: With the gate, and with the number of images that each exit took.
        macs: Of each member.
    """
    rates = [count / scores.n for count in scores.exits]
    cost = expected_macs(rates, macs)
    return {
        "measure": gate["measure"],
        "thresholds": gate["thresholds"],
        "exit_rates": [round(rate, 6) for rate in rates],
        "gated_top1": round(scores.top1, 4),
        "macs_speedup": round(sum(macs) / cost, 4),
        **expected(cost, teacher),
    }


def facts(network: Network, teacher: dict[str, Any] | None, profiles: list[Profile] | None = None) -> dict[str, Any]:
    """Keyword arguments of :class:`kdcompress.results.NetworkFacts`.

    Args:
        teacher: The ``teacher`` entry of ``run.json``, with its ``reference`` and ``macs``.
        profiles: The network's :func:`member_profiles`, if they are known already.

    Raises:
        UserError: A stage cannot be traced.
    """
    profiles = profiles or member_profiles(network)
    macs = sum(stage.macs for stage in profiles)
    teacher_macs = teacher.get("macs") if teacher else None
    teacher_params = teacher.get("params") if teacher else None
    params = sum(parameter.numel() for parameter in network.model.parameters())
    parts = _parts(network)
    members: list[dict[str, Any]] = [
        {"architecture": name, "params": own, "macs": stage.macs}
        for name, own, stage in zip(parts, _own_params(network.model), profiles, strict=False)
    ]
    if isinstance(network.model, ResidualCascade):
        for member, weight in list(zip(members, network.model.sum_weights, strict=True))[1:]:
            member["sum_weight"] = weight
    return {
        "architecture": spec_of({"architecture": network.architecture, "model_args": network.model_args}),
        "num_classes": network.num_classes,
        "input_size": network.input_size,
        "params": params,
        "macs": macs,
        "flops": 2 * macs,
        "teacher": teacher.get("reference") if teacher else None,
        "teacher_macs": teacher_macs,
        "macs_ratio": round(macs / teacher_macs, 6) if teacher_macs else None,
        "teacher_params": teacher_params,
        "params_ratio": round(params / teacher_params, 6) if teacher_params else None,
        "members": members or None,
        **(_separation(network, profiles) if isinstance(network.model, StudentAssistant) else {}),
    }


def _parts(network: Network) -> list[str]:
    """Specs of a network's stages; empty for a single network."""
    if isinstance(network.model, ResidualCascade):
        members = network.model_args["members"]
        return [_pair(entry) if entry["architecture"] == ARCHITECTURE else spec_of(entry) for entry in members]
    if isinstance(network.model, StudentAssistant):
        spec = spec_of(network.model_args["model"])
        return [f"{spec} x {width:g}" for width in network.model_args["widths"]]
    return []


def _own_params(model: nn.Module) -> list[int]:
    """Parameters of each stage, not counting those shared with an earlier one."""
    counts: list[int] = []
    seen: set[int] = set()
    for stage in model.stages() if isinstance(model, Staged) else []:
        own = {id(parameter): parameter.numel() for parameter in stage.parameters() if id(parameter) not in seen}
        counts.append(sum(own.values()))
        seen.update(own)
    return counts


def _pair(entry: dict[str, Any]) -> str:
    """Spec of a student and its assistant, which are one member."""
    args = entry["model_args"]
    return f"{spec_of(args['model'])} x {' + '.join(f'{width:g}' for width in args['widths'])}"


def _separation(network: Network, profiles: list[Profile]) -> dict[str, int]:
    """MACs of student, assistant, their integration, and of the model that they were split from."""
    assert isinstance(network.model, StudentAssistant)
    student, assistant = (stage.by_module["backbone"].macs for stage in profiles)
    return {
        "student_macs": student,
        "assistant_macs": assistant,
        "integration_macs": sum(stage.macs for stage in profiles) - student - assistant,
        "undivided_macs": profile(network.model.undivided(), network.input_size).macs,
    }


def spec_of(entry: dict[str, Any]) -> str:
    """``NAME[,key=value…]`` of an architecture and its arguments, without those set by the data or the members."""
    hidden = ("in_chans", "members", "gate", "img_size", "model", "widths", "features")
    args = {key: value for key, value in entry.get("model_args", {}).items() if key not in hidden}
    return str(ModelSpec(entry["architecture"], args))
