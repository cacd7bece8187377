"""BatchNorm folded into the convolution before it, for networks that only infer."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdcompress.models.staged import Staged


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy whose plain BatchNorm layers are folded into the convolutions before them, where that changes nothing.

    Without the memory traffic of those layers a ResNet-56 takes a quarter less time on 32 x 32 images on a CPU core.
    The copy keeps its class and methods. Layers that join BatchNorm and activation (timm's EfficientNets) stay as
    they are. Of a network in stages each is folded by itself; its gate stays.

    Args:
        model: In eval mode, on the CPU.

    Returns:
        The copy; the model itself where it cannot be traced, or where the copy gives other outputs.
    """
    if isinstance(model, Staged):
        staged = copy.deepcopy(model)
        for name in model.networks():
            staged.set_submodule(name, fold_batchnorm(model.get_submodule(name)))
        return staged
    # what a tracer may trip over is open-ended (branches on data, on shapes, assertions …), and folding is optional
    with contextlib.suppress(Exception), torch.no_grad():
        folded = copy.deepcopy(model)
        for conv, norm in _pairs(model):
            parts: Any = folded.get_submodule(conv), folded.get_submodule(norm)
            folded.set_submodule(conv, fuse_conv_bn_eval(*parts))
            folded.set_submodule(norm, nn.Identity())
        size = model.pretrained_cfg["input_size"]  # type: ignore[index]
        x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
        before, after = model(x), folded(x)
        if torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            return folded
    return model


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of each convolution whose output goes to one BatchNorm alone, and of that; both run only once."""
    nodes = fx.symbolic_trace(model).graph.nodes
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    pairs = []
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        kinds = type(model.get_submodule(str(before.target))), type(model.get_submodule(str(node.target)))
        if kinds == (nn.Conv2d, nn.BatchNorm2d) and calls[before.target] == calls[node.target] == 1:
            pairs.append((str(before.target), str(node.target)))
    return pairs


def for_inference(model: nn.Module, device: torch.device) -> nn.Module:
    """A network as it is scored and used: eval mode, BatchNorm folded, channels last, on the device."""
    return fold_batchnorm(model.eval()).to(device).to(memory_format=torch.channels_last)
