"""Checks before a training that low precision and memory layout give correct gradients on this machine.

Kernels can be wrong. For example, oneDNN's bf16 weight gradient of a 3 x 3 convolution with stride 2 on 1 x 1 maps
contains uninitialized memory (torch 2.14, with and without AMX). Training on it ends in a loss that is not finite, or
learns noise.

So a copy of the task takes one step on one batch, and each layer is compared with itself in float32 and contiguous
layout (:mod:`~kdcompress.engine.layer_check`). The network as a whole would not do, for there ordinary rounding looks
like a fault: the bf16 gradients of a MobileNetV2 on 8 x 8 images have cosine similarities between -0.9 and 1 with those
in float32, though every layer is correct.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcompress.engine.allocation import poisoned_memory
from kdcompress.engine.distributed import Place, from_main
from kdcompress.engine.fp32_layers import in_fp32
from kdcompress.engine.layer_check import UNCLEAR, fault_of
from kdcompress.training_task import TrainingTask

ROUNDS = 4
NAMED = 3

Batch = tuple[Tensor, Tensor]
Faults = dict[str, str]  # by name of the layer: precision or layout


@dataclass(frozen=True)
class Numerics:
    """Precision and memory layout of a training.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        channels_last: Layout of images and weights; else contiguous.
        fp32_layers: Names of the student's modules that run in float32 whatever the precision.
        find_unused: Whether several processes have to look for parameters without gradients in each step.
    """

    precision: str
    channels_last: bool
    fp32_layers: tuple[str, ...] = ()
    find_unused: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Numerics:
        """The settings that :meth:`to_dict` wrote."""
        layers, unused = tuple(values["fp32_layers"]), values.get("find_unused", False)
        return cls(values["precision"], values["channels_last"], layers, unused)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as ``run.json`` holds them."""
        return {**asdict(self), "fp32_layers": list(self.fp32_layers)}

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout as torch names it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


EXACT = Numerics("fp32", channels_last=False)


def checked(wanted: Numerics, task: TrainingTask, batch: Batch, place: Place, note: Callable[[str], None]) -> Numerics:
    """``wanted``, or where it gives wrong gradients, single layers in float32, contiguous layout, or all in float32.

    All processes take part, for a task may communicate with its peers; the result of the main process counts.

    Args:
        task: On the device. Neither it nor the state of the random number generators is changed.
        batch: (input [B, C, H, W], target [B]) as in training.
        note: Called with a notice about each change.
    """
    now, layout = wanted, ""
    for _ in range(ROUNDS):
        if now == EXACT:
            break
        faults, finite = _step(now, task, batch, place)
        wrong = [name for name in faults if faults[name] == "layout"]
        if wrong:
            now, layout = replace(now, channels_last=False), _names(wrong)
        elif faults:
            now = replace(now, fp32_layers=tuple(sorted({*now.fp32_layers, *faults})))
        elif finite or now.precision == "fp32" or not _step(EXACT, task, batch, place)[1]:
            break
        else:
            now = replace(now, precision="fp32", fp32_layers=())
    else:
        now = replace(now, precision="fp32", fp32_layers=())
    if layout:
        note(f"Notice: channels-last gradients of {layout} are wrong on this machine; training uses contiguous layout.")
    if now.fp32_layers:
        run = "it runs" if len(now.fp32_layers) == 1 else "they run"
        names = _names(now.fp32_layers)
        note(f"Notice: {now.precision} gradients of {names} are wrong on this machine; {run} in fp32.")
    if now.precision != wanted.precision:
        note(f"Notice: {wanted.precision} gradients are wrong on this machine; training runs in fp32.")
    return now


def _step(numerics: Numerics, task: TrainingTask, batch: Batch, place: Place) -> tuple[Faults, bool]:
    """The faults in one step of a copy, and whether its loss and gradients are finite, both as in the main process.

    Float32 and contiguous is the reference, so it has no faults.
    """
    trial, module = copy_to_train(task, numerics)
    faults = _watch(module, numerics.precision, place) if numerics != EXACT and place.is_main else {}
    with poisoned_memory():
        loss = _seeded_backward(trial, module, numerics, batch, place)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    finite = all(bool(torch.isfinite(each).all()) for each in (loss, *gradients))
    return from_main(lambda: (_innermost(faults), finite))


