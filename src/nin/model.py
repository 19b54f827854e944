"""The Network in Network of Dive into Deep Learning, section 8.3.

python -m nin.model    # prints the layers, their output shapes and their parameters
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from nin.contract import LABELS, NIN


def nin_block(in_channels: int, out_channels: int, kernel_size: int, **conv: int) -> nn.Sequential:
    """A spatial convolution and the per-pixel MLP (two 1x1 convolutions) that follows it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, **conv),  # type: ignore[arg-type]
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1),
        nn.ReLU(),
    )


class NiN(nn.Sequential):
    """Image in [0, 1], (N, 1, 224, 224) -> logits (N, num_classes)."""

    def __init__(self, num_classes: int = len(LABELS), dropout: float = 0.5) -> None:
        super().__init__(
            nin_block(1, 96, kernel_size=11, stride=4),  # (N, 96, 54, 54)
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 96, 26, 26)
            nin_block(96, 256, kernel_size=5, padding=2),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 256, 12, 12)
            nin_block(256, 384, kernel_size=3, padding=1),
            nn.MaxPool2d(kernel_size=3, stride=2),  # (N, 384, 5, 5)
            nn.Dropout(dropout),
            nin_block(384, num_classes, kernel_size=3, padding=1),
            nn.AdaptiveAvgPool2d(1),  # no fully connected layer: one map per class, averaged
            nn.Flatten(),  # (N, num_classes)
        )
        self.arguments = {"num_classes": num_classes, "dropout": dropout}

    # Written out so that the exporters name the input after the contract.
    def forward(self, image: Tensor) -> Tensor:
        for layer in self:
            image = layer(image)
        return image

    def initialise(self, scheme: Literal["xavier", "kaiming"] = "xavier") -> Self:
        """Uniform weights, Xavier's as the book's or Kaiming's for ReLU, and zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if scheme == "xavier":
                    nn.init.xavier_uniform_(module.weight)
                else:
                    nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        return self


def layer_table(network: NiN) -> list[tuple[str, str, str]]:
    """One row per layer: name, output shape for one image, number of parameters."""
    x = torch.zeros(1, *NIN.input.shape)
    rows = []
    for layer in network:
        x = layer(x)
        name = "NiN block" if isinstance(layer, nn.Sequential) else type(layer).__name__
        parameters = sum(p.numel() for p in layer.parameters())
        rows.append((name, str(tuple(x.shape)), f"{parameters:,}"))
    total = sum(p.numel() for p in network.parameters())
    return [*rows, ("total", "", f"{total:,}")]


if __name__ == "__main__":
    from nin.cli import table

    print(table(("layer", "output shape", "parameters"), layer_table(NiN().eval())))
