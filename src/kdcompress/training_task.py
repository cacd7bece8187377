"""timm's training task; imported only here, because its API is young and has changed between releases."""

from timm.task import TrainingTask

__all__ = ["TrainingTask"]