def has_unused(task: TrainingTask, batch: Batch, place: Place) -> bool:
    """Whether the loss leaves parameters of what is trained without a gradient, e.g. those of a head that it ignores.

    All processes have to call it: their BatchNorm may be synchronized.
    """
    trial, module = copy_to_train(task, EXACT)
    _seeded_backward(trial, module, EXACT, batch, place)
    unused = any(each.requires_grad and each.grad is None for each in module.parameters())
    return from_main(lambda: unused)


def copy_to_train(task: TrainingTask, numerics: Numerics) -> tuple[TrainingTask, nn.Module]:
    """A copy in training mode and in the memory layout of ``numerics``, and what of it is trained.

    Frozen parameters are shared, for they are large and do not change.
    """
    module = task.get_trainable_module()
    assert module is not None
    own = {id(parameter) for parameter in module.parameters()}
    others = [each for each in task.parameters() if id(each) not in own and not each.requires_grad]
    trial = copy.deepcopy(task, {id(each): each for each in others}).train()
    module = trial.get_trainable_module()
    assert module is not None
    return trial, module.to(memory_format=numerics.memory_format)


def backward(
    trial: TrainingTask, module: nn.Module, numerics: Numerics, batch: Batch, place: Place, **cached: Tensor
) -> Tensor:
    """Forward and backward pass of a copy, as a training does them; the loss.

    Args:
        cached: Targets of the batch that are cached, by argument of the task.
    """
    input, target = batch
    with in_fp32(module, numerics.fp32_layers):
        with replace(place, precision=numerics.precision).autocast():
            loss: Tensor = trial(input.contiguous(memory_format=numerics.memory_format), target, **cached)["loss"]
        loss.backward()
    return loss


def _seeded_backward(trial: TrainingTask, module: nn.Module, numerics: Numerics, batch: Batch, place: Place) -> Tensor:
    """As :func:`backward`, with the same random numbers each time, and none of the training's."""
    with torch.random.fork_rng([place.device] if place.device.type == "cuda" else []):
        torch.manual_seed(0)
        return backward(trial, module, numerics, batch, place)


def _watch(network: nn.Module, precision: str, place: Place) -> Faults:
    """Install hooks that check each smallest block when it runs, and its layers if the block is wrong.

    Returns:
        A dictionary that the hooks fill in.
    """
    # with several processes, BatchNorm may be synchronized: no process can run it by itself
    small = {
        name: module
        for name, module in network.named_modules()
        if _is_small(module)
        and (place.world == 1 or not any(isinstance(each, _BatchNorm) for each in module.modules()))
    }
    faults: Faults = {}
    checking = False

    def check(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal checking
        block = name.rpartition(".")[0]
        if checking or not torch.is_grad_enabled() or (block != name and block in small and block not in faults):
            return
        checking = True  # fault_of runs the layer, and so this hook
        fault = fault_of(layer, args, kwargs, precision, place.device)
        checking = False
        if fault:
            faults[name] = fault

    for name, module in small.items():
        module.register_forward_pre_hook(functools.partial(check, name), with_kwargs=True)
    return faults


def _is_small(module: nn.Module) -> bool:
    """A layer, or a block whose children are all layers and whose forward may compute more, such as attention."""
    if type(module).forward is nn.Sequential.forward:
        return False
    return all(next(child.children(), None) is None for child in module.children())


def _innermost(faults: Faults) -> Faults:
    """The wrong layers and blocks, without blocks that are wrong because of a layer in them."""
    wrong = {name: fault for name, fault in faults.items() if fault != UNCLEAR}
    blocks = {name.rpartition(".")[0] for name in wrong if name}
    return {name: fault for name, fault in wrong.items() if name not in blocks}


def _names(layers: Sequence[str]) -> str:
    more = len(layers) - NAMED
    return ", ".join(layers[:NAMED]) + (f" and {more} more" if more > 0 else "")
