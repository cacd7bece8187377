"""Search space of res-students: families of architectures, each in several depths and widths (our choice)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

SMALL_SIDE = 64  # pixels; larger images need networks that shrink them first
MOST_SECOND = 0.75  # of the teacher's MACs: a dearer second member of a pair is hardly cheaper than the teacher
LEAST = 1 / 20  # of the budget: a smaller network hardly changes the sum
WIDTHS = (0.25, 0.375, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4)  # whole multiples of two channels where there are 16
LARGE_WIDTHS = (0.25, 0.375, 0.5, 0.75, 1)
RESNET_DEPTHS = {"1": (1, 1, 1, 1), "2": (2, 2, 2, 2), "3": (3, 4, 6, 3)}
CONVNEXT_DEPTHS = {"1": (1, 1, 3, 1), "2": (2, 2, 6, 2), "3": (3, 3, 9, 3)}
# timm fixes width and depth of these by name
NAMED = {
    ("lcnet", "lcnet"): ("lcnet_035", "lcnet_050", "lcnet_075", "lcnet_100", "lcnet_150"),
    ("mobilenetv3", "small"): ("mobilenetv3_small_050", "mobilenetv3_small_075", "mobilenetv3_small_100"),
    ("mobilenetv3", "large"): ("mobilenetv3_large_075", "mobilenetv3_large_100"),
    ("mobilenetv2", "1"): ("mobilenetv2_035", "mobilenetv2_050", "mobilenetv2_075", "mobilenetv2_100"),
    ("mobilenetv2", "deeper"): ("mobilenetv2_110d", "mobilenetv2_120d"),
    ("efficientnet", "tinynet"): ("tinynet_e", "tinynet_d", "tinynet_c", "tinynet_b", "tinynet_a"),
}
# only with timm's weights, where the other families are too cheap for the budget
NAMED_LARGE = {
    ("convnext", "small"): ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano"),
    ("convnext", "large"): ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
}


@dataclass(frozen=True)
class Series:
    """One depth of a family, as specs from narrow to wide."""

    family: str
    depth: str
    specs: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """An architecture and its MACs for one image."""

    family: str
    depth: str
    spec: str
    macs: int


def series_for(size: tuple[int, int]) -> list[Series]:
    """Series for images (H, W): our CIFAR networks up to 64 pixels a side, timm's for larger ones."""
    return list(_small() if max(size) <= SMALL_SIDE else _large())


def with_weights(size: tuple[int, int]) -> list[Series]:
    """Series for images (H, W) of architectures that timm has pretrained weights of; none for small images."""
    from timm.models import is_model_pretrained

    if max(size) <= SMALL_SIDE:
        return []
    more = (Series(family, depth, names) for (family, depth), names in NAMED_LARGE.items())
    trained = (
        Series(one.family, one.depth, tuple(spec for spec in one.specs if is_model_pretrained(spec)))
        for one in (*_large(), *more)
    )
    return [one for one in trained if one.specs]


def affordable(series: Iterable[Series], macs_of: Callable[[str], int], most: float) -> list[Candidate]:
    """Candidates of at most ``most`` MACs; those below a twentieth of it are left out unless there are no others.

    Args:
        macs_of: MACs of a spec. They grow along a series, so counting stops at the first that is too expensive.
    """
    candidates = []
    for one in series:
        for spec in one.specs:
            macs = macs_of(spec)
            if macs > most:
                break
            candidates.append(Candidate(one.family, one.depth, spec, macs))
    return [candidate for candidate in candidates if candidate.macs >= LEAST * most] or candidates


def cheapest(series: Iterable[Series], macs_of: Callable[[str], int]) -> str:
    """The spec with the fewest MACs."""
    return min((one.specs[0] for one in series), key=macs_of)


def draw(trial: optuna.Trial, space: list[Candidate]) -> Candidate:
    """Sample family, depth and width; the width is relative: 0 is the narrowest affordable candidate, 1 the widest."""
    family = trial.suggest_categorical("family", _unique(one.family for one in space))
    depths = _unique(one.depth for one in space if one.family == family)
    depth = trial.suggest_categorical(f"depth of {family}", depths)
    widths = [one for one in space if (one.family, one.depth) == (family, depth)]
    return widths[min(int(trial.suggest_float("width", 0, 1) * len(widths)), len(widths) - 1)]


def parameters(candidate: Candidate, space: list[Candidate]) -> dict[str, Any]:
    """Parameters of a trial for which :func:`draw` gives this candidate."""
    widths = [one for one in space if (one.family, one.depth) == (candidate.family, candidate.depth)]
    width = (widths.index(candidate) + 0.5) / len(widths)
    return {"family": candidate.family, f"depth of {candidate.family}": candidate.depth, "width": width}


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _small() -> Iterator[Series]:
    for depth in (8, 14, 20, 32, 44, 56):
        yield Series("resnet", str(depth), tuple(f"resnet{depth}_cifar,width={width}" for width in WIDTHS))
    for depth in (16, 40):
        yield Series("wrn", str(depth), tuple(f"wrn_{depth}_1_cifar,width={width}" for width in WIDTHS))


def _large() -> Iterator[Series]:
    for name, family in (("resnet18d", "resnet"), ("resnet26d", "resnet with bottlenecks")):
        for depth, layers in RESNET_DEPTHS.items():
            yield Series(family, depth, tuple(_resnet(name, layers, width) for width in LARGE_WIDTHS))
    for depth, depths in CONVNEXT_DEPTHS.items():
        specs = (f"depths={_listed(depths)},dims={_scaled((40, 80, 160, 320), width)}" for width in LARGE_WIDTHS)
        yield Series("convnext", depth, tuple(f"convnext_atto,{spec}" for spec in specs))
    for (family, depth), names in NAMED.items():
        yield Series(family, depth, names)


def _resnet(name: str, layers: tuple[int, ...], width: float) -> str:
    channels = _scaled((64, 128, 256, 512), width)
    return f"{name},layers={_listed(layers)},channels={channels},stem_width={int(32 * width)}"


def _scaled(channels: tuple[int, ...], width: float) -> str:
    return _listed(tuple(int(count * width) for count in channels))


def _listed(values: tuple[int, ...]) -> str:
    return "/".join(map(str, values))
