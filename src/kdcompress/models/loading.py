"""Any reference to a trained network -> the network, ready to run.

Nothing that is loaded can run code: weights come from safetensors or from ``torch.load(weights_only=True)``. The one
exception is ``py:module:function``, which names code of the user's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from kdcompress.data.exif import upright
from kdcompress.data.preprocess import Preprocess, check_image_channels, with_channels
from kdcompress.errors import UserError, first_line, usage_error
from kdcompress.models.build import MATCHES, NOT_OURS, WEIGHTS_KEY, ModelSpec, build, config_of, default_config
from kdcompress.models.checkpoints.choosing import Note
from kdcompress.models.checkpoints.heads import classifier_tensors, shape_of
from kdcompress.models.checkpoints.names import fit
from kdcompress.models.folders import class_names, is_theirs, weights_in
from kdcompress.models.hub import Connection, brief_downloads, elsewhere
from kdcompress.models.positions import trained_size
from kdcompress.models.staged import Staged
from kdcompress.models.weights import check_finite, check_gate, fill, read_weights
from kdcompress.references import HUB, LOCAL_DIR, is_checkpoint, is_path
from kdcompress.runs import CONFIG, RECORD, WEIGHTS, RunFolder, open_run
from kdcompress.schema import Malformed, Pretrained, check

INPUT_SIZE, NORMALISATION = "input_size", "normalisation"


@dataclass
class Network:
    """A network and what is known about it.

    Attributes:
        model: In eval mode, on the CPU.
        architecture: timm's name, or ``py:module:function``.
        model_args: What rebuilds it besides the number of classes.
        reference: Finds it again from any folder.
        arch: The spec that ``reference`` needs, where it is a bare checkpoint.
        class_names: In logit order, where known.
        record: ``run.json`` of the run it comes from, else empty.
        path: The run folder, or None.
        assumed: What nobody recorded of its input, and is the architecture's default: ``input_size``,
            ``normalisation``.
        start: Entry of ``run.json`` about the trained weights that its training starts from.
        has_classifier: False where the weights have none, and that of the model is untrained.
    """

    model: nn.Module
    architecture: str
    model_args: dict[str, Any]
    reference: str
    arch: str | None = None
    class_names: tuple[str, ...] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    assumed: frozenset[str] = frozenset()
    start: dict[str, Any] | None = None
    has_classifier: bool = True

    @property
    def prep(self) -> Preprocess:
        """How its images are resized and normalised."""
        return Preprocess.of(self.model)

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From an image of any size and mode to the input of the network: float32 [C, H, W], as ``eval`` makes it.

        Raises:
            UserError: The network takes other inputs than images.
        """
        prep = self.image_prep()
        resized = prep.eval_transform()

        def transform(image: Image.Image) -> Tensor:
            pixels = torch.from_numpy(np.asarray(resized(with_channels(upright(image), prep.channels))))
            return prep.normalized(pixels[None])[0]

        return transform

    def image_prep(self) -> Preprocess:
        """``prep`` of a network that takes images.

        Raises:
            UserError: It has another number of channels.
        """
        prep = self.prep
        check_image_channels(self.reference, prep.channels)
        return prep

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes in logit order: ``class_names``, or those of ImageNet for timm's pretrained networks."""
        if self.class_names is not None:
            return self.class_names
        is_timms = str(config_of(self.model).get("hf_hub_id") or "").startswith("timm/")
        if not is_timms or self.record or self.path is not None or self.arch is not None:
            return None
        subset = infer_imagenet_subset(config_of(self.model))
        return tuple(ImageNetInfo(subset).label_descriptions()) if subset is not None else None

    @property
    def num_classes(self) -> int:
        """Raises:
        UserError: A network of the user's own that does not say.
        """
        count = config_of(self.model)["num_classes"]
        if count is None:
            remedy = f"Add it to the reference: {self.reference},num_classes=10."
            raise usage_error(f"How many classes {self.reference} has is not known.", remedy)
        return int(count)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        prep = self.prep
        return (prep.channels, *prep.size)

    def staged(self, purpose: str) -> Staged:
        """The model as one of several stages.

        Raises:
            UserError: It is a single network.
        """
        if not isinstance(self.model, Staged):
            remedy = "Make a cascade first: kdcompress distill --method reskd, then kdcompress add-res-student."
            raise UserError(f"{self.reference} is a single network ({self.architecture}), {purpose}.", remedy)
        return self.model

    def entry(self) -> dict[str, Any]:
        """What ``run.json`` keeps of it, to find it again and to notice that it has changed."""
        return {"reference": self.reference, "arch": self.arch, "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """Hash of the weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_network(
    reference: str,
    arch: str | None = None,
    *,
    weights: bool = True,
    key: str | None = None,
    note: Note | None = None,
    arch_flag: str | None = "--arch",
    headless: bool = False,
    **shape: Any,
) -> Network:
    """Load a network.

    Args:
        reference: A run folder, ``local-dir:PATH``, ``hf-hub:ORG/NAME``, a checkpoint file, or a model spec.
        arch: Model spec of a checkpoint file.
        weights: Whether a bare model spec has to come with timm's pretrained weights.
        key: Which of several sets of weights in a checkpoint file, as a path with dots.
        note: Receives what was assumed.
        arch_flag: The option that gives ``arch``, for messages; None where a run is wanted.
        headless: Whether a checkpoint file may lack the classifier.
        shape: ``num_classes``, ``in_chans`` and ``size`` (H, W) of a bare model spec without weights.

    Raises:
        UserError: Nothing there, a checkpoint that does not fit, is truncated or holds code, unknown architecture.
    """
    path = Path(reference.removeprefix(LOCAL_DIR))
    is_folder, is_file = os.path.isdir(path), os.path.isfile(path)  # unlike those of Path, they take any text
    missing = not is_file and not is_folder and (is_checkpoint(reference) or is_path(reference))
    if missing and not reference.startswith((LOCAL_DIR, HUB)) and path.suffix.lower() != ".onnx":
        raise UserError(f"There is no file or folder {reference}.", "Check the path.")
    if (arch is not None or key is not None) and not is_file:
        given = f"The architecture {arch}" if arch is not None else f"--weights-key {key}"
        what = "is a folder, which names its own" if is_folder else "names it itself, or is not a file"
        if arch is None:
            what = "is not a checkpoint file"
        raise usage_error(f"{given} was given, but {reference} {what}.", "Leave it out.")
    if reference.startswith(LOCAL_DIR) or is_folder:
        return _from_folder(path, note)
    if path.suffix.lower() == ".onnx":
        remedy = "Give the run that it was exported from; eval, predict, benchmark and profile-flops take the file."
        raise UserError(f"{reference} is an ONNX file, which can only be run.", remedy)
    if is_file:
        if arch is None and arch_flag is None:
            remedy = "Make one first: kdcompress distill TEACHER --method reskd, or kdcompress cascade NETWORK NETWORK."
            raise usage_error(f"{path} is a bare checkpoint, and this command needs a run.", remedy)
        if arch is None:
            remedy = f"Name its architecture, e.g. {arch_flag} resnet56_cifar,shortcut=A"
            raise usage_error(f"{path} is a bare checkpoint.", remedy)
        return _from_checkpoint(path, arch, key, note, headless)
    if reference.startswith(HUB):
        return _by_timm(reference)
    if is_checkpoint(reference) or is_path(reference):
        raise UserError(f"There is no file or folder {reference}.", "Check the path.")
    return _from_spec(reference, weights, shape, note)


def _from_folder(path: Path, note: Note | None) -> Network:
    run = RunFolder(path.absolute())
    theirs = is_theirs(run)
    if (
        not theirs
        and (run.path / CONFIG).is_file()
        and not (run.path / RECORD).is_file()
        and "model_args" not in run.config()
    ):
        return dataclasses.replace(_by_timm(f"local-dir:{run.path}"), path=run.path)  # not a run
    run = run if theirs else open_run(path)
    config, record = run.config(), run.record()
    architecture, args = config.get("architecture"), dict(config.get("model_args") or {})
    if not isinstance(architecture, str):
        raise UserError(f"{run.path / CONFIG} names no architecture.", "The folder is damaged; use another run.")
    pretrained = config.get("pretrained_cfg") or {}
    classes = config.get("num_classes") or pretrained.get("num_classes")
    if classes:
        args.pop("num_classes", None)  # timm repeats it there
    model = build(ModelSpec(architecture, args), num_classes=classes, note=note)[0]
    built = config_of(model)
    config_size = pretrained.get("input_size") or built["input_size"]
    if config_size[0] != built["input_size"][0]:
        problem = f"{run.path / CONFIG} has an input_size of {config_size[0]} channels, the network takes"
        raise UserError(f"{problem} {built['input_size'][0]}.", "The folder is damaged; use another run.")
    model.pretrained_cfg = {**pretrained, "input_size": config_size, "num_classes": classes}  # type: ignore[assignment]
    check_gate(model, run.path / CONFIG)
    file = weights_in(run.path) if theirs else run.path / WEIGHTS
    state = read_weights(file, note=note)
    fill(model, fit(state, model, file, note=note).state if theirs else state, file)
    return Network(model.eval(), architecture, args, str(run.path), None, class_names(config), record, run.path)


def _from_checkpoint(path: Path, arch: str, key: str | None, note: Note | None, headless: bool) -> Network:
    if key is not None:
        arch = f"{arch},{WEIGHTS_KEY}={key}"
    spec = ModelSpec.parse(arch)
    state = read_weights(path, spec.weights_key, note)
    given = spec.preprocessing.get("input_size")
    size = tuple(given[1:]) if given else trained_size(state, spec)
    assumed = _assumed(spec, size_known=size is not None or "img_size" in spec.args)
    model, args = build(spec, size=size, note=note)
    by_order = spec.match_by == "order"
    fitted = fit(state, model, path, by_order=by_order, note=note)
    wanted = {**fitted.arguments, **shape_of(fitted.state, model)}
    more = {name: value for name, value in wanted.items() if name not in spec.args}
    if more:
        spec = dataclasses.replace(spec, args={**spec.args, **more})
        model, args = build(spec, size=size, note=note)
        fitted = fit(state, model, path, by_order=by_order)
    state = fitted.state
    own = model.state_dict()
    missing = {name for name in own if name not in state and name.rpartition(".")[2] != "num_batches_tracked"}
    lacks_head = headless and bool(missing) and missing <= classifier_tensors(model)
    fill(model, {**{name: own[name] for name in missing}, **state} if lacks_head else state, path)
    return Network(
        model.eval(), spec.name, args, str(path.absolute()), arch, assumed=assumed, has_classifier=not lacks_head
    )


def _assumed(spec: ModelSpec, *, size_known: bool) -> frozenset[str]:
    """What neither the weights nor their spec record of the input."""
    given = spec.preprocessing.keys()
    unknown = {INPUT_SIZE: not size_known and INPUT_SIZE not in given, NORMALISATION: not {"mean", "std"} <= given}
    return frozenset(name for name, is_unknown in unknown.items() if is_unknown)


def _by_timm(reference: str) -> Network:
    """A model folder that others made, here or on the hub: in any of the layouts that timm knows."""
    download = brief_downloads() if reference.startswith(HUB) else contextlib.nullcontext(Connection())
    try:
        with download as hub:
            model = timm.create_model(reference, pretrained=True)
            args = _arguments(reference)
    except UserError:
        raise
    except Exception as error:
        if hub.problem is not None:
            problem = f"{reference} cannot be downloaded: {hub.problem}."
            raise UserError(problem, f"Check the connection, or {elsewhere(reference.removeprefix(HUB))}.") from error
        problem = f"{reference} cannot be loaded: {first_line(error)}"
        raise UserError(problem, "Check the name, its files and the connection.") from error
    config = config_of(model)
    try:
        check(config, Pretrained)
    except Malformed as error:
        raise UserError(f"{reference} has a config that cannot be used: {error}", "Mend its config.json.") from error
    check_gate(model, Path(reference))
    check_finite(model, Path(reference))
    return Network(model.eval(), config["architecture"], args, reference, class_names=class_names(config))


def _arguments(reference: str) -> dict[str, Any]:
    """What rebuilds the network of a model folder besides its name and number of classes."""
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path

    place = reference.removeprefix(HUB).removeprefix(LOCAL_DIR)
    load = load_model_config_from_hf if reference.startswith(HUB) else load_model_config_from_path
    _, _, args = load(place)
    return {key: value for key, value in (args or {}).items() if key != "num_classes" and key not in NOT_OURS}


def _from_spec(reference: str, weights: bool, shape: dict[str, Any], note: Note | None) -> Network:
    spec = ModelSpec.parse(reference)
    only_files = {"match_by": spec.match_by != MATCHES[0], WEIGHTS_KEY: spec.weights_key is not None}
    if key := next((name for name, is_given in only_files.items() if is_given), None):
        raise usage_error(f"{key} is for a checkpoint file, not for {spec.name}.", "Leave it out.")
    if weights and not spec.is_code:
        config = default_config(spec.name)
        if not any(config.get(key) for key in ("url", "hf_hub_id", "file")):
            remedy = f"Train it: kdcompress train-teacher --model {shlex.quote(reference)}"
            raise UserError(f"{spec.name} has no pretrained weights.", remedy)
        known, wanted = config.get("num_classes"), spec.args.get("num_classes")
        if known and wanted not in (None, known):  # timm would leave out the classifier, and go on with a random one
            remedy = (
                f"Leave num_classes out, or fine-tune it: kdcompress train-teacher --model {spec.name} --pretrained"
            )
            raise UserError(f"The weights of {spec.name} are for {known} classes, not {wanted}.", remedy)
    given = spec.preprocessing.get("input_size")
    size = given[1:] if given else None
    model, args = build(spec, pretrained=weights, note=note, **{"size": size, **shape})
    assumed: frozenset[str] = frozenset()
    describes_itself = "mean" in config_of(model) and "mean" not in spec.preprocessing  # as timm's networks do
    if spec.is_code and not describes_itself:
        assumed = _assumed(spec, size_known=bool(shape.get("size") or size or "img_size" in args))
    return Network(model.eval(), spec.name, args, reference, assumed=assumed)
