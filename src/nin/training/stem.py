"""The first convolution straight on the pixels while the network trains, as a product of matrices.

Dividing by 255, resizing and convolving are linear, so filters of 4x4 pixels do all three, one for
even and one for odd rows and columns of the output each; `fold_stem` does it for deployment. Exact
but for rounding.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nin.training.network import NiN, fold_filters


def convolve(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As F.conv2d(images_of(pixels), weight, bias, stride=4).

    Args:
        pixels: (N, S, S) uint8.
        weight: (C, 1, 11, 11).
        bias: (C,).

    Returns:
        (N, C, 2 S - 2, 2 S - 2) in channels-last order.
    """
    # A row of the product is two neighbours in a row of the output, so that it comes out in order.
    # Even and odd rows of the output have filters of their own: 16 inputs, 16 zeros for the others.
    filters = fold_filters(weight).permute(1, 3, 4, 2, 0).reshape(32, -1)
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    windows = padded.unfold(1, 4, 1).unfold(2, 4, 1).flatten(3, 4)  # (N, S - 1, S - 1, 16)
    count, side = windows.shape[:2]
    rows = weight.new_zeros(count, side, 2, side, 2, 16)
    for parity in (0, 1):
        rows[:, :, parity, :, parity] = windows
    output = torch.addmm(bias.repeat(2), rows.view(-1, 32), filters)
    return output.view(count, 2 * side, 2 * side, -1).permute(0, 3, 1, 2)


def use_in(network: NiN) -> None:
    """Lets the network take pixels (N, S, S) uint8, besides images as ever."""
    conv = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    conv.forward = partial(_forward, conv)  # type: ignore[method-assign]


def _forward(conv: nn.Conv2d, image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        return nn.Conv2d.forward(conv, image)
    assert conv.bias is not None
    return convolve(image, conv.weight, conv.bias)
