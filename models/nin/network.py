"""The Network in Network of Dive into Deep Learning, section 8.3.

python models/nin/network.py    # prints the layers, their output shapes and their parameters
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# 28x28 pixels become the network's 224x224.
SCALE = 8


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

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
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


def fold_stem(conv: nn.Conv2d) -> nn.Conv2d:
    """Folds the division by 255, the bilinear upsampling and the 11x11 convolution into one.

    Resize and convolution are both linear. Output row o of the convolution (stride 4) covers the
    upsampled rows 4o..4o+10, so o = 2k + phase needs only the pixel rows k-1..k+2, with weights
    that don't depend on k; columns likewise. Four phases give 4x4 kernels for 4 times the
    channels, and a pixel shuffle by 2 interleaves them.

    Args:
        conv: weight (C, 1, 11, 11), stride 4, on the upsampled image.

    Returns:
        A convolution on the pixels, weight (4 C, 1, 4, 4). Its input is padded by 1 with
        replication, which is how bilinear resize treats the edges.
    """
    weight = fold_filters(conv.weight.detach().double())
    folded = nn.Conv2d(1, 4 * conv.out_channels, kernel_size=4)
    folded.weight = nn.Parameter(weight.reshape(-1, 1, 4, 4).to(conv.weight.dtype))
    assert conv.bias is not None  # NiN's convolutions have one
    folded.bias = nn.Parameter(conv.bias.detach().repeat_interleave(4))
    return folded


def fold_filters(weight: Tensor) -> Tensor:
    """The filters (C, 1, 11, 11) on the upsampled image as filters on the pixels, per phase.

    Returns:
        (C, 2, 2, 4, 4): [c, p, q] gives rows 2k + p and columns 2l + q of the output.
    """
    # upsample[i, u]: the share of pixel i in upsampled pixel u, far from the edges
    upsample = F.interpolate(
        torch.eye(8, dtype=torch.float64)[None], scale_factor=SCALE, mode="linear"
    )[0]
    k, rows = 2, weight.shape[2]
    first = [4 * (2 * k + phase) for phase in (0, 1)]
    # taps[phase, pixel, row]: pixels k-1..k+2, rows of the 11x11 kernel
    taps = torch.stack([upsample[k - 1 : k + 3, u : u + rows] for u in first]).to(weight.dtype)
    kernels = weight.permute(0, 2, 3, 1).squeeze(3)  # by way of channels-last: so is the gradient
    return torch.einsum("pit,qju,ctu->cpqij", taps, taps, kernels) / 255


class Classifier(nn.Module):
    """Pixels (N, 28, 28) uint8 -> logits and probabilities, both (N, num_classes).

    Equal to dividing, resizing and the network but for rounding, without making the large image.
    """

    def __init__(self, network: NiN) -> None:
        super().__init__()
        first_block = network[0]
        assert isinstance(first_block, nn.Sequential)
        assert isinstance(first_block[0], nn.Conv2d)
        self.stem = fold_stem(first_block[0])
        self.rest = nn.Sequential(*first_block[1:], *list(network)[1:])
        self.train(network.training)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = pixels.unsqueeze(1).to(self.stem.weight.dtype)  # (N, 1, 28, 28)
        x = self.stem(F.pad(x, (1, 1, 1, 1), mode="replicate"))  # (N, 384, 27, 27)
        logits = self.rest(F.pixel_shuffle(x, 2))  # from (N, 96, 54, 54)
        return logits, logits.softmax(dim=1)


def layer_table(network: NiN) -> list[tuple[str, str, str]]:
    """One row per layer: name, output shape for one image, number of parameters."""
    x = torch.zeros(1, 1, 28 * SCALE, 28 * SCALE)
    rows = []
    for layer in network:
        x = layer(x)
        name = "NiN block" if isinstance(layer, nn.Sequential) else type(layer).__name__
        parameters = sum(p.numel() for p in layer.parameters())
        rows.append((name, str(tuple(x.shape)), f"{parameters:,}"))
    total = sum(p.numel() for p in network.parameters())
    return [*rows, ("total", "", f"{total:,}")]


if __name__ == "__main__":
    from nin.terminal import table

    print(table(("layer", "output shape", "parameters"), layer_table(NiN().eval())))
