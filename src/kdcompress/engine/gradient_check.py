"""Whether low precision and memory layouts give right gradients on this machine, checked before a training.

Kernels can be wrong. oneDNN's bf16 weight gradient of a 3 x 3 convolution with stride 2 on 1 x 1 maps, for one, holds
memory that nobody has written to (torch 2.14, with and without AMX). A training on it ends in a loss that is not
finite, or goes on and learns noise.

So one batch is shown to a copy of the task as it is to be trained, and each layer is compared with itself in float32
and contiguous (:mod:`~kdcompress.engine.layer_check`). Not the network as a whole: there honest rounding looks like a
fault. In bf16 the gradients of a MobileNetV2 on 8 x 8 images have cosines between -0.9 and 1 with those of float32, and
every layer is right.
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

from kdcompress.engine.allocation import unwritten_memory_shows
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
    """What a training computes with.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        channels_last: Layout of images and weights; else contiguous.
        fp32_layers: Modules of what is trained, by name, that run in float32 whatever the rest runs in.
    """

    precision: str
    channels_last: bool
    fp32_layers: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Numerics:
        return cls(found["precision"], found["channels_last"], tuple(found["fp32_layers"]))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fp32_layers": list(self.fp32_layers)}

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


EXACT = Numerics("fp32", channels_last=False)


def checked(wanted: Numerics, task: TrainingTask, batch: Batch, place: Place, note: Callable[[str], None]) -> Numerics:
    """``wanted``, changed where it would give wrong gradients: layers to float32, the layout, or all to float32.

    All processes take part, for a task may exchange something with its peers; what the main one finds counts.

    Args:
        task: On the device. It stays as it is, and so do the generators of random numbers.
        batch: (input [B, C, H, W], target [B]) as the training brings them.
        note: Told once what was changed.
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
        note(f"Notice: channels-last gradients of {layout} are wrong on this machine; the training runs contiguous.")
    if now.fp32_layers:
        run = "it runs" if len(now.fp32_layers) == 1 else "they run"
        names = _names(now.fp32_layers)
        note(f"Notice: {now.precision} gradients of {names} are wrong on this machine; {run} in fp32.")
    if now.precision != wanted.precision:
        note(f"Notice: {wanted.precision} gradients are wrong on this machine; the training runs in fp32.")
    return now


def _step(numerics: Numerics, task: TrainingTask, batch: Batch, place: Place) -> tuple[Faults, bool]:
    """The faults that one step meets on a copy, and whether its loss and gradients are finite; the main process' word.

    In float32 and contiguous there are no faults.
    """
    trial = copy_to_train(task).train()
    module = trial.get_trainable_module()
    assert module is not None
    module.to(memory_format=numerics.memory_format)
    faults = _watch(module, numerics.precision, place) if numerics != EXACT and place.is_main else {}
    devices = [place.device] if place.device.type == "cuda" else []
    input, target = batch
    with torch.random.fork_rng(devices), unwritten_memory_shows(), in_fp32(module, numerics.fp32_layers):
        torch.manual_seed(0)
        with replace(place, precision=numerics.precision).autocast():
            loss = trial(input.contiguous(memory_format=numerics.memory_format), target)["loss"]
        loss.backward()
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    finite = all(bool(torch.isfinite(each).all()) for each in (loss, *gradients))
    return from_main(lambda: (_innermost(faults), finite))


def copy_to_train(task: TrainingTask) -> TrainingTask:
    """A copy to train; what is not trained is shared, for it is large and stays as it is."""
    module = task.get_trainable_module()
    assert module is not None
    own = {id(parameter) for parameter in module.parameters()}
    others = [each for each in task.parameters() if id(each) not in own and not each.requires_grad]
    return copy.deepcopy(task, {id(each): each for each in others})


def _watch(network: nn.Module, precision: str, place: Place) -> Faults:
    """Let each smallest block be checked when it is met, and its layers if it is not right; what will be found."""
    # where there are several processes, BatchNorm may be theirs together: nobody can run it alone
    small = {
        name: module
        for name, module in network.named_modules()
        if _is_small(module)
        and (place.world == 1 or not any(isinstance(each, _BatchNorm) for each in module.modules()))
    }
    faults: Faults = {}
    checking = False

    def meet(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal checking
        block = name.rpartition(".")[0]
        if checking or not torch.is_grad_enabled() or (block != name and block in small and block not in faults):
            return
        checking = True  # runs it by itself
        fault = fault_of(layer, args, kwargs, precision, place.device)
        checking = False
        if fault:
            faults[name] = fault

    for name, module in small.items():
        module.register_forward_pre_hook(functools.partial(meet, name), with_kwargs=True)
    return faults


def _is_small(module: nn.Module) -> bool:
    """A layer, or a block of nothing but layers that may compute something between them, such as attention."""
    if type(module).forward is nn.Sequential.forward:
        return False
    return all(next(child.children(), None) is None for child in module.children())


def _innermost(faults: Faults) -> Faults:
    """What is wrong, without blocks that are so because of a layer in them."""
    wrong = {name: fault for name, fault in faults.items() if fault != UNCLEAR}
    blocks = {name.rpartition(".")[0] for name in wrong if name}
    return {name: fault for name, fault in wrong.items() if name not in blocks}


def _names(layers: Sequence[str]) -> str:
    more = len(layers) - NAMED
    return ", ".join(layers[:NAMED]) + (f" and {more} more" if more > 0 else "")
