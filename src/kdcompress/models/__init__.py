"""Networks: ours (registered with timm on import) and any that a user refers to."""

from kdcompress.models import cifar_resnet, cifar_wrn, lenet, residual_cascade, resnet_3x3, student_assistant

__all__ = ["cifar_resnet", "cifar_wrn", "lenet", "residual_cascade", "resnet_3x3", "student_assistant"]
