"""A member of a cascade that was trained on images of another size or normalisation than the cascade gets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdcompress.data.preprocess import InputAdapter


class OwnInput(nn.Module):
    """A network that first converts its images [B, C, H, W] to the input that it was trained on.

    Args:
        size, scale, shift: As for :class:`~kdcompress.data.preprocess.InputAdapter`.
    """

    def __init__(
        self, network: nn.Module, size: Sequence[int] | None, scale: Sequence[float], shift: Sequence[float]
    ) -> None:
        super().__init__()
        self.adapter = InputAdapter(size, scale, shift)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self.network(self.adapter(x))
        return logits

    def get_classifier(self) -> nn.Module:
        """The last layer of the network."""
        layer: nn.Module = self.network.get_classifier()  # type: ignore[operator]
        return layer

    def reset_classifier(self, num_classes: int) -> None:
        """A new, untrained classifier."""
        self.network.reset_classifier(num_classes)  # type: ignore[operator]
