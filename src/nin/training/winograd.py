"""The 3x3 and 5x5 convolutions, most of a training step, with a fraction of the multiplications.

Winograd's minimal filtering F(4x4, 5x5), Y = A^T [(G g G^T) * (B^T d B)] A (Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015): four outputs of a filter of five taps are a
product of polynomials backwards, and that is one multiplication at each of eight points. In two
dimensions 64 stand for 400, and for 3x3 filters 36 for 144. Exact but for rounding: a few
millionths in float32.

Torch's convolutions on CPUs, oneDNN's direct ones, don't do this.
"""

from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OUTPUTS = 4
_KERNELS = ((3, 3), (5, 5))
_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # as many as the filter needs, and infinity
_TILES = 400  # at a time: what lies between the products stays in the cache


@lru_cache
def _matrices(taps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A^T, G and B^T for rows and columns at once; for 5 taps (16, 64), (64, 25), (64, 64)."""
    tile = _OUTPUTS + taps - 1  # inputs that four outputs need, and points

    def evaluate(coefficients: int) -> Tensor:
        """(tile, coefficients): the powers at each point; at infinity only the leading one."""
        powers = [[float(point) ** j for j in range(coefficients)] for point in _POINTS[: tile - 1]]
        return torch.tensor([*powers, [0.0] * (coefficients - 1) + [1.0]], dtype=torch.float64)

    a, g, b = evaluate(_OUTPUTS).T, evaluate(taps), evaluate(tile).inverse().T
    size = b.abs().amax(1, keepdim=True)  # numbers of one size round best
    a, g, b = (torch.kron(m, m).to(dtype) for m in (a, g * size, b / size))
    return a, g, b


def convolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As F.conv2d(image, weight, bias, padding="same").

    Args:
        image: (N, C, H, W) on the CPU, fastest in channels-last order.
        weight: (K, C, 3, 3) or (K, C, 5, 5).
        bias: (K,).

    Returns:
        (N, K, H, W) in channels-last order.
    """
    taps = weight.shape[2]
    _, g, _ = _matrices(taps, weight.dtype)
    columns = weight.permute(2, 3, 1, 0)  # (taps, taps, C, K)
    filters = (g @ columns.flatten(0, 1).flatten(1)).view(len(g), *columns.shape[2:])
    height, width = image.shape[2:]
    chunk = max(1, _TILES // (_tiles_along(height) * _tiles_along(width)))
    parts = torch.split(image.permute(0, 2, 3, 1), chunk)
    output = torch.cat([_convolve(part, filters, taps) for part in parts])
    return output.add_(bias).permute(0, 3, 1, 2)  # in place before there is a view of it


def _convolve(image: Tensor, filters: Tensor, taps: int) -> Tensor:
    """(n, H, W, C) and the filters' values at the points (tile^2, C, K) -> (n, H, W, K)."""
    a, _, b = _matrices(taps, image.dtype)
    height, width, channels = image.shape[1:]
    down, across = _tiles_along(height), _tiles_along(width)
    tiles: Tensor = _Tiles.apply(image, taps)
    points = b @ tiles
    products = points.view(len(b), -1, channels) @ filters
    outputs = (a @ products.flatten(1)).view(_OUTPUTS, _OUTPUTS, len(image), down, across, -1)
    whole = outputs.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)  # (n, 4 h, 4 w, K)
    return whole[:, :height, :width]


class _Tiles(torch.autograd.Function):
    """(n, H, W, C) -> (tile^2, n h w C): what each four by four outputs need, zeros at the edges.

    Back through overlapping windows autograd would take number by number, a tenth of a step.
    """

    @staticmethod
    def forward(context: Any, image: Tensor, taps: int) -> Tensor:
        context.shape, context.taps = image.shape, taps
        tile, padding = _OUTPUTS + taps - 1, taps // 2
        below, right = (padding + -side % _OUTPUTS for side in image.shape[1:3])
        padded = F.pad(image, (0, 0, padding, right, padding, below))
        tiles = padded.unfold(1, tile, _OUTPUTS).unfold(2, tile, _OUTPUTS)  # (n, h, w, C, ...)
        return tiles.permute(4, 5, 0, 1, 2, 3).reshape(tile**2, -1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        count, height, width, channels = context.shape
        tile, padding = _OUTPUTS + context.taps - 1, context.taps // 2
        down, across = _tiles_along(height), _tiles_along(width)
        tiles = gradient.reshape(tile, tile, count, down, across, channels)
        tiles = tiles.permute(2, 3, 0, 4, 1, 5)
        # A tile fills its block of four by four and reaches into the next ones.
        padded = gradient.new_zeros(count, down + 1, _OUTPUTS, across + 1, _OUTPUTS, channels)
        parts = (slice(0, _OUTPUTS), slice(_OUTPUTS, tile))
        for i, rows in enumerate(parts):
            for j, columns in enumerate(parts):
                part = tiles[:, :, rows, :, columns]
                blocks = padded[:, i : i + down, :, j : j + across]
                blocks[:, :, : part.shape[2], :, : part.shape[4]] += part
        image = padded.flatten(3, 4).flatten(1, 2)
        return image[:, padding : padding + height, padding : padding + width], None


def _tiles_along(side: int) -> int:
    return -(-side // _OUTPUTS)


def use_in(network: nn.Module) -> None:
    """Lets convolutions of these kernels train so; when it evaluates they stay as they were."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size in _KERNELS:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Conv2d, image: Tensor) -> Tensor:
    if not module.training:
        return nn.Conv2d.forward(module, image)
    assert module.bias is not None
    return convolve(image, module.weight, module.bias)
