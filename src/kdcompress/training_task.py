"""timm's training task; imported only here, because its API is young and has changed between releases."""

from timm.task import TrainingTask
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["TrainingTask", "unwrapped"]


def unwrapped(model: nn.Module | None) -> nn.Module:
    """The network itself, without the wrapper of several processes or of a moving average.

    timm's ``unwrap_model`` looks for an attribute ``module``, which a network of the user's own may have, too.
    """
    assert model is not None
    while isinstance(model, (DistributedDataParallel, ModelEmaV3)):
        model = model.module
    return model
