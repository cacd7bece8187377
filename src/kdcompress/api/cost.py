"""What a network costs, members by themselves, as the facts that every result carries."""

from __future__ import annotations

from typing import Any

from kdcompress.engine.progress import Reporter
from kdcompress.flops import Profile, profile
from kdcompress.models.loading import Network
from kdcompress.models.residual_cascade import ResidualCascade


def member_profiles(network: Network) -> list[Profile]:
    """One profile per member; of a single network, its own. Never through a gate: a tracer follows one branch only."""
    model = network.model
    parts = list(model.members) if isinstance(model, ResidualCascade) else [model]
    return [profile(part, network.input_size) for part in parts]


def note_missed(profiles: list[Profile], name: str, reporter: Reporter) -> None:
    """Say so where the MACs that follow are too few."""
    missed = sorted({operation for found in profiles for operation in found.missed})
    if missed:
        reporter.note(f"Notice: fvcore cannot count {', '.join(missed)}; the MACs of {name} are too few.")


def facts(network: Network, teacher: dict[str, Any] | None, profiles: list[Profile] | None = None) -> dict[str, Any]:
    """Keyword arguments of :class:`kdcompress.results.NetworkFacts`.

    Args:
        teacher: The ``teacher`` entry of ``run.json``, with its ``reference`` and ``macs``.
    """
    profiles = profiles or member_profiles(network)
    macs = sum(found.macs for found in profiles)
    teacher_macs = teacher.get("macs") if teacher else None
    members = None
    if isinstance(network.model, ResidualCascade):
        entries = network.model_args["members"]
        members = [
            {"architecture": spec_of(entry), "params": found.params, "macs": found.macs}
            for entry, found in zip(entries, profiles, strict=True)
        ]
    return {
        "architecture": spec_of({"architecture": network.architecture, "model_args": network.model_args}),
        "num_classes": network.num_classes,
        "input_size": network.input_size,
        "params": sum(found.params for found in profiles),
        "macs": macs,
        "flops": 2 * macs,
        "teacher": teacher.get("reference") if teacher else None,
        "teacher_macs": teacher_macs,
        "macs_ratio": round(macs / teacher_macs, 6) if teacher_macs else None,
        "members": members,
    }


def spec_of(entry: dict[str, Any]) -> str:
    """``NAME[,key=value…]`` of an architecture and its arguments, without those that follow from data or members."""
    hidden = ("in_chans", "members", "gate", "img_size")
    args = [f"{key}={value}" for key, value in entry.get("model_args", {}).items() if key not in hidden]
    return ",".join([entry["architecture"], *args])
