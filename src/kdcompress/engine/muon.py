"""Muon (Jordan et al. 2024), timm's: where its own work is worth it, and in which precision that is done."""

from __future__ import annotations

import functools
from typing import Any

import timm.optim.muon as timm_muon
import torch
from torch import nn

from kdcompress.flops import profile

ITERATIONS = 5  # of Newton and Schulz, each of three products
MOST = 0.1  # of a step's work: beyond that, more epochs of a cheaper optimiser are the better use of the time
PER_MAC = 6  # operations of a step per MAC: two, forward and twice backward
NAME = "zeropower_via_newtonschulz"


def is_affordable(network: nn.Module, images: int) -> bool:
    """Whether orthogonalising the gradients of a network adds at most a tenth to steps of so many images (our choice).

    It costs the same whatever the size of batch and images: more than all the rest where thumbnails pass through wide
    layers.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        return False
    matrices = [parameter.flatten(1) for parameter in network.parameters() if parameter.ndim > 1]
    work = 0
    for rows, columns in (sorted(each.shape) for each in matrices):
        work += ITERATIONS * (4 * rows * rows * columns + 2 * rows**3)
    try:
        macs = profile(network, size).macs
    except Exception:  # an arbitrary network may fail in any way, and has other optimisers
        return False
    return bool(work <= MOST * PER_MAC * macs * images)


def in_fp32_on_cpu(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.optim.Optimizer:
    """Let timm's Muon orthogonalise in float32 on a CPU, where it is two to nine times as fast as its bf16.

    Processors without bf16 emulate it, and on the small matrices of small networks others gain nothing from it. timm
    has no option for it, so its function is replaced during each step.
    """
    if device.type != "cpu" or not isinstance(optimizer, timm_muon.Muon) or not hasattr(timm_muon, NAME):
        return optimizer
    genuine = getattr(timm_muon, NAME)
    exact = functools.partial(genuine, dtype=torch.float32)

    def before(*_: Any) -> None:
        setattr(timm_muon, NAME, exact)

    def after(*_: Any) -> None:
        setattr(timm_muon, NAME, genuine)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
