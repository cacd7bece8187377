"""The plan of a training: its options, with the defaults that depend on the data and on the network filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from timm.optim import list_optimizers
from torch import nn

from kdcompress.engine.muon import is_affordable
from kdcompress.engine.rates import ADAPTIVE, BASE_BATCH, rate_of
from kdcompress.errors import usage_error
from kdcompress.options import TrainingOptions

SMALLEST_BATCH = 16
MIN_STEPS = 40  # an epoch
FINE_TUNING_STEPS = 400  # in all: fewer images per step, where photos and epochs are few
LAYER_DECAY = 0.75  # of transformers and ConvNeXts that are fine-tuned (Bao et al. 2021, Liu et al. 2022)
WARM_UP, FINE_TUNING_WARM_UP = 0.05, 0.2  # share of the epochs
FINE_TUNING = 0.1  # of the usual learning rate, where that is more than of adaptive optimisers
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        lr: Peak learning rate.
        layer_decay: Factor by which the learning rate falls from each group of layers to the one before it; None: 1.
        warmup_epochs, decay_epochs: Of the schedule, scaled to this phase of the training.
    """

    epochs: int
    batch_size: int
    opt: str
    lr: float
    weight_decay: float
    layer_decay: float | None
    warmup_epochs: float
    decay_epochs: float

    @classmethod
    def of(
        cls, options: TrainingOptions, images: int, epochs: int | None = None, network: nn.Module | None = None
    ) -> Plan:
        """Our choice: batches of 128, smaller where an epoch would have fewer than 40 steps, or a fine-tuning fewer
        than 400: with pretrained networks and few photos, twice the steps were better in trials.

        Learning rate and weight decay are those of :mod:`~kdcompress.engine.rates`.

        Fine-tuning takes NAdamW (AdamW with Nesterov's momentum) and a longer warm-up: both were better in trials with
        two pretrained networks and few photos.

        Args:
            images: Number of images in the fit split.
            epochs: Of this phase; None: it is the whole training.
            network: To train; it decides the optimiser where the user does not.

        Raises:
            UserError: timm has no such optimiser, or the warm-up is as long as the training.
        """
        batch = options.batch_size or _batch_size(options, images)
        is_ours = options.opt == "auto"
        opt = _suitable_optimizer(options, network, batch) if is_ours else options.opt.lower()
        if opt.split("_")[-1] not in list_optimizers():
            remedy = "Choose auto or a timm optimizer, e.g. sgd, adamw, lamb (timm.optim.list_optimizers())."
            raise usage_error(f"--opt {options.opt!r} is unknown.", remedy)
        rate = rate_of(opt)
        usual = rate.at(batch * options.grad_accum)
        if options.fine_tunes and rate.lr > ADAPTIVE.lr:
            usual *= FINE_TUNING
        layer_decay = options.layer_decay
        if layer_decay is None and is_ours and opt == "nadamw" and network is not None and _has_layer_norm(network):
            layer_decay = LAYER_DECAY
        epochs = options.epochs if epochs is None else epochs
        warm_up = FINE_TUNING_WARM_UP if options.fine_tunes and opt != "sgd" else WARM_UP
        asked = options.warmup_epochs if options.warmup_epochs is not None else warm_up * options.epochs
        if asked >= options.epochs:
            remedy = f"Give fewer, e.g. --warmup-epochs {warm_up * options.epochs:g}, or more --epochs."
            problem = f"--warmup-epochs {asked:g} is not shorter than the training of {options.epochs} epochs."
            raise usage_error(problem, remedy)
        share = epochs / options.epochs  # warm-up and decay of a phase are scaled to its length
        return cls(
            epochs=epochs,
            batch_size=batch,
            opt=opt,
            lr=options.lr or usual,
            weight_decay=rate.weight_decay if options.weight_decay is None else options.weight_decay,
            layer_decay=layer_decay,
            warmup_epochs=share * asked,
            decay_epochs=share * (options.decay_epochs or options.epochs / 3),
        )

    def __str__(self) -> str:
        decay = f", layer decay {self.layer_decay:g}" if self.layer_decay else ""
        return f"{self.opt}, learning rate {self.lr:.2g}{decay}, {self.batch_size} images per step"


def _batch_size(options: TrainingOptions, images: int) -> int:
    most = images / MIN_STEPS
    if options.fine_tunes and options.opt.lower() != "sgd":
        most = min(most, images * options.epochs / FINE_TUNING_STEPS)
    return min(BASE_BATCH, max(SMALLEST_BATCH, 2 ** int(math.log2(max(most, 1)))))


def _suitable_optimizer(options: TrainingOptions, network: nn.Module | None, batch: int) -> str:
    if options.fine_tunes:
        return "nadamw"
    if network is None:
        return "sgd"
    if wants_adamw(network):
        return "adamw"
    return "nmuon" if is_affordable(network, batch) else "sgd"


def wants_adamw(network: nn.Module) -> bool:
    """Whether a network trains badly at the learning rates of ResNets (our choice).

    That is assumed of networks with LayerNorm or depthwise convolutions: vision transformers, ConvNeXts, MobileNets and
    EfficientNets were all published with adaptive optimisers. Also of those without any normalisation.
    """
    layers = list(network.modules())
    normalised = any(isinstance(layer, NORMS) for layer in layers)
    return not normalised or _has_layer_norm(network) or any(map(_is_depthwise, layers))


def _has_layer_norm(network: nn.Module) -> bool:
    return any(isinstance(layer, nn.LayerNorm) for layer in network.modules())


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
