"""Images unlike any sample, on which an export must be right all the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_LEVELS = (0, 1, 32, 64, 96, 127, 160, 192, 210, 230, 254, 255)
_DIMMED = (10, 20, 40, 60)  # to so many per cent
_PARTS: dict[str, tuple[int | slice, int | slice]] = {
    "top left corner": np.s_[0, 0],
    "top right corner": np.s_[0, -1],
    "bottom left corner": np.s_[-1, 0],
    "bottom right corner": np.s_[-1, -1],
    "top edge": np.s_[0, :],
    "bottom edge": np.s_[-1, :],
    "left edge": np.s_[:, 0],
    "right edge": np.s_[:, -1],
}


def synthetic_images(samples: NDArray[np.uint8], seed: int) -> dict[str, Image]:
    """Images by what they show, each of a sample's shape.

    Args:
        samples: (N, h, w[, 3]), real images; the first few are inverted and shifted.
        seed: of the noise.
    """
    shape = samples.shape[1:]
    images = {f"all {level}": np.full(shape, level, np.uint8) for level in _LEVELS}
    for where, part in _PARTS.items():
        for ground in (0, 255):
            image = np.full(shape, ground, np.uint8)
            image[part] = 255 - ground
            images[f"{where} alone on {ground}"] = image
    return {
        **images,
        **_patterns(shape),
        **_channels(shape),
        **_noise(shape, seed),
        **_changed(samples[:4]),
    }


def sharp_images(shape: tuple[int, ...], seed: int) -> dict[str, Image]:
    """Those whose pixels differ most from their neighbours: resizing would smooth them."""
    return {**_patterns(shape), **_noise(shape, seed)}


def _patterns(shape: tuple[int, ...]) -> dict[str, Image]:
    """Gradients, checkerboards and stripes."""
    height, width = shape[:2]
    rows, columns = np.indices((height, width))
    right = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    patterns = {
        "gradient to the right": right,
        "gradient to the left": right[:, ::-1],
        "gradient downwards": down,
        "gradient upwards": down[::-1],
        "every value of a byte": np.arange(right.size).reshape(height, width) % 256,
        "checkerboard": (rows + columns) % 2 * 255,
        "inverted checkerboard": (rows + columns + 1) % 2 * 255,
        "rows": rows % 2 * 255,
        "columns": columns % 2 * 255,
    }
    return {name: _in_shape(image, shape) for name, image in patterns.items()}


def _in_shape(grey: NDArray[Any], shape: tuple[int, ...]) -> Image:
    """A grey picture (h, w) with as many channels as `shape` has."""
    channels = grey if len(shape) == 2 else grey[..., None]
    return np.ascontiguousarray(np.broadcast_to(channels, shape).astype(np.uint8))


def _channels(shape: tuple[int, ...]) -> dict[str, Image]:
    """Of RGB each channel alone: an export may have swapped them."""
    images: dict[str, Image] = {}
    for channel, name in enumerate(("red", "green", "blue") if len(shape) == 3 else ()):
        images[name] = np.zeros(shape, np.uint8)
        images[name][..., channel] = 255
    return images


def _noise(shape: tuple[int, ...], seed: int) -> dict[str, Image]:
    random = np.random.default_rng(seed)

    def noise(low: int, high: int) -> Image:
        return random.integers(low, high, shape, np.uint8, endpoint=True)

    return {
        "noise": noise(0, 255),
        "more noise": noise(0, 255),
        "black and white noise": noise(0, 1) * np.uint8(255),
        "dark noise": noise(0, 15),
        "bright noise": noise(240, 255),
    }


def _changed(samples: NDArray[np.uint8]) -> dict[str, Image]:
    """Real images inverted, dimmed, and shifted out of the picture in each direction by a third."""
    images = {f"inverted sample {i}": 255 - image for i, image in enumerate(samples)}
    for per_cent in _DIMMED:
        images[f"sample 0 dimmed to {per_cent} %"] = (samples[0] * (per_cent / 100)).astype(
            np.uint8
        )
    images["sample 0 in light grey"] = 204 + samples[0] // 5
    for axis, name in ((0, "downwards"), (1, "to the right")):
        third = max(1, samples.shape[1 + axis] // 3)
        for distance in (-third, third):
            shifted = np.roll(samples[0], distance, axis)
            gap = slice(0, distance) if distance > 0 else slice(distance, None)
            np.moveaxis(shifted, axis, 0)[gap] = 0
            images[f"sample 0 shifted {name} by {distance}"] = shifted
    return images
