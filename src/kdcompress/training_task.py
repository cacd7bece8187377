"""timm's training task; the one place that imports it, for it is young and has changed between releases."""

from timm.task import TrainingTask

__all__ = ["TrainingTask"]
