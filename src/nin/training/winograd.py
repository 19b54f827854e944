"""The 5x5 convolution, more than half of a training step, with a sixth of its multiplications.

Winograd's minimal filtering F(4x4, 5x5), Y = A^T [(G g G^T) * (B^T d B)] A (Lavin and Gray, Fast
Algorithms for Convolutional Neural Networks, 2015): four outputs of a filter of five taps are a
product of polynomials backwards, and that is one multiplication at each of eight points. In two
dimensions 64 stand for 400. Exact but for rounding: a few millionths in float32.

oneDNN has this only for 3x3 filters, and not on processors without AVX-512.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OUTPUTS, _TAPS = 4, 5
_TILE = _OUTPUTS + _TAPS - 1  # inputs that four outputs need: tiles overlap by half
_POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)  # and infinity
_PADDING = _TAPS // 2
_CHUNK = 8  # images at a time: what lies between the products stays in the cache


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (16, 64), G (64, 25) and B^T (64, 64), each for rows and columns at once."""

    def evaluate(coefficients: int) -> Tensor:
        """(8, coefficients): a polynomial's values at the points; at infinity its leading one."""
        powers = [[float(point) ** j for j in range(coefficients)] for point in _POINTS]
        return torch.tensor([*powers, [0.0] * (coefficients - 1) + [1.0]], dtype=torch.float64)

    a, g, b = evaluate(_OUTPUTS).T, evaluate(_TAPS), evaluate(_TILE).inverse().T
    size = b.abs().amax(1, keepdim=True)  # numbers of one size round best
    a, g, b = (torch.kron(m, m).float() for m in (a, g * size, b / size))
    return a, g, b


_A, _G, _B = _matrices()


def convolve(image: Tensor, weight: Tensor) -> Tensor:
    """As F.conv2d(image, weight, padding=2).

    Args:
        image: (N, C, H, W) float32 on the CPU, fastest in channels-last order.
        weight: (K, C, 5, 5).

    Returns:
        (N, K, H, W) in channels-last order.
    """
    taps = weight.permute(2, 3, 1, 0)  # (5, 5, C, K)
    filters = (_G @ taps.flatten(0, 1).flatten(1)).view(_TILE**2, *taps.shape[2:])
    parts = torch.split(image.permute(0, 2, 3, 1), _CHUNK)
    return torch.cat([_convolve(part, filters) for part in parts]).permute(0, 3, 1, 2)


def _convolve(image: Tensor, filters: Tensor) -> Tensor:
    """(n, H, W, C) and the filters' values at the points (64, C, K) -> (n, H, W, K)."""
    height, width, channels = image.shape[1:]
    after = (_PADDING + -height % _OUTPUTS, _PADDING + -width % _OUTPUTS)
    padded = F.pad(image, (0, 0, _PADDING, after[1], _PADDING, after[0]))
    tiles = padded.unfold(1, _TILE, _OUTPUTS).unfold(2, _TILE, _OUTPUTS)  # (n, h, w, C, 8, 8)
    count, down, across = tiles.shape[:3]
    points = _B @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(_TILE**2, -1)
    products = points.view(_TILE**2, -1, channels) @ filters
    outputs = (_A @ products.flatten(1)).view(_OUTPUTS, _OUTPUTS, count, down, across, -1)
    whole = outputs.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)  # (n, 4 h, 4 w, K)
    return whole[:, :height, :width]


def use_in(network: nn.Module) -> None:
    """Lets the network's 5x5 convolutions train so; when it evaluates they stay as they were."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (_TAPS, _TAPS):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Conv2d, image: Tensor) -> Tensor:
    if not module.training:
        return nn.Conv2d.forward(module, image)
    assert module.bias is not None
    return convolve(image, module.weight) + module.bias.view(-1, 1, 1)
