"""From a model spec to a network with fresh (or timm's pretrained) weights."""

from __future__ import annotations

import ast
import contextlib
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, cast

import timm
from timm.layers import to_2tuple
from torch import nn

from kdcompress.data.preprocess import CENTER, parse_size
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.models.hub import Connection, brief_downloads, elsewhere
from kdcompress.models.outputs import Note, return_logits
from kdcompress.schema import MAX_CROP, MIN_STD
from kdcompress.trust import PREFIX, import_callable

# arguments of timm.create_model that load files; a folder from somebody else must not choose which
NOT_OURS = frozenset(("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"))
CLASSIFIER_STD = 0.01  # of new classes on pretrained features
MATCHES = ("name", "order")
WEIGHTS_KEY = "weights_key"
PREPROCESSING = ("mean", "std", "input_size", "interpolation", "crop_pct", "crop_mode")
CHOICES = {
    "interpolation": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "crop_mode": (CENTER, "squash", "border"),
    "match_by": MATCHES,
}


@dataclass(frozen=True)
class ModelSpec:
    """``NAME[,key=value…]``: an architecture, its arguments, and how its input is prepared.

    Values are Python literals (numbers, ``True``, ``None``), else text; ``a/b/c`` is a tuple. The keys ``mean``,
    ``std``, ``input_size``, ``interpolation``, ``crop_pct`` and ``crop_mode`` describe the input, all others go to the
    constructor but two that describe a checkpoint file: ``match_by`` says how its tensors are matched to the network's
    (``name`` or ``order``), ``weights_key`` is the path with dots to one of several sets of weights in it.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    match_by: str = MATCHES[0]
    weights_key: str | None = None

    def __str__(self) -> str:
        """The architecture and its arguments as a user writes them."""
        return ",".join([self.name, *(f"{key}={_text(value)}" for key, value in self.args.items())])

    @property
    def is_code(self) -> bool:
        """Whether it names a function, ``py:module:function``, in place of an architecture."""
        return self.name.startswith(PREFIX)

    @property
    def untagged(self) -> str:
        """The name without its tag, which names pretrained weights: once trained, a network no longer has those."""
        return self.name if self.is_code else self.name.split(".")[0]

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read a spec.

        Raises:
            UserError: A part that is not ``key=value``.
        """
        name, *parts = text.split(",")
        args: dict[str, Any] = {}
        preprocessing: dict[str, Any] = {}
        match_by = MATCHES[0]
        weights_key = None
        for part in parts:
            key, equals, value = part.partition("=")
            key = key.strip()
            if not equals or not key.isidentifier():
                raise usage_error(f"{part!r} in the model spec {text!r} is not key=value.", "Write NAME,key=value,…")
            if key == "input_size":
                preprocessing[key] = parse_size(value.strip(), 3)
            elif key in ("mean", "std"):
                preprocessing[key] = _numbers(part, value)
            elif key in CHOICES:
                chosen = value.strip()
                if chosen not in CHOICES[key]:
                    raise usage_error(
                        f"{part!r} in the model spec is unknown.", f"Write one of {', '.join(CHOICES[key])}."
                    )
                if key == "match_by":
                    match_by = chosen
                else:
                    preprocessing[key] = chosen
            elif key == "crop_pct":
                preprocessing[key] = _literal(value)
                if not isinstance(preprocessing[key], (int, float)) or not 0 < preprocessing[key] <= MAX_CROP:
                    raise usage_error(f"{part!r} in the model spec is no share.", "Write one like crop_pct=0.875.")
            elif key == WEIGHTS_KEY:
                weights_key = value.strip()
            else:
                args[key] = _literal(value)
        return cls(name.strip(), args, preprocessing, match_by, weights_key)


def build(
    spec: ModelSpec,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    size: tuple[int, int] | None = None,
    pretrained: bool = False,
    note: Note | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a network.

    Args:
        num_classes, in_chans: The architecture's own where None.
        size: (H, W) it will see; matters to architectures of a fixed input size.
        note: Receives what was assumed about the output of a network of the user's own.

    Returns:
        The network, whose ``pretrained_cfg`` describes its input, and the arguments that rebuild it.

    Raises:
        UserError: An unknown architecture, arguments it does not take, or weights that cannot be had.
    """
    if odd := sorted(spec.args.keys() & NOT_OURS):
        remedy = "Give weights as a file, with the spec as --arch; leave out the location of weights."
        raise usage_error(f"{odd[0]} is not a key of a model spec.", remedy)
    wanted = {"num_classes": num_classes, "in_chans": in_chans}
    args = {**{key: value for key, value in wanted.items() if value is not None}, **spec.args}
    if spec.is_code:
        model = _from_callable(spec.name, args, note)
    else:
        defaults = default_config(spec.name)
        if size is not None and defaults.get("fixed_input_size") and tuple(defaults["input_size"][1:]) != size:
            args.setdefault("img_size", size)
        if "img_size" in args:
            size = to_2tuple(args["img_size"])
        model = _from_timm(spec, args, pretrained)
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    built = config.get("input_size", (3, 224, 224))[0]  # channels, whatever the spec says of the input
    config.update({key: value for key, value in spec.preprocessing.items() if value is not None})
    channels = args.get("in_chans") or (config.get("input_size", (built,))[0] if spec.is_code else built)
    for key in ("mean", "std"):
        if (count := len(spec.preprocessing.get(key) or (0.0,))) not in (1, 3, channels):
            raise usage_error(
                f"{key} has {count} numbers for {channels} channels.", "Write one for each, or one for all."
            )
    height, width = size or config.get("input_size", (3, 224, 224))[1:]
    config.update(input_size=(channels, height, width), num_classes=args.get("num_classes", config.get("num_classes")))
    config.pop("test_input_size", None)
    model.pretrained_cfg = config  # type: ignore[assignment]
    args.pop("num_classes", None)
    return model, args


def default_config(name: str) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` of an architecture, as a dict.

    Raises:
        UserError: There is no such architecture; the nearest name is offered.
    """
    from timm.models import get_pretrained_cfg, is_model

    base = name.split(".")[0]
    if "/" in name or ":" in name or not is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]}? " if near else ""
        raise usage_error(
            f"There is no model, run or folder {name!r}.", f"{remedy}Any name of timm.list_models() will do."
        )
    config = get_pretrained_cfg(name, allow_unregistered=True)
    return config.to_dict() if config is not None else {"input_size": (3, 224, 224)}


