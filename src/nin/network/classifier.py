"""The generic classifier: pixels in, logits and probabilities out, whatever the network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nin.contract import Contract


class Preprocess(nn.Module):
    """Pixels (N, h, w[, 3]) uint8 -> images (N, C, H, W): scaled, normalised and resized.

    In float32, or by `.double()` in float64.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        image, pixels = contract.image, contract.pixels
        self.channels = image.channels
        self.size = (image.height, image.width)
        self.resizes = self.size != (pixels.height, pixels.width)
        self.normalises = any(image.mean) or any(s != 1 for s in image.std)
        self.register_buffer("mean", torch.tensor(image.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        channels_first = pixels.unsqueeze(1) if self.channels == 1 else pixels.permute(0, 3, 1, 2)
        image = channels_first.to(self.mean.dtype) / 255
        if self.normalises:
            image = (image - self.mean) / self.std
        if self.resizes:
            image = F.interpolate(image, self.size, mode="bilinear", align_corners=False)
        return image


class Classifier(nn.Module):
    """Pixels (N, h, w[, 3]) uint8 -> logits and probabilities, both (N, K)."""

    def __init__(self, network: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.preprocess = Preprocess(contract)
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(self.preprocess(pixels))
        return logits, logits.softmax(dim=1)
