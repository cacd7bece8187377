"""BatchNorm over the images of all processes, so that many processes train as one would with the whole batch.

PyTorch's own SyncBatchNorm works on GPUs only; on CPUs the layer here does the same with two collectives. During a
training the layers change their class and nothing else: state-dict keys, hooks and saved files stay the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdcompress.engine.distributed import Place

GROUP = "process_group"  # an attribute of PyTorch's SyncBatchNorm; None: all processes
FEW = 32  # images per step and process (our choice): with fewer, batch statistics are too noisy


def is_wanted(choice: str, batch_size: int, place: Place) -> bool:
    """Whether BatchNorm is to be synchronized over all processes.

    Args:
        choice: ``--sync-bn``: ``on``, ``off``, or ``auto`` (our choice: with fewer than 32 images per process).
        batch_size: Over all processes.
    """
    if place.world == 1 or choice == "off":
        return False
    return choice == "on" or batch_size // place.world < FEW


def layers(module: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers that can be synchronized: PyTorch's own, and timm's with an activation."""
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    return [layer for layer in module.modules() if type(layer) in known and isinstance(layer, _BatchNorm)]


@contextlib.contextmanager
def synchronized(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, BatchNorm computes mean and variance of a training batch over all processes."""
    changed = [(layer, type(layer)) for layer in layers(module)]
    for layer, kind in changed:
        layer.__class__ = _synced(kind, device.type)
        setattr(layer, GROUP, None)
    try:
        yield
    finally:
        for layer, kind in changed:
            layer.__class__ = kind
            delattr(layer, GROUP)


def _synced(kind: type[_BatchNorm], device: str) -> type[_BatchNorm]:
    own: type = _CpuSyncBatchNorm
    if device != "cpu":
        own = SyncBatchNormAct if kind is BatchNormAct2d else nn.SyncBatchNorm
    return type(kind.__name__, (own, kind), {})


class _CpuSyncBatchNorm(_BatchNorm):
    """As PyTorch's SyncBatchNorm; in eval mode an ordinary BatchNorm."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, var, count = _normalized(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * (count / (count - 1)), share)
        return self.act(self.drop(y)) if isinstance(self, BatchNormAct2d) else y


@torch.compiler.disable
def _normalized(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    return _Normalized.apply(x, weight, bias, eps)


class _Normalized(torch.autograd.Function):
    """Batch normalization of [B, C, ...] over all processes.

    Returns:
        The normalized and scaled input, and mean [C], variance [C] and number of values per channel [1].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        dims = [0, *range(2, x.dim())]
        own_var, own_mean = torch.var_mean(x.float(), dims, correction=0)
        own_count = own_mean.new_full((1,), x.numel() // x.shape[1])
        own = torch.cat([own_mean, own_var, own_count])
        of_all = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(of_all, own)
        rows, channels = torch.stack(of_all).double(), x.shape[1]
        means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        # pooled variance: variances within the processes plus that of their means (Chan et al. 1979)
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        mean, var, count = mean.float(), var.float(), count.float()
        ctx.save_for_backward(x, weight, mean, (var + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, var, count)
        return nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> Any:
        x, weight, mean, scale, count = ctx.saved_tensors
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        deviation = (x.float() - mean.view(shape)) * scale.view(shape)
        wide = dy.float()
        of_bias, of_weight = wide.sum(dims), (wide * deviation).sum(dims)
        sums = torch.stack([of_bias, of_weight])
        dist.all_reduce(sums)
        first, second = (sums / count).unbind(0)
        wide = wide - first.view(shape) - deviation * second.view(shape)
        dx = wide * (scale if weight is None else scale * weight).view(shape)
        return dx.to(x.dtype), None if weight is None else of_weight, None if weight is None else of_bias, None