def config_of(model: nn.Module) -> dict[str, Any]:
    """A model's ``pretrained_cfg``, timm's description of its input and classes; the dict itself, not a copy."""
    return cast(dict[str, Any], model.pretrained_cfg)


def shrink_classifier(model: nn.Module) -> None:
    """Draw a new last layer of pretrained features with a small standard deviation (our choice: 0.01), and no bias.

    timm draws that of an EfficientNet with 0.18: gradients through it destroy the features within a few steps. A
    network that does not say which layer it is stays as it is.
    """
    for layer in classifiers(model):
        if isinstance(getattr(layer, "weight", None), nn.Parameter):
            nn.init.normal_(layer.weight, std=CLASSIFIER_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_classifier(model: nn.Module) -> None:
    """Set the last layer to zero, so that a sum with this network's logits starts unchanged.

    Raises:
        UserError: The network does not say which layer that is.
    """
    for layer in classifiers(model):
        if not isinstance(getattr(layer, "weight", None), nn.Parameter):
            raise UserError(
                f"{type(model).__name__} has no classifier that could start at zero.",
                "Use an architecture with get_classifier(), as all of timm's have.",
            )
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def classifiers(model: nn.Module) -> list[Any]:
    """The last layers of a network, as far as it says which they are; several where several heads vote."""
    layers = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    return list(layers) if isinstance(layers, (tuple, list)) else [layers]


def _from_timm(spec: ModelSpec, args: dict[str, Any], pretrained: bool) -> nn.Module:
    download = brief_downloads() if pretrained else contextlib.nullcontext(Connection())
    try:
        with download as hub:
            return timm.create_model(spec.name, pretrained=pretrained, **args)
    except UserError:  # a composite of ours, that cannot make one of its parts
        raise
    except TypeError as error:
        raise usage_error(
            f"{spec.name} cannot be made with {spec.args}: {error}",
            "Check the keys of the spec. What a command has made is given as its run folder.",
        ) from error
    except Exception as error:
        first = first_line(error)
        if pretrained and not timm.is_model_pretrained(spec.name):
            remedy = "Leave out --pretrained, or choose one of timm.list_pretrained()."
            raise usage_error(f"There are no pretrained weights of {spec.name}.", remedy) from error
        if pretrained:
            repository = default_config(spec.name).get("hf_hub_id") or "the weights"
            problem = f"The pretrained weights of {spec.name} cannot be loaded: {hub.problem or first}"
            remedy = f"Check the connection, or {elsewhere(repository)}."
            raise UserError(f"{problem.rstrip('.')}.", remedy) from error
        raise usage_error(
            f"{spec.name} cannot be made: {first}", "Check the keys of the spec and --input-size."
        ) from error


def _from_callable(name: str, args: dict[str, Any], note: Note | None) -> nn.Module:
    function = import_callable(name)
    try:
        model = function(**args)
    except TypeError as error:
        remedy = "It is called with num_classes, in_chans and the keys of the spec."
        if "num_classes" not in args:
            remedy = f"A trained network is made from the keys of its spec alone: {name},num_classes=10,in_chans=3."
        raise usage_error(f"{name} cannot be called: {error}", remedy) from error
    except UserError:
        raise
    except Exception as error:
        problem = f"{name} makes no network: {type(error).__name__}: {first_line(error)}"
        raise UserError(problem, "Mend that function.") from error
    if not isinstance(model, nn.Module):
        raise usage_error(f"{name} returned {type(model).__name__}.", "Return a torch.nn.Module.")
    return_logits(model, name, args.get("num_classes"), note)
    return model


def _numbers(part: str, value: str) -> tuple[float, ...]:
    parsed = _literal(value)
    numbers = parsed if isinstance(parsed, tuple) else (parsed,)
    least = MIN_STD if part.strip().startswith("std") else -math.inf
    if not all(isinstance(number, (int, float)) and math.isfinite(number) and number >= least for number in numbers):
        remedy = "Write one, or one per channel: 0.5/0.4/0.3."
        raise usage_error(f"{part!r} in the model spec is not a number, or out of range.", remedy)
    if max(numbers) > 1:
        remedy = "They are of pixels in [0, 1]: divide those of 0 to 255 by 255."
        raise usage_error(f"{part!r} in the model spec is above 1.", remedy)
    return numbers


def _text(value: Any) -> str:
    """What :func:`_literal` reads as this value."""
    return "/".join(map(_text, value)) if isinstance(value, (tuple, list)) else str(value)


def _literal(text: str) -> Any:
    text = text.strip()
    if "/" in text:
        return tuple(_literal(part) for part in text.split("/"))
    try:
        return ast.literal_eval(text[:1].upper() + text[1:] if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        return text
