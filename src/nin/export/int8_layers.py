"""The weights of a quantised file, held against those of the network that it came from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of 7 bits: 255 * 64 * 2 fits the 16 bits in which CPUs without VNNI add pairs of products.
MOST_CODE = 64

_HALF_STEP = 0.51
_TINY = 1e-12  # the step of a channel of zeros


@dataclass(frozen=True)
class Constant:
    """Values in float32; where they are quantised, their integers and the step between two."""

    values: NDArray[np.float32]
    codes: NDArray[np.integer[Any]] | None = None
    step: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Layer:
    """The constants of a convolution or linear layer."""

    name: str
    weight: Constant
    axis: int  # of the weight's output channels
    bias: Constant | None


def layer_faults(layers: list[Layer], exact: list[Layer]) -> list[str]:
    """What is wrong with quantised layers; empty where nothing is.

    Each weight has to be within half a step of 7 bits of its own channel's range, each bias within
    half a step of its own.

    Args:
        exact: the same layers in float32; a quantizer may have sorted them otherwise.
    """
    faults: list[str] = []
    left = list(exact)
    for layer in layers:
        same = [one for one in left if one.weight.values.shape == layer.weight.values.shape]
        if not same:
            return [f"weights: {layer.name} is no layer of the network, or is there once too often"]
        nearest = min(same, key=lambda one: _distance(one, layer))
        left = [one for one in left if one is not nearest]
        faults += _faults(layer, nearest)
    return faults + [f"weights: the network's {one.name} is missing" for one in left]


def _distance(one: Layer, other: Layer) -> float:
    return float(np.abs(one.weight.values - other.weight.values).mean())


def _faults(layer: Layer, exact: Layer) -> Iterator[str]:
    weight, right = layer.weight, exact.weight.values
    if weight.codes is not None and np.abs(weight.codes.astype(int)).max() > MOST_CODE:
        yield f"weights: {layer.name} has codes beyond 7 bits, which saturate on some CPUs"
    others = tuple(axis for axis in range(right.ndim) if axis != exact.axis)
    step = np.abs(right).max(axis=others, keepdims=True) / MOST_CODE
    off = float((np.abs(weight.values - right) / np.maximum(step, _TINY)).max())
    if not off <= _HALF_STEP:
        yield (
            f"weights: {layer.name} is off by {off:.2f} steps of its channel, allowed is "
            f"{_HALF_STEP}: a wrong scale, or one for all channels"
        )
    if (layer.bias is None) != (exact.bias is None):
        yield f"weights: {layer.name} has a bias where the network has none, or none where it has"
    elif layer.bias and exact.bias:
        yield from _bias_faults(layer.name, layer.bias, exact.bias.values)


def _bias_faults(name: str, bias: Constant, right: NDArray[np.float32]) -> Iterator[str]:
    step = bias.step
    if step is None:  # in float32, where a batch norm may have been folded in on another machine
        step = np.maximum(1e-5 * np.abs(right).max(), _TINY)
    off = float((np.abs(bias.values - right) / step).max())
    if not off <= _HALF_STEP:
        yield f"weights: the bias of {name} is another than the network's"
